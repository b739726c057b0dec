"""Every policy in every cell of arrivals, targets, loads and models: is one of them good everywhere?

A cell is won by whoever has the most effective quality. `elastic` runs with noise and its rivals with exact costs,
which favours them. A rival that does not read quality runs once for all curves of a table.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from elit_serve.bench.comparison.policies import CONTENDERS, contender
from elit_serve.bench.simulate.arrivals import Arrivals, open_arrivals
from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.bench.simulate.quality_file import STATED, read_default_plan, stated_curve
from elit_serve.bench.simulate.simulation import SimulatedRun, simulate
from elit_serve.bench.simulate.workload import Setting, draw_workload, scales_of
from elit_serve.catalogue import cost_table
from elit_serve.errors import InvalidInput
from elit_serve.files.latency import read_latency
from elit_serve.files.opening import read_text
from elit_serve.scheduler.quality import QualityTable

DRAWN = ("poisson", "gamma:cv=4", "gamma:cv=8", "step:to=10,share=0.1", "on-off:burst=20,share=0.25")
MAX_REPORT_BYTES = 1 << 28
STATED_STEPS = 40  # of every request where quality is a stated curve


def is_rival(name: str) -> bool:
    """Whether it is no form of the server's elastic policy."""
    return not name.startswith("elastic")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is served, as on the command line: a cost table, and the quality that was measured with it, or None for the
    stated curves."""

    cost: str
    quality: str | None = None

    @classmethod
    def of(cls, text: str) -> Scene:
        """COST, or COST:QUALITY."""
        cost, _, quality = text.partition(":")
        return cls(cost=cost, quality=quality or None)


class Cell(NamedTuple):
    """What policies are compared in. curve: the name of a stated curve, or the file of a measured one."""

    curve: str
    trace: str
    targets: str
    load: float


class Result(NamedTuple):
    """What came of a window: shares of what was offered, and how many that were taken were late."""

    effective_quality: float
    attainment: float
    num_accepted: int
    num_late: int


class Size(NamedTuple):
    """How much of a tournament is played."""

    loads: tuple[float, ...]
    seeds: int
    requests: int


FULL = Size(loads=(0.5, 0.7, 1.0, 1.3, 1.6), seeds=5, requests=400)
QUICK = Size(loads=(0.5, 1.0, 1.6), seeds=2, requests=150)

Results = Mapping[Cell, Mapping[str, Sequence[Result]]]
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Tournament:
    """What is played; as on the command line."""

    scenes: Sequence[Scene]
    traces: Sequence[str]
    targets: Sequence[str]
    loads: Sequence[float]
    seeds: int
    requests: int
    noise: float
    policies: Sequence[str] = ("elastic", *filter(is_rival, CONTENDERS))

    def check(self) -> None:
        """Everything is read before anything is computed."""
        for name in self.policies:
            contender(name)
        for scene in self.scenes:
            served(scene)
        for trace in self.traces:
            source_of(trace)
        for name in self.targets:
            scales_of(name)
        if min(self.loads) <= 0:
            raise InvalidInput("load", min(self.loads), "above 0; 1 is the saturated full-budget throughput")

    def as_dict(self, results: Results) -> dict[str, object]:
        """For JSON: what was played, and each result of each seed, from which `with_rivals_of` reads."""
        by_cell = [{**cell._asdict(), "results": dict(found)} for cell, found in results.items()]
        return {"conditions": asdict(self), "results": by_cell}


def play(tournament: Tournament, progress: Progress = lambda _: None, *, jobs: int = 1) -> Results:
    """Results of every policy in every cell, one for each seed. jobs: processes at a time."""
    places = product(tournament.scenes, tournament.traces, tournament.targets, tournament.loads)
    windows = [_Window(tournament, *place) for place in places]
    found: dict[Cell, Mapping[str, Sequence[Result]]] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as processes:
        for done, cells in enumerate(processes.map(_Window.played, windows), 1):
            found |= cells
            progress(f"{done} of {len(windows)} windows")
    return found


def with_rivals_of(
    file: Path, tournament: Tournament, progress: Progress = lambda _: None, *, jobs: int = 1
) -> Results:
    """The same with `elastic` played and its rivals' results taken from the JSON of an earlier tournament."""
    known = _read(file)
    own = play(replace(tournament, policies=("elastic",)), progress, jobs=jobs)
    for cell in own:
        lengths = {len(results) for results in known.get(cell, {}).values()}
        if lengths != {tournament.seeds}:
            raise InvalidInput(
                "against", str(file), f"{tournament.seeds} windows of {cell}; it has {lengths or 'none'}"
            )
    return {cell: {**known[cell], **found} for cell, found in own.items()}


def _read(file: Path) -> Results:
    try:
        listed = json.loads(read_text(file, MAX_REPORT_BYTES))["results"]
        return {
            Cell(*(entry[name] for name in Cell._fields)): {
                name: [Result(*result) for result in results] for name, results in entry["results"].items()
            }
            for entry in listed
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidInput("against", str(file), "what `tournament --json` has written") from None


class _Window(NamedTuple):
    """One piece of work: the same arrivals under all curves of a scene, with every seed."""

    tournament: Tournament
    scene: Scene
    trace: str
    targets: str
    load: float

    def played(self) -> dict[Cell, dict[str, list[Result]]]:
        """Results of all policies, by cell."""
        tournament, (setting, curves) = self.tournament, served(self.scene)
        found: dict[Cell, dict[str, list[Result]]] = {
            Cell(curve, self.trace, self.targets, self.load): defaultdict(list) for curve in curves
        }
        for seed, name in product(range(tournament.seeds), tournament.policies):
            demands = draw_workload(
                setting,
                source_of(self.trace),
                load=self.load,
                slo_scales=scales_of(self.targets),
                count=tournament.requests,
                seed=seed,
            )
            run = None
            for cell, quality in zip(found, curves.values(), strict=True):
                if run is None or contender(name).reads_quality:
                    noise = 0.0 if is_rival(name) else tournament.noise
                    device = SimulatedDevice(setting.table, noise=noise, seed=seed)
                    run = simulate(contender(name).make(setting, quality), demands, device)
                found[cell][name].append(_result(run, quality))
        return found


@cache
def served(scene: Scene) -> tuple[Setting, Mapping[str, QualityTable]]:
    """The setting and the curves of a scene, by name."""
    table = cost_table(read_latency(Path(scene.cost))).with_answers_alone()
    if scene.quality is None:
        steps, curves = STATED_STEPS, {name: stated_curve(name, table.levels) for name in STATED}
    else:
        name, steps, quality = read_default_plan(Path(scene.quality))
        curves = {name: quality}
    weak_cap = min(kind.weak_level for kind, _ in table.steps_ms if kind.weak_level is not None)
    return Setting(table=table, num_steps=steps, weak_cap=weak_cap), curves


@cache
def source_of(trace: str) -> Arrivals:
    """Opened once in each process."""
    return open_arrivals(trace)


def _result(run: SimulatedRun, quality: QualityTable) -> Result:
    accepted = [fate for fate in run.fates if fate.refusal is None]
    return Result(
        effective_quality=fmean([fate.worth(quality) for fate in run.fates]),
        attainment=sum(fate.is_on_time for fate in accepted) / len(run.fates),
        num_accepted=len(accepted),
        num_late=sum(not fate.is_on_time for fate in accepted),
    )
