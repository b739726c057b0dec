"""`config.json` of a model directory, as pydantic models; nothing here touches a weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from elit_serve.files.guidance import WrittenGuidance
from elit_serve.plans.bounds import (
    MAX_STEPS,
    MAX_TIME_SHIFT,
    MAX_TOKENS,
    MIN_TIME_SHIFT,
)
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.levels import Budgets
from elit_serve.plans.plan import Plan

if TYPE_CHECKING:
    from elit_serve.nn import BackboneSpec

Positions = Literal["rope", "learned"]
WeightDtype = Literal["float32", "bfloat16", "float16"]
WeightFile = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors$", max_length=100)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """Unknown fields are errors; values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Side = Annotated[int, Field(ge=1, le=4096)]


class InterfaceConfig(Strict):
    """`InterfaceSpec` in a file."""

    window: tuple[Side, Side]
    head: int = Field(ge=0, le=512)
    core: int = Field(ge=1, le=512)
    tail: int = Field(ge=0, le=512)


class BackboneShape(Strict):
    """A backbone in a file, without its classes. Without `interface` it is a plain DiT."""

    channels: int = Field(ge=1, le=1024)
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    patch: int = Field(ge=1, le=64)
    dim: int = Field(ge=4, le=16384)
    depth: int = Field(ge=1, le=512)
    num_heads: int = Field(ge=1, le=512)
    interface: InterfaceConfig | None = None
    positions: Positions = "rope"
    padding: int = Field(default=0, ge=0, le=4096)

    @model_validator(mode="after")
    def _is_of_bearable_size(self) -> Self:
        rows, columns = ((size + 2 * self.padding) // self.patch for size in (self.height, self.width))
        if rows * columns > MAX_TOKENS:
            size = f"{self.height} x {self.width} in patches of {self.patch} with padding {self.padding}"
            raise ValueError(f"{size} is {rows * columns} tokens; at most {MAX_TOKENS} are allowed")
        return self


class BackboneConfig(BackboneShape):
    """`BackboneSpec` in a file."""

    kind: Literal["dit"] = "dit"
    num_classes: int = Field(ge=1, le=1_000_000)

    def spec(self) -> BackboneSpec:
        from elit_serve.nn import BackboneSpec, InterfaceSpec

        fields = self.model_dump(exclude={"kind", "interface"})
        interface = InterfaceSpec(**self.interface.model_dump()) if self.interface else None
        return BackboneSpec(**fields, interface=interface)

    @classmethod
    def of(cls, spec: BackboneSpec) -> BackboneConfig:
        fields = {name: getattr(spec, name) for name in cls.model_fields if name not in ("kind", "interface")}
        interface = None
        if spec.interface:
            interface = InterfaceConfig(
                **{name: getattr(spec.interface, name) for name in InterfaceConfig.model_fields}
            )
        return cls(**fields, interface=interface)


class AutoencoderConfig(Strict):
    """What turns a sample into pixels.

    `pixels`: the sample is the picture, in [-1, 1]. `diffusers`: an AutoencoderKL in the folder `autoencoder/` of
    the model directory, in diffusers' format. `none`: there is no way to pixels, and the answer is the sample itself.
    """

    kind: Literal["pixels", "diffusers", "none"] = "pixels"


class SamplingConfig(Strict):
    """The recommended way to sample."""

    steps: int = Field(default=40, ge=1, le=MAX_STEPS)
    time_shift: float = Field(default=1.0, ge=MIN_TIME_SHIFT, le=MAX_TIME_SHIFT)
    guidance: WrittenGuidance = Guidance()

    def plan(self, level: int) -> Plan:
        return Plan(levels=(level,) * self.steps, guidance=self.guidance, time_shift=self.time_shift)


class WeightsConfig(Strict):
    """Which files hold the weights, and what they must contain."""

    dtype: WeightDtype
    files: dict[WeightFile, Sha256] = Field(min_length=1)


class ModelConfig(Strict):
    """Everything a server must know of a model before it reads a weight."""

    format_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    backbone: BackboneConfig
    levels: tuple[int, ...] = Field(min_length=1)
    classes: tuple[str, ...]
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    sampling: SamplingConfig = SamplingConfig()
    provenance: dict[str, Any] = Field(default_factory=dict)
    weights: WeightsConfig

    @model_validator(mode="after")
    def _parts_agree(self) -> ModelConfig:
        problems = []
        largest = self.backbone.spec().latents_per_group
        if sorted(set(self.levels)) != list(self.levels):
            problems.append("levels must rise without repeats")
        if min(self.levels) < 1 or max(self.levels) > largest:
            problems.append(f"levels must lie in 1..{largest}, the latents per group")
        if len(self.classes) != self.backbone.num_classes:
            problems.append(f"{len(self.classes)} classes are named, the backbone has {self.backbone.num_classes}")
        if len(set(self.classes)) != len(self.classes):
            problems.append("class names must differ")
        guidance = self.sampling.guidance
        if guidance.has_weak_level and guidance.weak_level not in self.levels:
            problems.append(f"sampling.guidance.weak_level {guidance.weak_level} is not a trained level")
        if guidance.method == "ag" and guidance.weak_level >= max(self.levels):
            problems.append("autoguidance needs a trained level above sampling.guidance.weak_level")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def spec(self) -> BackboneSpec:
        return self.backbone.spec()

    @property
    def model_hash(self) -> str:
        """Twelve hex digits that change with the weights or with what they are loaded into."""
        return _digest({"backbone": self.backbone.model_dump(exclude_defaults=True), "weights": self.weights.files})

    @property
    def backbone_hash(self) -> str:
        """Twelve hex digits of what a step costs depends on: the backbone's shape, whatever its weights."""
        return _digest(self.backbone.model_dump(exclude={"num_classes"}, exclude_defaults=True))

    @property
    def budgets(self) -> Budgets:
        """Between this model's budgets and its levels."""
        return Budgets(levels=self.levels, latents_per_group=self.spec.latents_per_group)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
