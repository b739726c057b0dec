"""What the files of an evaluation folder say, as one kind of row for every measured plan; knows no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elit_serve.errors import CheckpointError, DataError, InvalidInput
from elit_serve.files.measurements import Latency, Quality, read_latency, read_quality
from elit_serve.files.opening import read_file
from elit_serve.files.validation import problems_in
from elit_serve.plans.estimate import Estimate

MAX_FILE_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What evaluation.json says of a set of pictures beside its Fréchet distance. None: the features have no logits."""

    kernel: Estimate
    precision: Estimate
    recall: Estimate
    inception_score: Estimate | None
    nearest_ratio: Estimate


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measured plan.

    levels: one per step. scale: 1 where nothing guides. sampled_like: equal for plans that differ in nothing but their
    levels. time_ms: of one picture alone, on the device of the latency file.
    """

    levels: tuple[int, ...]
    guidance: str
    method: str
    scale: float
    sampled_like: tuple[object, ...]
    distance: Estimate
    name: str = ""
    quality: Estimate | None = None
    gflops: float | None = None
    time_ms: float | None = None
    on_front: bool = False
    scores: Scores | None = None
    images_per_second: float | None = None

    @property
    def mean_level(self) -> float:
        return sum(self.levels) / len(self.levels)

    @property
    def level_text(self) -> str:
        """Each level with how many steps ran at it, if there are several. As `16` or `4 x 20, 16 x 20`."""
        runs = [(level, len(list(run))) for level, run in groupby(self.levels)]
        return str(runs[0][0]) if len(runs) == 1 else ", ".join(f"{level} x {count}" for level, count in runs)


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Everything that a report tells. evaluated: plans of evaluation.json. swept: plans of quality.json.

    floor_scores: of unseen photographs. protocol: how it was measured, by name.
    """

    model: str
    model_hash: str
    metric: str
    num_samples: int
    floor: Estimate
    floor_scores: Scores | None
    evaluated: tuple[Row, ...]
    swept: tuple[Row, ...]
    protocol: tuple[tuple[str, str], ...]
    default: str | None
    timed_on: str | None
    provenance: tuple[tuple[str, dict[str, Any]], ...]  # of each file, by its name


class _Lenient(BaseModel):
    """Fields that a report does not tell may be there."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=())


class _Guidance(_Lenient):
    method: str
    scale: float
    weak_level: int
    interval: tuple[float, float]


class _Plan(_Lenient):
    levels: tuple[int, ...] = Field(min_length=1)
    guidance: _Guidance
    time_shift: float = 1.0


class _Scored(_Lenient):
    """A set of pictures against the reference."""

    frechet: Estimate
    kernel: Estimate
    precision: Estimate
    recall: Estimate
    inception_score: Estimate | None = None


class _Floors(_Scored):
    nearest_ratio: Estimate


class _Evaluated(_Scored):
    plan: _Plan
    nearest_ratio: float
    nearest_half_width: float
    images_per_second: float


class _Picture(_Lenient):
    height: int
    width: int


class _Evaluation(_Lenient):
    format_version: Literal[2]
    model: str
    model_hash: str
    metric: str
    num_samples: int
    num_reference: int
    held_out: str
    class_distribution: dict[str, int] = Field(min_length=1)
    sampler: str
    seeds: str
    autoencoder: str
    picture: _Picture
    intervals: str
    floor: _Floors
    plans: tuple[_Evaluated, ...] = Field(min_length=1)
    provenance: dict[str, Any]


def _check_comparable(folder: Path, evaluation: _Evaluation, quality: Quality) -> None:
    """Distances of other pictures, in other features or of another number stand in no relation to each other."""
    for fact in ("model_hash", "metric", "num_samples"):
        one, other = getattr(evaluation, fact), getattr(quality, fact)
        if one != other:
            raise DataError(f"{folder}: {fact} is {one} in evaluation.json and {other} in quality.json")


def read_measurements(folder: Path) -> Measurements:
    """Reads a folder's evaluation.json, quality.json (one of them must be there) and latency.json or latency/*.json."""
    if not folder.is_dir():
        raise InvalidInput("report", str(folder), "a folder that an evaluation has written")
    latency = _read_latency(folder)
    quality = read_quality(folder / "quality.json") if (folder / "quality.json").is_file() else None
    evaluation = _read_evaluation(folder / "evaluation.json")
    if quality is None and evaluation is None:
        raise InvalidInput("report", str(folder), "a folder with evaluation.json, quality.json or both")
    if evaluation and quality:
        _check_comparable(folder, evaluation, quality)
    first = evaluation or quality
    assert first is not None
    floor = evaluation.floor.frechet if evaluation else first.floor
    assert isinstance(floor, Estimate)
    return Measurements(
        model=first.model,
        model_hash=first.model_hash,
        metric=first.metric,
        num_samples=first.num_samples,
        floor=floor,
        floor_scores=_scores(evaluation.floor, evaluation.floor.nearest_ratio) if evaluation else None,
        evaluated=tuple(map(_evaluated_row, evaluation.plans)) if evaluation else (),
        swept=_swept_rows(quality, latency) if quality else (),
        protocol=tuple(_protocol(evaluation, quality)),
        default=quality.default if quality else None,
        timed_on=latency.device if latency else None,
        provenance=tuple(_provenance(evaluation, quality, latency)),
    )


def _protocol(evaluation: _Evaluation | None, quality: Quality | None) -> Iterator[tuple[str, str]]:
    """How it was measured, in a few words each."""
    if evaluation is not None:
        counts = evaluation.class_distribution.values()
        yield "reference", f"{evaluation.num_reference} photographs"
        yield "unseen photographs", f"{evaluation.held_out}; {len(counts)} classes of {min(counts)} to {max(counts)}"
        yield "sampler", f"{evaluation.sampler}; {evaluation.seeds}"
        yield (
            "pictures",
            f"{evaluation.picture.height} x {evaluation.picture.width}, autoencoder: {evaluation.autoencoder}",
        )
        yield "intervals", evaluation.intervals
    if quality is not None:
        yield "reference of the sweep", quality.reference
        yield "quality", quality.scale


def _provenance(
    evaluation: _Evaluation | None, quality: Quality | None, latency: Latency | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    if evaluation is not None:
        yield "evaluation.json", evaluation.provenance
    if quality is not None:
        yield "quality.json", dict(quality.provenance)
    if latency is not None:
        told = {"command", "date", "device", "dtype", "torch_version"}
        yield "latency.json", latency.model_dump(mode="json", include=told)


def _read_evaluation(file: Path) -> _Evaluation | None:
    try:
        return _Evaluation.model_validate_json(read_file(file, MAX_FILE_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        raise CheckpointError(file, problems_in(error)) from None


def _read_latency(folder: Path) -> Latency | None:
    files = [folder / "latency.json", *sorted((folder / "latency").glob("*.json"))]
    found = next((file for file in files if file.is_file()), None)
    return read_latency(found) if found else None


def _evaluated_row(measured: _Evaluated) -> Row:
    plan, guidance = measured.plan, measured.plan.guidance
    return Row(
        levels=plan.levels,
        guidance=guidance_text(guidance),
        method=guidance.method,
        scale=1.0 if guidance.method == "none" else guidance.scale,
        sampled_like=(guidance_text(guidance), len(plan.levels), plan.time_shift),
        distance=measured.frechet,
        scores=_scores(measured, Estimate(value=measured.nearest_ratio, half_width=measured.nearest_half_width)),
        images_per_second=measured.images_per_second,
    )


def _scores(measured: _Scored, nearest_ratio: Estimate) -> Scores:
    return Scores(
        kernel=measured.kernel,
        precision=measured.precision,
        recall=measured.recall,
        inception_score=measured.inception_score,
        nearest_ratio=nearest_ratio,
    )


def _swept_rows(quality: Quality, latency: Latency | None) -> tuple[Row, ...]:
    full_level = max(max(plan.step_levels) for plan in quality.plans)
    costs, rows = latency.cost_table if latency else None, []
    for plan in sorted(quality.plans, key=lambda plan: plan.gflops):
        time_ms = None
        if costs is not None:
            time_ms = costs.alone_ms(costs.shapes[0], plan.step_levels, plan.plan.weak_caps(full_level))
        rows.append(
            Row(
                name=plan.name,
                levels=plan.step_levels,
                guidance=guidance_text(plan.guidance),
                method=plan.guidance.method,
                scale=1.0 if plan.guidance.method == "none" else plan.guidance.scale,
                sampled_like=(guidance_text(plan.guidance), plan.steps, plan.time_shift),
                distance=plan.distance,
                quality=plan.quality,
                gflops=plan.gflops,
                time_ms=time_ms,
                on_front=plan.on_front,
            )
        )
    return tuple(rows)


def guidance_text(guidance: Any) -> str:
    """Guidance in a few words, as `ccfg 4.5, weak level 1, t 0.1 to 1`."""
    if guidance.method == "none" or guidance.scale == 1:
        return "none"
    weak = "" if guidance.method == "cfg" else f", weak level {guidance.weak_level}"
    start, end = guidance.interval
    when = "" if (start, end) == (0, 1) else f", t {start:g} to {end:g}"
    return f"{guidance.method} {guidance.scale:g}{weak}{when}"
