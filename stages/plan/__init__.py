"""The stage `plan`: bytes, files and hours before anything runs."""
