"""Figures of sets of pictures, with their uncertainty: `Scorer` knows them all, the other modules hold one each."""

from elit_serve.evaluation.metrics.following import agreements
from elit_serve.evaluation.metrics.measures import (
    INTERVALS,
    NORMAL_95,
    MeasuredSet,
    PlanMeasures,
    from_halves,
    mean_rows,
    quality_of,
    quality_ratios,
)
from elit_serve.evaluation.metrics.nearest import Nearest, nearest
from elit_serve.evaluation.metrics.precision_recall import NEIGHBOURS
from elit_serve.evaluation.metrics.scorer import Scorer

__all__ = [
    "INTERVALS",
    "NEIGHBOURS",
    "NORMAL_95",
    "MeasuredSet",
    "Nearest",
    "PlanMeasures",
    "Scorer",
    "agreements",
    "from_halves",
    "mean_rows",
    "nearest",
    "quality_of",
    "quality_ratios",
]
