"""Planes below the cost of a launch: what mixing launches freely could cost at least, per launch, image and level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from elit_serve.bench.programme import package
from elit_serve.bench.workload import Setting

if TYPE_CHECKING:
    from elit_serve.bench.programme import Floats

GAP = 0.003  # planes are added until they are this close to the hull, relative to the cost


@dataclass(frozen=True, kw_only=True)
class Plane:
    """cost_ms ≥ launch_ms + image_ms · images + excess_ms · excess, for every launch.

    excess: over a launch's images, the sum of (level − lowest) / (full − lowest).
    """

    launch_ms: float
    image_ms: float
    excess_ms: float


def cost_planes(setting: Setting, max_images: int) -> tuple[Plane, ...]:
    """Planes that touch the lower convex hull of the cost of all launches of up to `max_images`.

    Costs count as what the cheapest launch of at least as many images takes, so that they never fall with the batch:
    leaving an image out of a launch must not make a schedule longer.
    """
    points, costs = _launches(setting, max_images)
    candidates = [_supporting(points, costs, point) for point in _touched(points)]
    heights = np.array([points @ plane for plane in candidates])  # [plane, point]
    hull = heights.max(axis=0)
    chosen = [int(np.argmin(((hull - heights) / costs).mean(axis=1)))]
    while ((hull - heights[chosen].max(axis=0)) / costs).max() > GAP:
        worst = int(np.argmax((hull - heights[chosen].max(axis=0)) / costs))
        chosen.append(int(np.argmax(heights[:, worst])))
    return tuple(Plane(launch_ms=a, image_ms=b, excess_ms=c) for a, b, c in (candidates[i].tolist() for i in chosen))


def _launches(setting: Setting, max_images: int) -> tuple[Floats, Floats]:
    """[launch, (1, images, excess)] and milliseconds."""
    lowest, span = setting.levels[0], max(setting.full_level - setting.levels[0], 1)
    images = np.arange(1, max_images + 1)
    points, costs = [], []
    for level in setting.levels:
        row = np.array(setting.table.row(level, setting.weak_cap)[1:])
        costs.append(np.minimum.accumulate(row[::-1])[::-1][:max_images])
        points.append(np.stack([np.ones(max_images), images, images * (level - lowest) / span], axis=1))
    return np.concatenate(points), np.concatenate(costs)


def _touched(points: Floats) -> Floats:
    """The launches at which planes are looked for: powers of two, three times those, and the largest batch."""
    most = int(points[:, 1].max())
    sizes = [size for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128) if size < most] + [most]
    wanted: Floats = points[np.isin(points[:, 1], sizes)]
    return wanted


def _supporting(points: Floats, costs: Floats, at: Floats) -> Floats:
    """The plane below all costs that is highest at a point: (launch, image, excess) milliseconds."""
    optimize = package("scipy.optimize")
    bounds = [(None, None), (0, None), (0, None)]
    found = optimize.linprog(-at, A_ub=points, b_ub=costs, bounds=bounds, method="highs-ds")
    assert found.status == 0, found.message
    plane: Floats = np.maximum(found.x, [-np.inf, 0, 0])
    plane[0] += min(0.0, float((costs - points @ plane).min()))  # below every cost, to the last bit
    return plane
