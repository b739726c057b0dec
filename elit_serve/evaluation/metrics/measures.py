"""Figures with their uncertainty, and what is measured of a plan.

Every interval is of the samples alone, by repeated halves (the delete-half jackknife: Shao and Wu 1989): the standard
deviation of a figure over random halves of n samples estimates its standard error at n. The photographs are fixed. On
garden64's photographs it errs on the safe side: for sets of 89 the Fréchet distance's standard deviation is 8.1 between
disjoint sets and 10.0 by halves, the kernel distance's 0.007 and 0.012.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch
from torch import Tensor

from elit_serve.files.evaluation import Scores
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.plan import Plan

NUM_HALVES = 20
NORMAL_95 = 1.96
INTERVALS = (
    f"95 %, from the spread over {NUM_HALVES} random halves of the samples (delete-half jackknife); "
    "the photographs are taken as fixed"
)


@dataclass(frozen=True, kw_only=True)
class MeasuredSet:
    """What a plan sweep wants to know of one set of pictures.

    frechets: the Fréchet distance of all of them, then of random halves, as `whole_and_halves` orders them.
    images_per_second: of sampling alone.
    """

    frechets: tuple[float, ...]
    images_per_second: float

    @property
    def frechet(self) -> Estimate:
        return from_halves(self.frechets)


@dataclass(frozen=True, kw_only=True)
class PlanMeasures:
    """What a plan is worth: means over `repeats` sets of `num_samples` pictures, each set with seeds of its own.

    frechets: the Fréchet distance of each set. images_per_second: of sampling alone.
    """

    plan: Plan
    num_samples: int
    repeats: int
    scores: Scores
    images_per_second: float
    frechets: tuple[float, ...]

    @classmethod
    def over(cls, plan: Plan, sets: Sequence[Scores], *, num_samples: int, images_per_second: float) -> PlanMeasures:
        """The means over `sets`, one for each repeat."""
        return cls(
            plan=plan,
            num_samples=num_samples,
            repeats=len(sets),
            scores=mean_scores(sets),
            images_per_second=images_per_second,
            frechets=tuple(each.frechet.value for each in sets),
        )


def mean_scores(sets: Sequence[Scores]) -> Scores:
    """Over independent sets of pictures."""
    inception_scores = [each.inception_score for each in sets if each.inception_score is not None]
    return Scores(
        frechet=Estimate.mean([each.frechet for each in sets]),
        kernel=Estimate.mean([each.kernel for each in sets]),
        precision=Estimate.mean([each.precision for each in sets]),
        recall=Estimate.mean([each.recall for each in sets]),
        inception_score=Estimate.mean(inception_scores) if inception_scores else None,
        nearest_ratio=Estimate.mean([each.nearest_ratio for each in sets]),
    )


def quality_ratios(sets: Sequence[MeasuredSet], over: Sequence[MeasuredSet]) -> tuple[float, ...]:
    """Quality of some sets of pictures over that of as many others with the same seeds: of all pictures, then of their
    halves, for `from_halves`. Quality is floor / distance, so its ratio needs no floor."""
    pairs = [zip(one.frechets, other.frechets, strict=True) for one, other in zip(sets, over, strict=True)]
    return mean_rows([other / one for one, other in pair] for pair in pairs)


def mean_rows(rows: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """Over rows of equal length, column by column."""
    return tuple(fmean(column) for column in zip(*rows, strict=True))


def from_halves(figures: Sequence[float]) -> Estimate:
    """From a figure of all samples and those of random halves of them, as `whole_and_halves` orders them."""
    whole, *halves = figures
    return Estimate(value=whole, half_width=NORMAL_95 * pstdev(halves))


def quality_of(distance: Estimate, floor: float) -> Estimate:
    """floor / distance, at most 1: 1 is as close to the reference as unseen photographs are.

    Its interval leaves out the floor's, which moves all qualities together.
    """
    value = min(1.0, floor / distance.value)
    return Estimate(value=value, half_width=value * distance.half_width / distance.value)


def whole_and_halves(n: int, device: torch.device, *, num_halves: int = NUM_HALVES) -> Tensor:
    """Which of n samples are in each subset: all of them first, then random halves. -> [1 + num_halves, n], bool"""
    generator = torch.Generator().manual_seed(0)
    member = torch.zeros(1 + num_halves, n, dtype=torch.bool)
    member[0] = True
    for row in member[1:]:
        row[torch.randperm(n, generator=generator)[: (n + 1) // 2]] = True
    return member.to(device)
