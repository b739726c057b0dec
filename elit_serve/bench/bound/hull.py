"""Planes below the cost of a launch: what mixing launches freely could cost at least, per launch, image and level."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from elit_serve.bench.bound.programme import package
from elit_serve.bench.simulate.workload import Setting

if TYPE_CHECKING:
    from elit_serve.bench.bound.programme import Floats

GAP = 0.002  # planes are added until they are this close to the hull, relative to it
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # of launches between which faces are looked for


@dataclass(frozen=True, kw_only=True)
class Plane:
    """cost_ms ≥ launch_ms + image_ms · images + excess_ms · excess, for every launch.

    excess: over a launch's images, the sum of (level − lowest) / (full − lowest).
    """

    launch_ms: float
    image_ms: float
    excess_ms: float


def cost_planes(setting: Setting, max_images: int) -> tuple[Plane, ...]:
    """The faces of the lower convex hull of the cost of all launches of up to `max_images`, small ones left out.

    Costs count as what the cheapest launch of at least as many images takes, so that they never fall with the batch:
    leaving an image out of a launch must not make a schedule longer.
    """
    points, costs = _launches(setting, max_images)
    mixtures = _mixtures(points)
    candidates = _supporting(points, costs, mixtures)
    heights = candidates @ mixtures.T  # [plane, mixture]
    hull = heights.max(axis=0)
    chosen = [int(np.argmin(((hull - heights) / hull).mean(axis=1)))]
    while ((hull - heights[chosen].max(axis=0)) / hull).max() > GAP:
        worst = int(np.argmax((hull - heights[chosen].max(axis=0)) / hull))
        chosen.append(int(np.argmax(heights[:, worst])))
    return tuple(Plane(launch_ms=a, image_ms=b, excess_ms=c) for a, b, c in (candidates[i].tolist() for i in chosen))


def _launches(setting: Setting, max_images: int) -> tuple[Floats, Floats]:
    """[launch, (1, images, excess)] and milliseconds."""
    lowest, span = setting.levels[0], max(setting.full_level - setting.levels[0], 1)
    images = np.arange(1, max_images + 1)
    points, costs = [], []
    for level in setting.levels:
        row = np.array(setting.row_ms(level)[1:])
        costs.append(np.minimum.accumulate(row[::-1])[::-1][:max_images])
        points.append(np.stack([np.ones(max_images), images, images * (level - lowest) / span], axis=1))
    return np.concatenate(points), np.concatenate(costs)


def _mixtures(points: Floats) -> Floats:
    """Where faces are looked for: mixtures of launches of neighbouring sizes and levels, most of one and some of each.

    At a launch itself many planes touch, most of them far below the cost beside it; inside a face only one does.
    """
    most = int(points[:, 1].max())
    sizes = [size for size in SIZES if size < most] + [most]
    excesses = np.unique(np.round(points[:, 2] / points[:, 1], 12))
    mixed = []
    for few, many in pairwise([*sizes[:1], *sizes]):
        for low, high in pairwise(excesses if len(excesses) > 1 else np.zeros(2)):
            corners = np.array([(1, n, n * excess) for n in (few, many) for excess in (low, high)])
            mixed.append(0.9 * corners + 0.1 * corners.mean(axis=0))
    return np.unique(np.concatenate(mixed), axis=0)


def _supporting(points: Floats, costs: Floats, mixtures: Floats) -> Floats:
    """For each mixture the plane below all costs that is highest there: [mixture, (launch, image, excess)] in ms.

    One small linear programme each, solved as one.
    """
    optimize, sparse = package("scipy.optimize"), package("scipy.sparse")
    found = optimize.linprog(
        -mixtures.ravel(),
        A_ub=sparse.kron(sparse.eye(len(mixtures)), points, format="csr"),
        b_ub=np.tile(costs, len(mixtures)),
        bounds=[(None, None), (0, None), (0, None)] * len(mixtures),
        method="highs",
    )
    assert found.status == 0, found.message
    planes: Floats = np.maximum(found.x.reshape(-1, 3), [-np.inf, 0, 0])
    planes[:, 0] += np.minimum(0.0, (costs - planes @ points.T).min(axis=1))  # below every cost, to the last bit
    return planes
