"""The names that other programs need: `from unic_pipe import FeatureCache, load_encoder`."""

from pipeline.cache.reader import FeatureCache
from pipeline.encoders import load_encoder

__all__ = ["FeatureCache", "load_encoder"]
