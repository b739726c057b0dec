"""What `elit-serve sweep` does, from words and paths to files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.skips import with_skips
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import FeatureExtractor
from elit_serve.evaluation.runs.opening import ReferenceOptions, open_evaluator
from elit_serve.evaluation.runs.own_pictures import full_plan_of
from elit_serve.evaluation.runs.provenance import provenance
from elit_serve.evaluation.runs.reference import Reference
from elit_serve.evaluation.runs.sweep.outcome import SweepFacts, SweepOptions, sweep_to_folder
from elit_serve.evaluation.runs.sweep.search import SweepGrid, plan_name
from elit_serve.files.latency import Latency, read_latency
from elit_serve.files.quality import Quality
from elit_serve.files.writing import check_folder
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.levels import check_level
from elit_serve.plans.skips import SkipRule
from elit_serve.text.digits import whole_number

USUAL_LEVELS, USUAL_STEPS, USUAL_GUIDANCE = (1, 2, 4, 8, 16), (10, 20, 40, 80), "none,ccfg:3/1,ccfg:4.5/1@0.1-1"
GUIDANCE = re.compile(
    r"(?P<method>cfg|ag|ccfg):(?P<scale>[0-9.]+)(?:/(?P<weak>[0-9]{1,9}))?(?:@(?P<start>[0-9.]+)-(?P<end>[0-9.]+))?"
)
GUIDANCE_SPELLING = "none, or METHOD:SCALE, METHOD:SCALE/WEAK_LEVEL and either with @START-END, as ccfg:4.5/1@0.1-1"

OWN_FULL_PLAN = "Without that file, it is the model's own sampling."


@dataclass(frozen=True, kw_only=True)
class SweepWords:
    """As on the command line. levels, steps, guidance: None are those that `grid_of` takes of a model.
    schedules: pairs as 1-16; None are pairs of the lowest, the middle and the highest. skips: rules as `SkipRule.read`
    spells them. threads: of the host, see `share_cores`.
    """

    levels: Sequence[int] | None
    steps: Sequence[int] | None
    guidance: str | None
    schedules: str | None
    part: str
    latency: Path | None
    out: Path
    max_repeats: int
    max_measurements: int | None
    first_repeat: int
    writes_defaults: bool
    skips: str = "none"
    threads: int | None = None


def run_sweep_command(
    pipeline: Pipeline,
    extractor: FeatureExtractor,
    against: ReferenceOptions,
    words: SweepWords,
    console: Console,
) -> Quality | None:
    """Reads and checks everything, then measures."""
    full_plan = None if against.prompts is None else full_plan_of(pipeline)
    grid = replace(grid_of(pipeline, words), also=() if full_plan is None else (full_plan,))
    latency: Latency | None = None if words.latency is None else read_latency(words.latency)
    options = SweepOptions(
        grid=grid,
        out=words.out,
        max_measurements=words.max_measurements or 2 * len(grid.plans()),
        max_repeats=words.max_repeats,
        first_repeat=words.first_repeat,
        part=part_of(words.part),
        latency=latency,
        writes_defaults=words.writes_defaults,
    )
    options.check()
    check_folder(words.out)
    if words.threads is None and pipeline.device.type != "cpu":
        share_cores(options.part[1])
    if full_plan is not None and full_plan != pipeline.plan():
        console.print(f"The full plan is that of the model's quality.json: {plan_name(full_plan)}. {OWN_FULL_PLAN}")
    evaluator = open_evaluator(pipeline, extractor, against, words.out)
    facts = SweepFacts(
        metric=evaluator.metric,
        features_sha256=extractor.fingerprint,
        reference=reference_words(against, evaluator.reference),
        full_plan=None if full_plan is None else plan_name(full_plan),
        prompts_sha256=evaluator.reference.subjects.prompts_sha256,
        num_samples=evaluator.reference.num_samples,
        batch_size=evaluator.batch_size,
        provenance=provenance(pipeline, evaluator.batch_size),
    )
    return sweep_to_folder(pipeline, evaluator, facts, options, console=console)


def reference_words(against: ReferenceOptions, reference: Reference) -> str:
    """What was measured against, for people."""
    count, source = len(reference.features), against.reference or against.prompts
    assert source is not None
    if reference.full_plan is None:
        return f"{source.name}: {count} photographs"
    return f"{source.name}: {count} pictures by {plan_name(reference.full_plan)}"


def share_cores(num_parts: int) -> None:
    """Leaves to each of so many processes its share of the host's cores, for what they compute beside the device.

    Not where the model itself runs on the CPU: its pictures depend on the number of threads, and a last run without
    parts could not use theirs.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() // num_parts))


def grid_of(pipeline: Pipeline, words: SweepWords) -> SweepGrid:
    """The plans to measure; levels must be trained ones.

    Unless words say more, a model of one level is measured with the guidance of its full plan, and in quarters of its
    steps: a server takes as many times longer steps as the whole is of the fewest.
    """
    trained = pipeline.config.levels
    levels = tuple(check_level(level, trained) for level in sorted(set(words.levels or usual_levels(trained))))
    usual = full_plan_of(pipeline)
    has_one_level = len(trained) == 1
    all_steps = words.steps or (quarters_of(usual.num_steps) if has_one_level else USUAL_STEPS)
    for steps in all_steps:
        if not 1 <= steps <= 1000:
            raise InvalidInput("steps", steps, "between 1 and 1000")
    guidances = tuple(guidance_of(word) for word in (words.guidance or USUAL_GUIDANCE).split(","))
    if words.guidance is None and has_one_level:
        guidances = (usual.guidance,)
    for guidance in guidances:
        if guidance.has_weak_level:
            check_level(guidance.weak_level, trained, field="guidance")
    if words.schedules is None:
        corners = sorted({levels[0], levels[len(levels) // 2], levels[-1]})
        schedules = [(low, high) for low in corners for high in corners if low < high]
    else:
        schedules = [pair_of(word) for word in words.schedules.split(",") if word]
    for level in {level for pair in schedules for level in pair}:
        check_level(level, trained, field="schedules")
    return SweepGrid(
        levels=levels,
        steps=tuple(all_steps),
        guidances=guidances,
        schedules=tuple(schedules),
        time_shift=pipeline.config.sampling.time_shift,
        skips=tuple(SkipRule.read(word) for word in words.skips.split(",")),
        with_skips=partial(with_skips, pipeline),
    )


def usual_levels(trained: Sequence[int]) -> tuple[int, ...]:
    """Those of `USUAL_LEVELS` that are trained, or all, and always the full level, whose quality is asked for most.

    >>> usual_levels(range(1, 13))
    (1, 2, 4, 8, 12)
    """
    usual = [level for level in USUAL_LEVELS if level in trained] or trained
    return tuple(sorted({*usual, trained[-1]}))


def quarters_of(num_steps: int) -> tuple[int, ...]:
    """Of so many steps, rounded down, so that the whole is at least four times the fewest.

    >>> quarters_of(50)
    (12, 25, 37, 50)
    """
    return tuple(sorted({max(1, num_steps * quarter // 4) for quarter in range(1, 5)}))


def guidance_of(word: str) -> Guidance:
    """A guidance setting as the command line spells it.

    >>> guidance_of("ccfg:4.5/2@0.1-1").weak_level
    2
    """
    if word == "none":
        return Guidance()
    found = GUIDANCE.fullmatch(word)
    if found is None:
        raise InvalidInput("guidance", word, GUIDANCE_SPELLING)
    try:
        interval = (float(found["start"] or 0), float(found["end"] or 1))
        scale = float(found["scale"])
    except ValueError:
        raise InvalidInput("guidance", word, GUIDANCE_SPELLING) from None
    method = found["method"]
    assert method in ("cfg", "ag", "ccfg")
    return Guidance(method=method, scale=scale, weak_level=int(found["weak"] or 1), interval=interval)  # type: ignore[arg-type]


def pair_of(word: str) -> tuple[int, int]:
    """Two levels as 1-16."""
    first, _, second = word.partition("-")
    low, high = whole_number(first), whole_number(second)
    if low is None or high is None or not 0 < low < high:
        raise InvalidInput("schedules", word, "pairs of levels, the lower first, as 1-16,4-16")
    return low, high


def part_of(word: str) -> tuple[int, int]:
    """Which of how many, as 1/2."""
    first, _, second = word.partition("/")
    which, count = whole_number(first), whole_number(second)
    if which is None or count is None or not 1 <= which <= count:
        raise InvalidInput("part", word, "K/N with 1 <= K <= N, as 1/2")
    return which, count
