"""The names that other programs need: `from unic_pipe import FeatureCache, load_encoder, open_dataset`."""

from pipeline.cache.reader import FeatureCache
from pipeline.encoders import load_encoder
from pipeline.samples import open_dataset

__all__ = ["FeatureCache", "load_encoder", "open_dataset"]
