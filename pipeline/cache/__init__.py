"""The feature cache: units of features in Zarr shards, proved by records. Import its modules, not this package."""
