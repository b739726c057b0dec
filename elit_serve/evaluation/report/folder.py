"""What the files of an evaluation folder say, as one kind of row for every measured plan; knows no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elit_serve.catalogue import alone_ms
from elit_serve.errors import DataError, InvalidInput
from elit_serve.files.evaluation import Agreement, EvaluatedPlan, Evaluation, Scores, read_evaluation
from elit_serve.files.latency import Latency, read_latency
from elit_serve.files.quality import Quality, read_quality
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan, runs_of


@dataclass(frozen=True, kw_only=True)
class MeasuredRow:
    """A measured plan. time_ms: of one picture alone, on the device of the latency file.

    What only one of the two files tells is None where it comes from the other.
    """

    plan: Plan
    distance: Estimate
    name: str = ""
    quality: Estimate | None = None
    gflops: float | None = None
    time_ms: float | None = None
    on_front: bool = False
    scores: Scores | None = None
    images_per_second: float | None = None
    following: Mapping[str, Agreement] | None = None

    @property
    def level_text(self) -> str:
        """Each level with how many steps ran at it, if there are several. As `16` or `4 x 20, 16 x 20`."""
        runs = runs_of(self.plan.levels)
        return str(runs[0][0]) if len(runs) == 1 else ", ".join(f"{level} x {count}" for level, count in runs)

    @property
    def guidance(self) -> str:
        return guidance_text(self.plan.guidance)

    @property
    def scale(self) -> float:
        """1 where nothing guides."""
        return 1.0 if self.plan.guidance.method == "none" else self.plan.guidance.scale

    @property
    def sampled_like(self) -> tuple[object, ...]:
        """Equal for plans that differ in nothing but their levels."""
        return self.guidance, self.plan.num_steps, self.plan.time_shift


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Everything that a report tells. evaluated: plans of evaluation.json. swept: plans of quality.json.

    full_plan: the plan of the model whose pictures were the reference; None are photographs.
    floor_scores: of unseen photographs. protocol: how it was measured, by name.
    """

    model: str
    model_hash: str
    metric: str
    num_samples: int
    full_plan: str | None
    floor: Estimate
    floor_scores: Scores | None
    evaluated: tuple[MeasuredRow, ...]
    swept: tuple[MeasuredRow, ...]
    protocol: tuple[tuple[str, str], ...]
    default: str | None
    timed_on: str | None
    provenance: tuple[tuple[str, Mapping[str, Any]], ...]  # of each file, by its name

    @property
    def reference_text(self) -> str:
        return "photographs" if self.full_plan is None else "pictures of the model's own full plan"

    @property
    def floor_text(self) -> str:
        """What scores the floor."""
        return "unseen photographs" if self.full_plan is None else "other pictures of the full plan"


def read_measurements(folder: Path) -> Measurements:
    """Reads a folder's evaluation.json, quality.json (one of them must be there) and latency.json or latency/*.json."""
    if not folder.is_dir():
        raise InvalidInput("folder", str(folder), "a folder that an evaluation has written")
    latency = _read_latency(folder)
    quality = read_quality(folder / "quality.json") if (folder / "quality.json").is_file() else None
    evaluation = read_evaluation(folder)
    if evaluation and quality:
        _check_comparable(folder, evaluation, quality)
    first = evaluation or quality
    if first is None:
        raise InvalidInput("folder", str(folder), "a folder with evaluation.json, quality.json or both")
    return Measurements(
        model=first.model,
        model_hash=first.model_hash,
        metric=first.metric,
        num_samples=first.num_samples,
        full_plan=quality.full_plan if quality else None,
        floor=first.floor.frechet if isinstance(first, Evaluation) else first.floor,
        floor_scores=evaluation.floor if evaluation else None,
        evaluated=tuple(map(_evaluated_row, evaluation.plans)) if evaluation else (),
        swept=_swept_rows(quality, latency) if quality else (),
        protocol=tuple(_protocol(evaluation, quality)),
        default=quality.default if quality else None,
        timed_on=latency.device if latency else None,
        provenance=tuple(_provenance(evaluation, quality, latency)),
    )


def _check_comparable(folder: Path, evaluation: Evaluation, quality: Quality) -> None:
    """Distances of other pictures, to others, in other features or of another number stand in no relation."""
    if quality.full_plan is not None:
        raise DataError(f"{folder}: evaluation.json is against photographs, and quality.json against the full plan")
    for fact in ("model_hash", "metric", "num_samples"):
        one, other = getattr(evaluation, fact), getattr(quality, fact)
        if one != other:
            raise DataError(f"{folder}: {fact} is {one} in evaluation.json and {other} in quality.json")


def _protocol(evaluation: Evaluation | None, quality: Quality | None) -> Iterator[tuple[str, str]]:
    """How it was measured, in a few words each."""
    if evaluation is not None:
        counts, size = evaluation.class_distribution.values(), evaluation.picture
        mix = f"{len(counts)} classes of {min(counts)} to {max(counts)}" if counts else "with their captions"
        yield "reference", f"{evaluation.num_reference} photographs"
        yield "unseen photographs", f"{evaluation.held_out}; {mix}"
        yield "sampler", f"{evaluation.sampler}; {evaluation.seeds}"
        yield "pictures", f"{size.height} x {size.width}, autoencoder: {evaluation.autoencoder}"
        yield "intervals", evaluation.intervals
    if quality is not None:
        yield "reference of the sweep", quality.reference
        yield "quality", quality.scale


def _provenance(
    evaluation: Evaluation | None, quality: Quality | None, latency: Latency | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if evaluation is not None:
        yield "evaluation.json", evaluation.provenance
    if quality is not None:
        yield "quality.json", quality.provenance
    if latency is not None:
        told = {"command", "date", "device", "dtype", "torch_version"}
        yield "latency.json", latency.model_dump(mode="json", include=told)


def _read_latency(folder: Path) -> Latency | None:
    files = [folder / "latency.json", *sorted((folder / "latency").glob("*.json"))]
    found = next((file for file in files if file.is_file()), None)
    return read_latency(found) if found else None


def _evaluated_row(measured: EvaluatedPlan) -> MeasuredRow:
    return MeasuredRow(
        plan=measured.plan,
        distance=measured.frechet,
        scores=measured.scores,
        images_per_second=measured.images_per_second,
        following=measured.following,
    )


def _swept_rows(quality: Quality, latency: Latency | None) -> tuple[MeasuredRow, ...]:
    """Cheapest first."""
    return tuple(
        MeasuredRow(
            plan=plan.plan,
            distance=plan.distance,
            name=plan.name,
            quality=plan.quality,
            gflops=plan.gflops,
            time_ms=alone_ms(latency, plan.plan) if latency else None,
            on_front=plan.on_front,
        )
        for plan in sorted(quality.plans, key=lambda plan: plan.gflops)
    )


def guidance_text(guidance: Guidance) -> str:
    """Guidance in a few words, as `ccfg 4.5, weak level 1, t 0.1 to 1`."""
    if guidance.is_off:
        return "none"
    weak = f", weak level {guidance.weak_level}" if guidance.has_weak_level else ""
    start, end = guidance.interval
    when = "" if (start, end) == (0, 1) else f", t {start:g} to {end:g}"
    return f"{guidance.method} {guidance.scale:g}{weak}{when}"
