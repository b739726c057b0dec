"""Figures of sets of pictures, with their uncertainty: `Scorer` knows them all, the other modules hold one each."""

from elit_serve.evaluation.metrics.measures import INTERVALS, MeasuredSet, PlanMeasures, from_halves, quality_of
from elit_serve.evaluation.metrics.nearest import Nearest, nearest
from elit_serve.evaluation.metrics.precision_recall import NEIGHBOURS
from elit_serve.evaluation.metrics.scorer import Scorer

__all__ = [
    "INTERVALS",
    "NEIGHBOURS",
    "MeasuredSet",
    "Nearest",
    "PlanMeasures",
    "Scorer",
    "from_halves",
    "nearest",
    "quality_of",
]
