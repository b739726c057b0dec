"""How far the bound may lie above what is possible: the best schedules that a search finds on windows of few requests.

A schedule is written as who takes part, and at which level, in each short slice of time; decoding it runs the
participants with steps left, level by level, so every decoded schedule is feasible. The search changes a stretch of
slices at a time and keeps what is no worse. It starts from the noise-free runs of the compared policies, too: those are
known schedules, whatever the search finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from random import Random

from rich.table import Table

from elit_serve.bench.bound.bound import ClairvoyantBound
from elit_serve.bench.comparison.policies import contender
from elit_serve.bench.comparison.side_by_side import Comparison
from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.bench.simulate.simulation import simulate
from elit_serve.bench.simulate.workload import Setting
from elit_serve.errors import InvalidInput
from elit_serve.scheduler.quality import QualityTable
from elit_serve.scheduler.requests import Demand

MAX_REQUESTS = 15
SLICE_SOLO_STEPS = 6  # a slice lasts as long as so many full-level steps alone
ROUNDS = 6000  # changes tried
ROUNDING_S = 1e-9
PROGRESS_WORTH = 0.02  # of a request that was started but not finished: it tells the search which way to go


@dataclass(frozen=True, kw_only=True)
class Looseness:
    """share: of the bound, by which the best known schedule is below it; the truth lies in between."""

    load: float
    quality_curve: str
    seed: int
    bound: float
    best_known: float

    @property
    def share(self) -> float:
        return 1 - self.best_known / self.bound

    def as_dict(self) -> dict[str, object]:
        return {**self.__dict__, "looseness": self.share}


def measure_looseness(comparison: Comparison) -> Iterator[Looseness]:
    """One window for each load, curve and seed of a comparison; noise and bias do not count."""
    if comparison.requests > MAX_REQUESTS:
        allowed = f"at most {MAX_REQUESTS}: among more, the search for the best schedules finds none that is good"
        raise InvalidInput("requests", comparison.requests, allowed)
    for load in comparison.loads:
        for curve, quality in comparison.curves.items():
            bound = ClairvoyantBound(comparison.setting, quality)
            for seed in range(comparison.seeds):
                window = comparison.window(load, seed)
                known = [_policy_quality(name, comparison.setting, quality, window) for name in comparison.policies]
                yield Looseness(
                    load=load,
                    quality_curve=curve,
                    seed=seed,
                    bound=bound.mean_quality(window),
                    best_known=max(best_schedule(comparison.setting, quality, window, seed=seed), *known),
                )


def best_schedule(
    setting: Setting, quality: QualityTable, demands: Sequence[Demand], *, seed: int, rounds: int = ROUNDS
) -> float:
    """Mean quality, misses counting 0, of the best schedule found by changing one that knows all arrivals."""
    return max(
        _Search(setting, quality, demands, Random(f"search {seed} {level}")).climb(level, rounds // len(setting.levels))
        for level in range(len(setting.levels))
    )


def looseness_table(found: Sequence[Looseness]) -> Table:
    shares = [100 * entry.share for entry in found]
    table = Table(
        title=f"The bound is at most {sum(shares) / len(shares):.1f} % too high on average, {max(shares):.1f} % at most"
    )
    for column in ("load", "curve", "seed", "bound\n0 to 1", "best known\n0 to 1", "apart by\n%"):
        table.add_column(column, justify="right")
    for entry, share in zip(found, shares, strict=True):
        figures = (f"{entry.bound:.4f}", f"{entry.best_known:.4f}", f"{share:.1f}")
        table.add_row(f"{entry.load:g}", entry.quality_curve, str(entry.seed), *figures)
    return table


def _policy_quality(name: str, setting: Setting, quality: QualityTable, window: Sequence[Demand]) -> float:
    run = simulate(contender(name).make(setting, quality), window, SimulatedDevice(setting.table))
    return sum(fate.worth(quality) for fate in run.fates) / len(window)


class _Search:
    """levels: index of the level of each slice; takes_part: for each request, 1 in its slices and 0 in the others."""

    def __init__(self, setting: Setting, quality: QualityTable, demands: Sequence[Demand], rng: Random) -> None:
        self._setting, self._demands, self._rng = setting, demands, rng
        self._worths = [quality.at(level) / setting.num_steps for level in setting.levels]
        self._rows_s = [[ms / 1000 for ms in setting.row_ms(level)] for level in setting.levels]
        self._slice_s = SLICE_SOLO_STEPS * self._rows_s[-1][1]
        self._due_s = [demand.deadline_s - setting.overhead_s for demand in demands]
        self._num_slices = ceil(max(self._due_s) / self._slice_s) + 1
        self._takes_part = [[1] * self._num_slices for _ in demands]
        self._levels: list[int] = []

    def climb(self, level: int, rounds: int) -> float:
        """From everybody at one level, by `rounds` changes."""
        self._levels = [level] * self._num_slices
        guide, best = self._decoded()
        for _ in range(rounds):
            row = self._rng.randrange(-len(self._demands), len(self._demands))
            changed = self._levels if row < 0 else self._takes_part[row]
            before = changed[:]
            self._change(changed, None if row < 0 else self._demands[row], is_level=row < 0)
            new_guide, value = self._decoded()
            best = max(best, value)
            if new_guide >= guide:
                guide = new_guide
            else:
                changed[:] = before
        return best

    def _change(self, row: list[int], demand: Demand | None, *, is_level: bool) -> None:
        """A stretch of slices, short or long, in which the row has a say."""
        low = 0 if demand is None else int(demand.arrived_s / self._slice_s)
        high = self._num_slices if demand is None else ceil(demand.deadline_s / self._slice_s) + 1
        start = self._rng.randrange(low, min(high, self._num_slices))
        stretch = range(start, min(high, start + self._rng.choice((1, 2, 4, 8, 1000)), self._num_slices))
        if is_level:
            step = self._rng.choice((-1, 1))
            for place in stretch:
                row[place] = min(max(row[place] + step, 0), len(self._rows_s) - 1)
        else:
            value = self._rng.randrange(2)
            for place in stretch:
                row[place] = value

    def _decoded(self) -> tuple[float, float]:
        """(what guides the search, mean quality) of the schedule as it is written now."""
        count, num_steps = len(self._demands), self._setting.num_steps
        left, worths = [num_steps] * count, [0.0] * count
        arrived_s = [demand.arrived_s for demand in self._demands]
        now_s, end_s = arrived_s[0], max(self._due_s)
        ended_s = [float("inf")] * count
        while now_s < end_s:
            place = int(now_s / self._slice_s)
            level = self._levels[place]
            members = [
                i
                for i in range(count)
                if left[i] and arrived_s[i] <= now_s < self._due_s[i] and self._takes_part[i][place]
            ][: self._setting.table.max_batch]
            if not members:
                coming = (time for time in arrived_s if time > now_s)
                now_s = min([(place + 1) * self._slice_s + ROUNDING_S, *coming])
                continue
            now_s += self._rows_s[level][len(members)]
            for i in members:
                left[i] -= 1
                worths[i] += self._worths[level]
                if not left[i]:
                    ended_s[i] = now_s
        worth = sum(worths[i] for i in range(count) if ended_s[i] <= self._due_s[i] + ROUNDING_S)
        progress = sum(1 - steps / num_steps for steps in left)
        return worth + PROGRESS_WORTH * progress, worth / count
