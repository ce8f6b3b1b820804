"""Samples: sources on disk become an index (Parquet) whose rows are read by offset and checked by hash. Torch-free."""

from unic_pipe.pipeline.samples.dataset import Dataset, find_dataset, open_dataset
from unic_pipe.pipeline.samples.freshness import dataset_state
from unic_pipe.pipeline.samples.index import index_dataset
from unic_pipe.pipeline.samples.sources import data_roots

__all__ = ["Dataset", "data_roots", "dataset_state", "find_dataset", "index_dataset", "open_dataset"]
