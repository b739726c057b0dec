"""The two pictures of a model card: budgets by classes, and samples beside their nearest training photographs."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from elit_serve.engine.conditions import Condition
from elit_serve.engine.pipeline import Pipeline
from elit_serve.evaluation.metrics import Nearest
from elit_serve.photographs import Photograph, decode
from elit_serve.pictures import fit, labelled, level_label
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan

SHOWN_LEVELS = 5


def budget_sheet(
    pipeline: Pipeline, plans: Sequence[Plan], *, conditions: Sequence[Condition], seed: int = 0
) -> Image.Image:
    """A row per plan, each of one level, and a column per condition, each of one seed: one picture at every budget."""
    seeds = [seed + column for column in range(len(conditions))]
    by_level = {plan.levels[0]: plan for plan in plans}
    chosen = sorted(by_level, reverse=True)
    rows = [[picture.image for picture in pipeline.run(conditions, seeds, by_level[level])] for level in chosen]
    return labelled(
        rows,
        row_labels=[level_label(level, pipeline.config.budgets.of_level(level)) for level in chosen],
        column_labels=[condition.words for condition in conditions],
    )


def shown_levels(guidance: Guidance, levels: Sequence[int]) -> list[int]:
    """Five of the trained levels that this guidance allows, each about as many times the one before; or all, of fewer.

    >>> shown_levels(Guidance(), range(1, 17))
    [1, 2, 4, 8, 16]
    """
    allowed = [level for level in levels if level >= guidance.min_level]
    if len(allowed) <= SHOWN_LEVELS:
        return allowed
    ratio = (allowed[-1] / allowed[0]) ** (1 / (SHOWN_LEVELS - 1))
    shown: list[int] = []
    for row in range(SHOWN_LEVELS):
        left = allowed[: len(allowed) - SHOWN_LEVELS + 1 + row]  # the rows that follow need one each
        higher = [level for level in left if not shown or level > shown[-1]]
        shown.append(min(higher, key=lambda level: abs(level - allowed[0] * ratio**row)))
    return shown


def nearest_sheet(
    pipeline: Pipeline,
    plan: Plan,
    *,
    conditions: Sequence[Condition],
    seeds: Sequence[int],
    found: Nearest,
    photographs: Sequence[Photograph],
    columns: int = 10,
) -> Image.Image:
    """Samples above their nearest reference photographs: an even selection, then the closest pairs of all n.

    conditions, seeds: of the n samples, which are made again by `plan`. found: their nearest of `photographs`.
    """
    columns = min(columns, len(seeds))
    even = evenly(len(seeds), columns)
    closest: list[int] = found.distances.argsort()[:columns].tolist()
    rows = []
    for samples in (even, closest):
        chosen = [conditions[i] for i in samples]
        images = [picture.image for picture in pipeline.run(chosen, [seeds[i] for i in samples], plan)]
        size = images[0].size
        neighbours = [photographs[int(found.indices[i])] for i in samples]
        rows += [images, [fit(decode(photograph), size[1], size[0]) for photograph in neighbours]]
    return labelled(rows, row_labels=["sample", "nearest", "closest", "nearest"], column_labels=[])


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` of the indices 0..count - 1, evenly spaced, with the first and the last; or all, of fewer.

    >>> evenly(10, 4)
    [0, 3, 6, 9]
    """
    wanted = min(wanted, count)
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)] if wanted > 1 else [0][:wanted]
