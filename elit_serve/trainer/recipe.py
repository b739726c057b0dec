"""A training recipe: a TOML file, validated whole before anything starts."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from elit_serve.engine.config import AutoencoderConfig, BackboneConfig, InterfaceConfig, SamplingConfig
from elit_serve.errors import InvalidInput, RecipeError
from elit_serve.nn import BackboneSpec

MAX_RECIPE_BYTES = 1 << 20


class Section(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Backbone(Section):
    """The model, without its classes: those come from the data. Without `interface` it is a plain DiT."""

    channels: int
    height: int
    width: int
    patch: int
    dim: int
    depth: int
    num_heads: int
    interface: InterfaceConfig | None = None

    def spec(self, num_classes: int) -> BackboneSpec:
        return BackboneConfig(**self.model_dump(), num_classes=num_classes).spec()


class Data(Section):
    """How photographs become training samples.

    flip: mirror half of them. shift: move each by up to this many pixels, reflecting at the border.
    holdout: fraction kept out of training for the validation loss, unless a validation set is given.
    max_corrupt: fraction of unreadable pictures above which the run stops.
    memory_gb: decoded pictures up to this size are kept in memory; more are streamed by `workers` processes.
    """

    flip: bool = True
    shift: int = Field(default=0, ge=0)
    holdout: float = Field(default=0.02, gt=0, lt=1)
    max_corrupt: float = Field(default=0.01, ge=0, le=1)
    memory_gb: float = Field(default=8.0, ge=0)
    workers: int = Field(default=8, ge=0, le=256)


class Budget(Section):
    """Which levels training visits (paper, section 3.4).

    `uniform` draws J̃ from min_level..max_level once per iteration and keeps that prefix; `fixed` always takes
    `max_level`; `random-drop` draws as `uniform` but keeps random latents instead of the first ones.
    Without `max_level` it is J.
    """

    drawing: Literal["uniform", "fixed", "random-drop"] = "uniform"
    min_level: int = Field(default=1, ge=1)
    max_level: int | None = Field(default=None, ge=1)


class Optimizer(Section):
    """AdamW; `decay_steps` of the last steps lower the learning rate linearly to zero."""

    learning_rate: float = Field(default=1e-4, gt=0)
    warmup_steps: int = Field(default=10_000, ge=0)
    decay_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.9999, ge=0, lt=1)


class Training(Section):
    """The run itself. `batch` is global: over all ranks and accumulated micro-batches."""

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    accumulation: int = Field(default=1, ge=1)
    class_dropout: float = Field(default=0.1, ge=0, le=1)
    time_mean: float = 0.0
    time_std: float = Field(default=1.0, gt=0)
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    compile: bool = True
    seed: int = Field(default=0, ge=0)


class Every(Section):
    """How often, in steps, things happen. `keep` checkpoints stay on disk."""

    log: int = Field(default=100, ge=1)
    validation: int = Field(default=5_000, ge=1)
    samples: int = Field(default=5_000, ge=1)
    checkpoint: int = Field(default=5_000, ge=1)
    keep: int = Field(default=2, ge=1)


class Recipe(Section):
    """Everything that decides a run but the data's place."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    backbone: Backbone
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    data: Data = Data()
    budget: Budget = Budget()
    optimizer: Optimizer = Optimizer()
    training: Training
    every: Every = Every()
    sampling: SamplingConfig = SamplingConfig()
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _parts_agree(self) -> Recipe:
        spec = self.backbone.spec(num_classes=1)
        largest = self.budget.max_level or spec.latents_per_group
        if largest > spec.latents_per_group:
            raise ValueError(f"budget.max_level {largest} exceeds {spec.latents_per_group} latents per group")
        if self.budget.min_level > largest:
            raise ValueError(f"budget.min_level {self.budget.min_level} exceeds the largest level, {largest}")
        if self.training.batch % self.training.accumulation:
            raise ValueError("training.batch must be a multiple of training.accumulation")
        if self.autoencoder.kind == "pixels" and self.backbone.channels != 3:
            raise ValueError("pictures have 3 channels; a model of more needs an autoencoder")
        return self

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that this recipe trains."""
        largest = self.budget.max_level or self.backbone.spec(num_classes=1).latents_per_group
        return (largest,) if self.budget.drawing == "fixed" else tuple(range(self.budget.min_level, largest + 1))


def read_recipe(path: Path) -> Recipe:
    """A recipe from a TOML file; raises `RecipeError` with everything that is wrong."""
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(path, [f"larger than {MAX_RECIPE_BYTES} bytes"])
        with path.open("rb") as file:
            return Recipe.model_validate(tomllib.load(file))
    except OSError as error:
        raise RecipeError(path, [f"it cannot be read: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(path, [f"not TOML: {error}"]) from None
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()]
        raise RecipeError(path, problems) from None
    except InvalidInput as error:
        raise RecipeError(path, [f"backbone.{error}"]) from None
