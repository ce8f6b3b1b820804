"""The names that other programs need: `from unic_pipe import FeatureCache, load_encoder, open_dataset`."""

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.encoders import load_encoder
from unic_pipe.pipeline.samples import open_dataset

__all__ = ["FeatureCache", "load_encoder", "open_dataset"]
