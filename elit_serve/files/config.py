"""`config.json` of a model directory, as pydantic models; nothing here touches a weight."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, model_validator
from pydantic_core import from_json

from elit_serve.errors import InvalidInput
from elit_serve.files.guidance import WrittenGuidance
from elit_serve.files.measured import ShapeName
from elit_serve.files.time_shift import WrittenShift
from elit_serve.files.validation import FieldProblem, as_validation_error
from elit_serve.files.version_1 import FIRST_KINDS, MISSING, UNWRITTEN, upgraded
from elit_serve.plans.bounds import (
    MAX_LEVEL,
    MAX_PROMPT,
    MAX_STEPS,
    MAX_TEXT_DIM,
    MAX_TEXT_TOKENS,
)
from elit_serve.plans.grid import Shift
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.levels import Budgets
from elit_serve.plans.plan import Plan
from elit_serve.plans.shape import Shape

BackboneCheck = Callable[[str, Mapping[str, Any]], Sequence[FieldProblem]]  # of a kind and its fields
WeightDtype = Literal["float32", "bfloat16", "float16"]
WeightFile = Annotated[
    str, Field(pattern=r"^(transformer/)?[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors$", max_length=100)
]  # beside config.json, or in the folder in which diffusers keeps a transformer
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=4096)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAX_NAME = 100  # characters


def check_name(folder: Path) -> None:
    """A model is called as the folder that it is written to. Raises `InvalidInput` for `destination`."""
    if len(folder.name) > MAX_NAME or not re.match(MODEL_NAME, folder.name):
        allowed = (
            f"its last part names the model: at most {MAX_NAME} letters, digits and . _ -, a letter or digit first"
        )
        raise InvalidInput("destination", str(folder), allowed)


class Strict(BaseModel):
    """Unknown fields are errors; values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneConfig(BaseModel):
    """A backbone in a file: its kind, and the fields of that kind's spec, which only the table in `nn.backbones` knows.

    Whoever reads a file to build the model gives a `BackboneCheck` as the context's "check_backbone", so that what is
    wrong with these fields is told with all else.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)

    @property
    def fields(self) -> dict[str, Any]:
        """All but the kind."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _is_possible(self, info: ValidationInfo) -> Self:
        check: BackboneCheck | None = (info.context or {}).get("check_backbone")
        if check is not None and (problems := check(self.kind, self.fields)):
            raise as_validation_error("backbone", problems)
        return self


class ClassesConfig(Strict):
    """Pictures are of one of some classes, by name; a class is its place among them."""

    costless: ClassVar[tuple[str, ...]] = ("num_classes",)  # of `backbone_fields`, what changes no step's cost

    kind: Literal["class"] = "class"
    names: tuple[str, ...] = Field(min_length=1, max_length=1_000_000)

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len(set(self.names)) != len(self.names):
            raise ValueError("class names must differ")
        return self

    @property
    def backbone_fields(self) -> dict[str, Any]:
        """What a backbone's spec must know of them."""
        return {"num_classes": len(self.names)}

    def misfits(self, backbone: Mapping[str, Any]) -> list[str]:
        """Why a backbone of these fields is not for them."""
        known, count = backbone.get("num_classes"), len(self.names)
        return [] if known == count else [f"{count} classes are named, the backbone has {known}"]


class TextEncoderConfig(BaseModel):
    """What makes tensors of prompts: its kind, and that kind's own fields, see `engine.text_encoders`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)

    @property
    def fields(self) -> dict[str, Any]:
        """All but the kind."""
        return dict(self.model_extra or {})


class TextConfig(Strict):
    """Pictures are of what a prompt says.

    dim: the width of an encoded token. max_tokens: how many of a prompt are used; what is beyond them is not read.
    negative: whether a prompt for what should not be seen, or the empty one, stands for no text; else the model has
    learned what does. examples: prompts to show the model and to try it with.
    """

    told_backbones: ClassVar[tuple[str, ...]] = ("text_dim", "max_tokens")  # the names of `backbone_fields`
    costless: ClassVar[tuple[str, ...]] = ()
    names: ClassVar[tuple[str, ...]] = ()  # it has no classes

    kind: Literal["text"] = "text"
    encoder: TextEncoderConfig
    dim: int = Field(ge=1, le=MAX_TEXT_DIM)
    max_tokens: int = Field(ge=1, le=MAX_TEXT_TOKENS)
    negative: bool = False
    examples: tuple[Prompt, ...] = Field(min_length=1, max_length=100)

    @property
    def backbone_fields(self) -> dict[str, Any]:
        """What a backbone's spec must know of them."""
        return {"text_dim": self.dim, "max_tokens": self.max_tokens}

    def misfits(self, backbone: Mapping[str, Any]) -> list[str]:
        """Why a backbone of these fields is not for them."""
        told = {"text_dim": ("dim", self.dim), "max_tokens": ("max_tokens", self.max_tokens)}
        return [
            f"conditions.{name} is {value}, and the backbone's {field} {backbone.get(field)}"
            for field, (name, value) in told.items()
            if backbone.get(field) != value
        ]


def _kind_of_conditions(said: object) -> object:
    """Without a kind they are classes, as files were before there were others."""
    return said.get("kind", "class") if isinstance(said, Mapping) else getattr(said, "kind", None)


ConditionsConfig = Annotated[
    Annotated[ClassesConfig, Tag("class")] | Annotated[TextConfig, Tag("text")],
    Discriminator(
        _kind_of_conditions, custom_error_type="kind", custom_error_message="its kind must be 'class' or 'text'"
    ),
]


class AutoencoderConfig(Strict):
    """What turns a sample into pixels.

    `pixels`: the sample is the picture, in [-1, 1]. `diffusers`: an autoencoder in `folder` of the model directory, in
    diffusers' format, which calls it `vae` where a whole pipeline lies there. `none`: there is no way to pixels, and
    the answer is the sample itself.
    factor: pixels of a picture per side of a sample's element; None is whatever the folder has.
    """

    kind: str = Field(default="pixels", pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)
    factor: int | None = Field(default=None, ge=1, le=256)
    folder: Literal["autoencoder", "vae"] = "autoencoder"


class SamplingConfig(Strict):
    """The recommended way to sample. shape_shifts: of shapes whose time grid has a shift of their own, by name."""

    steps: int = Field(default=40, ge=1, le=MAX_STEPS)
    time_shift: WrittenShift = 1.0
    shape_shifts: dict[ShapeName, WrittenShift] = Field(default_factory=dict)
    guidance: WrittenGuidance = Guidance()

    def shift_of(self, shape: str) -> Shift:
        """Of samples of the shape of this name."""
        return self.shape_shifts.get(shape, self.time_shift)

    def plan(self, level: int) -> Plan:
        return Plan(levels=(level,) * self.steps, guidance=self.guidance, time_shift=self.time_shift)


class WeightsConfig(Strict):
    """Which files hold the weights, and what they must contain."""

    dtype: WeightDtype
    files: dict[WeightFile, Sha256] = Field(min_length=1)


class ModelConfig(Strict):
    """Everything that can be known of a model before a weight is read.

    shapes: the sizes of samples that it serves, channels first, by name; the first is what it does by itself.
    latents_per_group: J, which the budget 1 stands for. levels: those it was trained at.
    """

    format_version: Literal[2] = 2
    name: str = Field(pattern=MODEL_NAME, max_length=MAX_NAME)
    backbone: BackboneConfig
    shapes: dict[ShapeName, tuple[Side, ...]] = Field(min_length=1)
    latents_per_group: int = Field(ge=1, le=MAX_LEVEL)
    levels: tuple[int, ...] = Field(min_length=1)
    conditions: ConditionsConfig
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    sampling: SamplingConfig = SamplingConfig()
    provenance: dict[str, Any] = Field(default_factory=dict)
    weights: WeightsConfig

    @classmethod
    def read(cls, text: bytes, check_backbone: BackboneCheck | None = None) -> ModelConfig:
        """From the text of a `config.json` of this version or an earlier one. Raises pydantic's `ValidationError`."""
        content = cls._json(text)
        return cls.model_validate(upgraded(content), context={"check_backbone": check_backbone})

    @classmethod
    def _json(cls, text: bytes) -> Any:
        try:
            return from_json(text)
        except ValueError as error:
            raise as_validation_error("config.json", [((), None, f"Invalid JSON: {error}")]) from None

    @model_validator(mode="after")
    def _parts_agree(self) -> ModelConfig:
        problems = []
        if sorted(set(self.levels)) != list(self.levels):
            problems.append("levels must rise without repeats")
        if min(self.levels) < 1 or max(self.levels) > self.latents_per_group:
            problems.append(f"levels must lie in 1..{self.latents_per_group}, the latents per group")
        if len(set(self.shapes.values())) < len(self.shapes):
            problems.append("shapes must differ in their sides")
        problems += self.conditions.misfits(self.backbone.fields)
        problems += [
            f"sampling.shape_shifts: {name} is not one of the shapes, {', '.join(self.shapes)}"
            for name in self.sampling.shape_shifts.keys() - self.shapes.keys()
        ]
        guidance = self.sampling.guidance
        if guidance.has_weak_level and guidance.weak_level not in self.levels:
            problems.append(f"sampling.guidance.weak_level {guidance.weak_level} is not a trained level")
        if guidance.method == "ag" and guidance.weak_level >= max(self.levels):
            problems.append("autoguidance needs a trained level above sampling.guidance.weak_level")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes; none where pictures are of prompts."""
        return self.conditions.names

    @property
    def default_shape(self) -> Shape:
        """The first of its shapes, which is what it does where nobody says another."""
        name = next(iter(self.shapes))
        return Shape(name, self.shapes[name])

    @property
    def shifts(self) -> dict[str, Shift]:
        """Of the time grid, by the name of the shape."""
        return {shape: self.sampling.shift_of(shape) for shape in self.shapes}

    def sampled_at(self, shape: str) -> ModelConfig:
        """With the shift of this shape where nobody names one."""
        if not self.sampling.shape_shifts:
            return self
        shifts = self.shifts
        sampling = self.sampling.model_copy(update={"time_shift": shifts[shape], "shape_shifts": shifts})
        return self.model_copy(update={"sampling": sampling})

    @property
    def budgets(self) -> Budgets:
        """Between this model's budgets and its levels."""
        return Budgets(levels=self.levels, latents_per_group=self.latents_per_group)

    @property
    def model_hash(self) -> str:
        """Twelve hex digits that change with the weights or with what they are loaded into."""
        return _digest({"backbone": hashed_backbone(self.backbone), "weights": self.weights.files})

    @property
    def backbone_hash(self) -> str:
        """Twelve hex digits of what a step costs depends on: the backbone's fields, whatever its weights."""
        fields = hashed_backbone(self.backbone)
        return _digest({name: value for name, value in fields.items() if name not in self.conditions.costless})


def hashed_backbone(backbone: BackboneConfig) -> dict[str, Any]:
    """A backbone as hashes have it: as version 1 did, so that they stay as they were.

    It wrote no kind, as there were two that their fields tell apart, and no default.
    """
    kind = {} if backbone.kind in FIRST_KINDS else {"kind": backbone.kind}
    return kind | {name: value for name, value in backbone.fields.items() if UNWRITTEN.get(name, MISSING) != value}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
