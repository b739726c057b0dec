"""What a guided step costs on this device: measured, kept in a file, read where it fits."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import median, quantiles

import torch
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.table import Table

import elit_serve
from elit_serve.catalogue import bundled_models, cost_table
from elit_serve.clock import Clock, MonotonicClock
from elit_serve.engine.executor import offline
from elit_serve.engine.executor.graphs import open_executor
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.picture import Picture
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.answers import answer_times
from elit_serve.engine.profile.quick import anchors, interpolated
from elit_serve.engine.profile.step_set import StepSet, served_steps
from elit_serve.engine.profile.texts import text_times
from elit_serve.errors import ElitError
from elit_serve.files.config import TextConfig
from elit_serve.files.latency import AnswerTime, Latency, StepCost, read_latency
from elit_serve.files.writing import check_file, write_whole
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.skips import NO_SKIPS, Skips
from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling import initial_noise

logger = logging.getLogger(__name__)

REPEATS = {"cpu": 2, "cuda": 10}
QUICK_REPEATS = 3  # of the few steps that all others are read off: one that was interrupted must not count
DISTURBED = 2.0  # times as slow as now
Progress = Callable[[int, int], None]


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return next(iter(names), "") or platform.processor() or "cpu"


def device_slug(name: str) -> str:
    """A device name as a file name.

    >>> device_slug("NVIDIA H200")
    'nvidia-h200'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "device"


def file_name(pipeline: Pipeline) -> str:
    """Of the measurements of this model on its device: `<device>.json`, and `<device>-fp8.json` of a quantised one."""
    slug = device_slug(device_name(pipeline.device))
    return f"{slug}-fp8.json" if pipeline.precision == "fp8" else f"{slug}.json"


def latency_of(
    pipeline: Pipeline,
    executor: Executor,
    served: StepSet,
    *,
    clock: Clock,
    cache_folder: Path | None = None,
    on_progress: Progress | None = None,
) -> Latency:
    """The measured cost of these steps: from the model directory, from what is bundled, from the cache, or measured.

    On a CPU, where a step takes long, few are measured and the others interpolated.
    `cache_folder` is where measurements are kept; None is the user's cache directory. One that was made while the
    device was busy with something else is made again.
    """
    shipped = known_latency(pipeline, served)
    if shipped is not None:
        is_told = bool(shipped.answers) and shipped.autoencoder_hash == pipeline.autoencoder_hash
        told = shipped if is_told else _with_answers(shipped, pipeline, executor, served, clock)
        return told if told.text_ms else told.model_copy(update={"text_ms": _quick_texts(pipeline, clock)})
    folder = user_cache_path("elit-serve") / "latency" if cache_folder is None else cache_folder
    cached = folder / f"{_cache_key(pipeline, served)}.json"
    known = _read_cached(cached)
    if known is not None and _fits(known, pipeline, served) and not _was_disturbed(known, pipeline, executor):
        return known
    is_quick = not executor.is_asynchronous
    device = device_name(pipeline.device)
    logger.warning("measuring what steps of %s cost on %s, to be kept for later starts", pipeline.config.name, device)
    latency = measure(
        pipeline,
        executor,
        served,
        clock=clock,
        repeats=QUICK_REPEATS if is_quick else None,
        is_quick=is_quick,
        on_progress=_announcing(_timed(served, is_quick=is_quick), len(served.batches), clock, on_progress),
    )
    _write_cached(cached, latency)
    return latency


def known_latency(pipeline: Pipeline, served: StepSet | None = None) -> Latency | None:
    """The measured cost of these steps (default: a server's) on this device in the model directory, or bundled."""
    served = served or served_steps(pipeline.config, pipeline.shape_names, pipeline.device, pipeline.quality)
    name = file_name(pipeline)
    own = pipeline.path / "latency" / name
    for file in [own, *sorted(bundled_models().glob(f"recipes/*/latency/{name}"))]:
        if file.is_file():
            latency = _of_served(read_latency(file, model=file.parent.parent), pipeline, served)
            if latency is not None and _fits(latency, pipeline, served):
                return latency
    return None


def prepared_steps(pipeline: Pipeline, served: StepSet | None = None, *, max_batch: int | None = None) -> StepSet:
    """What a server prepares of these steps (default: all that it serves), in batches of up to `max_batch`. Where a
    file says what they cost on this device, that is without mixed ones that it does not know, as nothing would run
    them."""
    served = served or served_steps(pipeline.config, pipeline.shape_names, pipeline.device, pipeline.quality)
    if max_batch is not None:
        served = served.up_to(max_batch)
    known = known_latency(pipeline, served)
    if known is None:
        return served
    measured = {(_kind_of(step, pipeline), step.batch) for step in known.steps}
    return served.without({kind for kind, batch in served.costs if (kind, batch) not in measured})


def profile_to_file(
    pipeline: Pipeline,
    file: Path | None,
    *,
    repeats: int | None,
    command: str,
    console: Console,
    levels: Sequence[int] = (),
    batches: Sequence[int] = (),
) -> Path:
    """What `elit-serve profile` does: captures, measures, shows progress and a table, and writes the file.

    levels, batches: some of those that a server uses; none is all of them.
    """
    file = file or pipeline.path / "latency" / file_name(pipeline)
    check_file(file)
    served = served_steps(pipeline.config, pipeline.shape_names, pipeline.device, pipeline.quality)
    served = served.only(levels, batches)
    executor = open_executor(pipeline, num_slots=max(served.batches), keeps=served.keeps)
    with ProgressBar(console=console, transient=True, disable=not console.is_terminal) as bar:

        def show(what: str) -> Progress:
            task = bar.add_task(what)
            return lambda done, total: bar.update(task, completed=done, total=total)

        executor.capture(served.captures, show("capturing"))
        executor.capture_decoding(served.batches)
        latency = measure(
            pipeline,
            executor,
            served,
            clock=MonotonicClock(),
            repeats=repeats,
            command=command,
            on_progress=show("measuring"),
        )
    write_whole(file, latency.model_dump_json(indent=2) + "\n")
    console.print(_as_table(latency))
    console.print(_answers_as_table(latency))
    for number, took_ms in latency.text_ms.items():
        console.print(f"{number} new prompts are encoded in {took_ms:.2f} ms")
    return file


def _as_table(latency: Latency) -> Table:
    table = Table(
        title=f"{latency.model} on {latency.device}, {latency.dtype}: milliseconds of a step, a column per batch size"
    )
    costs = cost_table(latency)
    shape_column = ("shape",) if len(costs.shapes) > 1 else ()
    for column in (*shape_column, "level", "weak level", "core", *map(str, costs.batches)):
        table.add_column(column, justify="right")
    for kind in dict.fromkeys(kind for kind, _ in costs.steps_ms):
        measured = [costs.steps_ms.get((kind, batch)) for batch in costs.batches]
        row = ["-" if step_ms is None else f"{step_ms:.2f}" for step_ms in measured]
        level = f"up to {kind.level}" if kind.is_mixed else str(kind.level)
        weak_level = "-" if kind.weak_level is None else str(kind.weak_level)
        core = "skipped" if kind.is_skipped else "-"
        table.add_row(*[kind.shape for _ in shape_column], level, weak_level, core, *row)
    return table


def _answers_as_table(latency: Latency) -> Table:
    table = Table(title="milliseconds from the last step of so many pictures to their files")
    for column in ("shape", "pictures", "decoded in", "encoded in"):
        table.add_column(column, justify="right")
    for answer in latency.answers:
        figures = f"{answer.decode_ms:.2f}", f"{answer.encode_ms:.2f}"
        table.add_row(answer.shape or "-", str(answer.batch), *figures)
    return table


def measure(
    pipeline: Pipeline,
    executor: Executor,
    served: StepSet,
    *,
    clock: Clock,
    repeats: int | None = None,
    is_quick: bool = False,
    command: str = "",
    on_progress: Progress | None = None,
) -> Latency:
    """Times every step of `served` on an otherwise idle device. `executor` has captured what it will.

    is_quick: times a few steps of each batch only, and reads the others off a line through them, but no mixed ones.
    """
    repeats = repeats or REPEATS[pipeline.device.type]
    costs = set(served.costs)
    points = [point for point in product(_timed(served, is_quick=is_quick), served.batches) if point in costs]
    steps = []
    for count, (kind, batch) in enumerate(points):
        steps.append(_measured(pipeline, executor, kind, batch, repeats))
        if on_progress is not None:
            on_progress(count + 1, len(points))
    for batch in served.batches:
        steps += _interpolated(pipeline, steps, served, batch)
    answers = answer_times(pipeline, executor, served, clock=clock, repeats=repeats, is_quick=is_quick)
    return Latency(
        model=pipeline.config.name,
        backbone_hash=pipeline.config.backbone_hash,
        device=device_name(pipeline.device),
        dtype=pipeline.precision,
        threads=_threads(pipeline),
        graphs=executor.is_asynchronous,
        torch_version=torch.__version__,
        elit_serve_version=elit_serve.__version__,
        date=datetime.now(UTC).replace(microsecond=0),
        command=command,
        repeats=repeats,
        overhead_ms=_alone_ms(answers),
        steps=tuple(steps),
        answers=answers,
        text_ms=text_times(pipeline, clock=clock, repeats=repeats),
        autoencoder_hash=pipeline.autoencoder_hash,
    )


def _timed(served: StepSet, *, is_quick: bool) -> Sequence[StepKind]:
    """The kinds of steps that are measured."""
    if not is_quick:
        return served.kinds
    unmixed = [kind for kind in served.kinds if not kind.is_mixed]
    shapes = dict.fromkeys(kind.shape for kind in unmixed)
    return [kind for shape in shapes for kind in anchors([kind for kind in unmixed if kind.shape == shape])]


def _announcing(kinds: Sequence[StepKind], batches: int, clock: Clock, then: Progress | None) -> Progress:
    """Says about how long measuring takes once the first of the kinds is measured, at all batch sizes."""
    started_s = clock.now()
    passes = [1 if kind.weak_level is None else 2 for kind in kinds]

    def progress(done: int, total: int) -> None:
        if done == batches < total:
            total_s = (clock.now() - started_s) * sum(passes) / passes[0]
            logger.warning("measuring takes about %.0f s", max(1.0, total_s))
        if then is not None:
            then(done, total)

    return progress


def _measured(pipeline: Pipeline, executor: Executor, kind: StepKind, batch: int, repeats: int) -> StepCost:
    """The median of `repeats` steps, back to back as under load, after one that is not counted."""
    pictures = _pictures(pipeline, kind, batch, num_steps=repeats + 2)
    for picture in pictures:
        executor.add(picture)
    if kind.is_skipped:  # behind one that computes what it skips
        offline.advance(executor, pictures, kind._replace(is_skipped=False))
    levels = [1 if kind.is_mixed and number % 2 else kind.level for number in range(batch)]
    running = [offline.advance(executor, pictures, kind, levels) for _ in range(repeats + 1)]
    took_ms = [step.wait() for step in running][1:]
    for picture in pictures:
        executor.remove(picture)
    return _cost(pipeline, kind, batch, step_ms=median(took_ms), spread_ms=_spread_ms(took_ms))


def _cost(
    pipeline: Pipeline, kind: StepKind, batch: int, *, step_ms: float, spread_ms: float = 0.0, is_guess: bool = False
) -> StepCost:
    """As the file has it, which names a shape only where the model has several."""
    return StepCost(
        level=kind.level,
        weak_level=kind.weak_level,
        batch=batch,
        step_ms=step_ms,
        spread_ms=spread_ms,
        is_interpolated=is_guess,
        shape=kind.shape if len(pipeline.config.shapes) > 1 else None,
        is_skipped=kind.is_skipped,
        is_mixed=kind.is_mixed,
    )


def _interpolated(pipeline: Pipeline, steps: Sequence[StepCost], served: StepSet, batch: int) -> list[StepCost]:
    """The steps of a batch that were not measured, but for mixed ones."""
    unmixed = [kind for kind in served.kinds if not kind.is_mixed]
    measured = {_kind_of(step, pipeline): step.step_ms for step in steps if step.batch == batch}
    found: dict[StepKind, float] = {}
    for shape in pipeline.shape_names:
        of_shape = {kind: step_ms for kind, step_ms in measured.items() if kind.shape == shape}
        found |= interpolated(of_shape, [kind for kind in unmixed if kind.shape == shape])
    return [_cost(pipeline, kind, batch, step_ms=step_ms, is_guess=True) for kind, step_ms in found.items()]


def _kind_of(step: StepCost, pipeline: Pipeline) -> StepKind:
    return step.kind(pipeline.config.default_shape.name)


def _pictures(pipeline: Pipeline, kind: StepKind, count: int, *, num_steps: int) -> list[Picture]:
    """Some that steps of this kind can be run of."""
    guidance = Guidance() if kind.weak_level is None else Guidance(method="ccfg", scale=2.0)
    skips = Skips(core=tuple(range(1, num_steps))) if kind.is_skipped else NO_SKIPS
    plan = Plan(levels=(kind.level,) * num_steps, guidance=guidance, skips=skips)
    shape = next(shape for shape in pipeline.shapes if shape.name == kind.shape)
    return [
        Picture.of_plan(
            seed,
            plan,
            condition=pipeline.conditions[0],
            shape=shape.name,
            seed=seed,
            noise=initial_noise([seed], shape.size)[0],
        )
        for seed in range(count)
    ]


def _spread_ms(took_ms: list[float]) -> float:
    if len(took_ms) < 2:
        return 0.0
    deciles = quantiles(took_ms, n=10, method="inclusive")
    return (deciles[-1] - deciles[0]) / 2


def _with_answers(latency: Latency, pipeline: Pipeline, executor: Executor, served: StepSet, clock: Clock) -> Latency:
    """A measurement that is older than this, or was made with another autoencoder, with what is measured of it now."""
    answers = answer_times(pipeline, executor, served, clock=clock, repeats=1, is_quick=not executor.is_asynchronous)
    told = {"answers": answers, "overhead_ms": _alone_ms(answers), "autoencoder_hash": pipeline.autoencoder_hash}
    return latency.model_copy(update=told)


def _quick_texts(pipeline: Pipeline, clock: Clock) -> dict[int, float]:
    return text_times(pipeline, clock=clock, repeats=QUICK_REPEATS)


def _alone_ms(answers: Sequence[AnswerTime]) -> float:
    return answers[0].decode_ms + answers[0].encode_ms


def _of_served(latency: Latency, pipeline: Pipeline, served: StepSet) -> Latency | None:
    """What it says of the shapes that are served, if it knows them all, without batches and mixed steps that are
    not."""
    shapes = pipeline.shape_names
    kinds = [_kind_of(step, pipeline) for step in latency.steps]
    steps = tuple(
        step
        for step, kind in zip(latency.steps, kinds, strict=True)
        if kind.shape in shapes and step.batch in served.batches and (kind in served.kinds or not kind.is_mixed)
    )
    default = pipeline.config.default_shape.name
    answers = tuple(answer for answer in latency.answers if (answer.shape or default) in shapes)
    has_all = {_kind_of(step, pipeline).shape for step in steps} == set(shapes)
    return latency.model_copy(update={"steps": steps, "answers": answers}) if has_all else None


def _threads(pipeline: Pipeline) -> int | None:
    return torch.get_num_threads() if pipeline.device.type == "cpu" else None


def _fits(latency: Latency, pipeline: Pipeline, served: StepSet) -> bool:
    """Whether a measurement is of this backbone, device, dtype and thread count, and holds all that is served, mixed
    steps aside; it may hold steps that skip their cores besides."""
    here = (pipeline.config.backbone_hash, device_name(pipeline.device), pipeline.precision, _threads(pipeline))
    of = (latency.backbone_hash, latency.device, latency.dtype, latency.threads)
    measured = {(_kind_of(step, pipeline), step.batch) for step in latency.steps}
    others = measured - set(served.costs)
    needed = {(kind, batch) for kind, batch in served.costs if not kind.is_mixed}
    return of == here and measured >= needed and all(kind.is_skipped for kind, _ in others)


def _was_disturbed(latency: Latency, pipeline: Pipeline, executor: Executor) -> bool:
    """Whether its quickest step takes far less now. Something else on the device makes steps slower, never faster, so
    the faster of two measurements is the better one."""
    step = min(latency.steps, key=lambda step: step.step_ms)
    kind = _kind_of(step, pipeline)
    now = _measured(pipeline, executor, kind, step.batch, QUICK_REPEATS)
    was_disturbed = step.step_ms > DISTURBED * now.step_ms
    if was_disturbed:
        logger.warning(
            "a step took %.1f ms when it was measured and takes %.1f now: all are measured again",
            step.step_ms,
            now.step_ms,
        )
    return was_disturbed


def _read_cached(file: Path) -> Latency | None:
    """A measurement made earlier; one that is damaged is as good as none."""
    try:
        return read_latency(file) if file.exists() else None
    except ElitError as error:
        logger.warning("%s is not usable and will be measured again: %s", file, error)
        return None


def _write_cached(file: Path, latency: Latency) -> None:
    """All of the file or none of it; a cache that cannot be written is no reason to stop."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
        staging = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(latency.model_dump_json(indent=2) + "\n")
            staging.replace(file)
        finally:
            staging.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the measured latency could not be kept: %s", error)


def _told_of_encoder(pipeline: Pipeline) -> list[str]:
    """What makes a difference to how long prompts take."""
    conditions = pipeline.config.conditions
    return [conditions.encoder.model_dump_json()] if isinstance(conditions, TextConfig) else []


def _cache_key(pipeline: Pipeline, served: StepSet) -> str:
    content = [
        pipeline.config.backbone_hash,
        repr(served),
        device_name(pipeline.device),
        pipeline.precision,
        pipeline.autoencoder_hash,
        _threads(pipeline),
        torch.__version__,
        elit_serve.__version__,
        *_told_of_encoder(pipeline),
    ]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    return f"{pipeline.config.name}-{device_slug(device_name(pipeline.device))}-{digest}"
