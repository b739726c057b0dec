"""`evaluation.json`: what a model's pictures are worth at every level, against photographs, and how it was found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elit_serve.errors import CheckpointError, DataError, InvalidInput
from elit_serve.files.opening import read_file
from elit_serve.files.validation import problems_in
from elit_serve.files.writing import write_whole
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.plan import Plan

EVALUATION = "evaluation.json"
MAX_FILE_BYTES = 16 << 20


class Lenient(BaseModel):
    """Fields that nobody here knows may be there: a later version may have written them."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=())


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A set of pictures against the reference photographs.

    frechet: the distance that levels are compared by. kernel: like it, without its bias at few samples.
    precision, recall: samples among the photographs, and photographs among the samples; 0 to 1.
    inception_score: None where features bring no logits.
    nearest_ratio: median distance to the nearest reference photograph, over that of held-out photographs.
    """

    frechet: Estimate
    kernel: Estimate
    precision: Estimate
    recall: Estimate
    inception_score: Estimate | None = None
    nearest_ratio: Estimate


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Pictures that show what their prompts say, 0 to 1; chance: what they score beside prompts of each other."""

    share: Estimate
    chance: float


class EvaluatedPlan(Lenient):
    """A plan and the mean figures of its pictures over `repeats` sets, each of `num_samples` with seeds of its own.

    level, budget: means over its steps. frechets: the Fréchet distance of each set; the others are as in `Scores`.
    images_per_second: of sampling alone; saturated_images_per_second: of an engine that never waits, by the latency
    file of the device; share_of_saturated: one over the other. None without such a file.
    following: by the part of a caption, how many pictures show its word, of the first set, and by "class" how many are
        nearest to a photograph of it; None where prompts are no captions of the grammar.
    """

    level: float
    budget: float
    frechet_over_floor: float
    plan: Plan
    num_samples: int
    repeats: int
    frechet: Estimate
    kernel: Estimate
    precision: Estimate
    recall: Estimate
    inception_score: Estimate | None = None
    nearest_ratio: float
    nearest_half_width: float
    images_per_second: float
    frechets: tuple[float, ...]
    saturated_images_per_second: float | None = None
    share_of_saturated: float | None = None
    following: dict[str, Agreement] | None = None

    @property
    def scores(self) -> Scores:
        return Scores(
            frechet=self.frechet,
            kernel=self.kernel,
            precision=self.precision,
            recall=self.recall,
            inception_score=self.inception_score,
            nearest_ratio=Estimate(value=self.nearest_ratio, half_width=self.nearest_half_width),
        )


class PictureSize(Lenient):
    """In pixels."""

    height: int
    width: int


class Evaluation(Lenient):
    """The whole file.

    metric: what the Fréchet distance is called, as MobileNetV2-FD; features_sha256 is of what computes its features.
    num_samples: pictures in a set. num_reference: photographs that they are measured against.
    held_out: where the photographs behind the floor come from. class_distribution: samples of each class, by name;
        empty where they have the captions of the held-out photographs.
    sampler, seeds, autoencoder, picture, intervals: how pictures and figures were made.
    floor: what held-out photographs score, as many as there are samples.
    floor_class: how many of these are nearest to a photograph of their own class; None as `following` is.
    provenance: command, date, device, versions.
    """

    format_version: Literal[2] = 2
    model: str
    model_hash: str
    metric: str
    features_sha256: str
    num_samples: int
    num_reference: int
    held_out: str
    class_distribution: dict[str, int]
    sampler: str
    seeds: str
    autoencoder: str
    picture: PictureSize
    intervals: str
    floor: Scores
    floor_class: Agreement | None = None
    plans: tuple[EvaluatedPlan, ...] = Field(min_length=1)
    provenance: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Into `evaluation.json` of a folder."""
        text = json.dumps(self.model_dump(mode="json"), indent=2)
        write_whole(folder / EVALUATION, text + "\n")


def read_evaluation(folder: Path) -> Evaluation | None:
    """The `evaluation.json` of a folder, or None. Raises `CheckpointError` that lists all that is wrong with it."""
    file = folder / EVALUATION
    try:
        return Evaluation.model_validate_json(read_file(file, MAX_FILE_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        raise CheckpointError(file, problems_in(error)) from None
    except InvalidInput as error:  # of a plan that cannot be
        raise CheckpointError(file, [str(error)]) from None
