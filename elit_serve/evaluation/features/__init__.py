"""From pictures to feature vectors, by an extractor that the operator chooses: `open_features`."""

from elit_serve.evaluation.features.cache import FeatureCache, Sampled
from elit_serve.evaluation.features.extractor import Described, FeatureExtractor
from elit_serve.evaluation.features.photographs import photograph_features
from elit_serve.evaluation.features.table import open_features

__all__ = ["Described", "FeatureCache", "FeatureExtractor", "Sampled", "open_features", "photograph_features"]
