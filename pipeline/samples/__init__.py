"""Samples: sources on disk become an index (Parquet) whose rows are read by offset and checked by hash. Torch-free."""

from pipeline.samples.dataset import Dataset, find_dataset, open_dataset
from pipeline.samples.freshness import dataset_state
from pipeline.samples.index import index_dataset
from pipeline.samples.sources import data_roots

__all__ = ["Dataset", "data_roots", "dataset_state", "find_dataset", "index_dataset", "open_dataset"]
