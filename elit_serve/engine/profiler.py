"""What a guided step costs on this device: measured in a few seconds, kept in a file, read where it fits."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from platformdirs import user_cache_path
from pydantic import Field, ValidationError, field_validator

import elit_serve
from elit_serve.clock import Clock
from elit_serve.engine.config import Strict
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import CheckpointError
from elit_serve.sampling import Guidance, Plan
from elit_serve.scheduler import CostTable

logger = logging.getLogger(__name__)

REPEATS = 3
MAX_FILE_BYTES = 1 << 20


class StepCost(Strict):
    """One measurement: a step of one image at `level`, guided at `weak_level` or unguided."""

    level: int = Field(ge=1)
    weak_level: int | None = Field(default=None, ge=1)
    step_ms: float = Field(gt=0, allow_inf_nan=False)


class Latency(Strict):
    """`latency/<device>.json`: measured milliseconds, and everything they were measured with.

    threads: CPU threads, or None on a GPU.
    """

    format_version: int = Field(default=1, ge=1, le=1)
    model: str
    model_hash: str
    device: str
    dtype: str
    threads: int | None = Field(default=None, ge=1)
    torch_version: str
    elit_serve_version: str
    date: datetime
    repeats: int = Field(ge=1)
    overhead_ms: float = Field(ge=0, allow_inf_nan=False)
    steps: tuple[StepCost, ...] = Field(min_length=2)

    @field_validator("steps")
    @classmethod
    def _both_kinds(cls, steps: tuple[StepCost, ...]) -> tuple[StepCost, ...]:
        if len({step.weak_level is None for step in steps}) != 2:
            raise ValueError("both guided and unguided steps are needed")
        return steps

    @property
    def cost_table(self) -> CostTable:
        costs = {(step.level, step.weak_level): step.step_ms for step in self.steps}
        return CostTable(step_costs_ms=costs, overhead_ms=self.overhead_ms)


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


def latency_of(pipeline: Pipeline, *, clock: Clock, cache_folder: Path | None = None) -> Latency:
    """The measured cost of this pipeline: from the model directory, from the cache, or measured now.

    `cache_folder` is where measurements are kept; None is the user's cache directory.
    """
    bundled = pipeline.path / "latency" / f"{device_slug(device_name(pipeline.device))}.json"
    if bundled.is_file():
        latency = _read_bundled(bundled, pipeline.path)
        if _fits(latency, pipeline):
            return latency
    folder = user_cache_path("elit-serve") / "latency" if cache_folder is None else cache_folder
    cached = folder / f"{_cache_key(pipeline)}.json"
    known = _read_cached(cached)
    if known is not None and _fits(known, pipeline):
        return known
    latency = measure(pipeline, clock=clock)
    _write_cached(cached, latency)
    return latency


def measure(pipeline: Pipeline, *, clock: Clock, repeats: int = REPEATS) -> Latency:
    """Times steps of one image on an otherwise idle device: unguided, guided at the model's weak level, and guided
    at the level itself, at level 1, at powers of two and at the largest.
    """
    steps = [
        StepCost(level=level, weak_level=weak_level, step_ms=_step_ms(pipeline, level, weak_level, clock, repeats))
        for level, weak_level in _points(pipeline)
    ]
    unguided_ms = next(step.step_ms for step in steps if step.weak_level is None)
    return Latency(
        model=pipeline.config.name,
        model_hash=pipeline.model_hash,
        device=device_name(pipeline.device),
        dtype=_dtype_name(pipeline),
        threads=_threads(pipeline),
        torch_version=torch.__version__,
        elit_serve_version=elit_serve.__version__,
        date=datetime.now(UTC).replace(microsecond=0),
        repeats=repeats,
        overhead_ms=_overhead_ms(pipeline, unguided_ms, clock, repeats),
        steps=tuple(steps),
    )


def _points(pipeline: Pipeline) -> list[tuple[int, int | None]]:
    """(level, weak level) pairs to measure, lowest level first."""
    largest = max(pipeline.config.levels)
    levels = sorted({1, largest} | {1 << power for power in range(largest.bit_length()) if 1 << power <= largest})
    default = pipeline.config.sampling.guidance.weak_level

    def weak_levels(level: int) -> Iterator[int | None]:
        yield None
        yield from sorted({min(default, level), level})

    return [(level, weak_level) for level in levels for weak_level in weak_levels(level)]


def _step_ms(pipeline: Pipeline, level: int, weak_level: int | None, clock: Clock, repeats: int) -> float:
    """Median milliseconds of a step, after one that is not counted."""
    guidance = Guidance()
    if weak_level is not None:
        guidance = Guidance(method="ccfg", scale=2.0, weak_level=weak_level)
    ends_s: list[float] = []

    def note_time(_: int) -> None:
        _wait_for(pipeline.device)
        ends_s.append(clock.now())

    pipeline.sample([0], [0], Plan(levels=(level,) * (repeats + 1), guidance=guidance), note_time)
    return 1000 * median(end - start for start, end in pairwise(ends_s))


def _overhead_ms(pipeline: Pipeline, step_ms: float, clock: Clock, repeats: int) -> float:
    """Median milliseconds of a picture of one step at level 1, encoded, without the step."""
    durations_ms = []
    for _ in range(repeats):
        start_s = clock.now()
        pipeline.run([0], [0], Plan(levels=(1,)))[0].encode("png")
        durations_ms.append(1000 * (clock.now() - start_s) - step_ms)
    return max(0.0, median(durations_ms))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _dtype_name(pipeline: Pipeline) -> str:
    return str(pipeline.dtype).removeprefix("torch.")


def _threads(pipeline: Pipeline) -> int | None:
    return torch.get_num_threads() if pipeline.device.type == "cpu" else None


def _fits(latency: Latency, pipeline: Pipeline) -> bool:
    """Whether a measurement is of this model, device, dtype and thread count, and spans the model's levels.

    A model directory may hold one of earlier weights, whose backbone may have been another.
    """
    here = (pipeline.model_hash, device_name(pipeline.device), _dtype_name(pipeline), _threads(pipeline))
    measured = (latency.model_hash, latency.device, latency.dtype, latency.threads)
    return measured == here and max(step.level for step in latency.steps) == max(pipeline.config.levels)


def _read_bundled(file: Path, model: Path) -> Latency:
    name = f"latency/{file.name}"
    try:
        return _parse(file)
    except ValidationError as error:
        problems = [f"{name}: {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise CheckpointError(model, problems[:12]) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(model, [f"{name} cannot be read: {error}"]) from None


def _read_cached(file: Path) -> Latency | None:
    """A measurement made earlier; one that is damaged is as good as none."""
    try:
        return _parse(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s is not usable and will be measured again: %s", file, str(error).splitlines()[0])
        return None


def _parse(file: Path) -> Latency:
    if file.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
    return Latency.model_validate_json(file.read_bytes())


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


def _cache_key(pipeline: Pipeline) -> str:
    content = [
        pipeline.model_hash,
        device_name(pipeline.device),
        _dtype_name(pipeline),
        _threads(pipeline),
        torch.__version__,
        elit_serve.__version__,
    ]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    return f"{pipeline.config.name}-{device_slug(device_name(pipeline.device))}-{digest}"
