"""What a served model offers, whoever makes its pictures: names, sizes, plans and what they are worth.

Knows the device only by name and no weights, so that it can be had where neither is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from elit_serve.catalogue import ModelQuality
from elit_serve.engine.autoencoders import PictureSizes
from elit_serve.engine.checkpoint import spec_of
from elit_serve.engine.conditions import Condition, conditions_of
from elit_serve.engine.cost import Cost
from elit_serve.engine.sizes import Sizes
from elit_serve.errors import InvalidInput
from elit_serve.files.config import ModelConfig
from elit_serve.files.time_shift import shift_table
from elit_serve.nn.flops import step_flops
from elit_serve.plans.bounds import MAX_STEPS
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.shape import Shape
from elit_serve.plans.size import Size
from elit_serve.plans.skips import NO_SKIPS, Skips
from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling import initial_noise


class ServedModel:
    """A model as those see it who ask for its pictures. A `Pipeline` is one.

    config: with the autoencoder that is used, and the time shift of the default size. device, precision: on which and
    in which its pictures are made.
    quality: what they are worth in this precision; None is not measured. quality_size: the size of the pictures whose
    quality was measured: where the measurements do not say, that of the model's default. None if nothing was measured.
    sizes: those that are served. is_latent: whether there is no way from a sample to a picture, so that the answer is
    the sample. simulated: the name of the device whose time is taken instead of computing, so that pictures are
    placeholders; None where they are made.
    """

    def __init__(
        self,
        *,
        config: ModelConfig,
        device: torch.device,
        precision: str,
        quality: ModelQuality | None,
        quality_size: str | None,
        sizes: Sizes,
        is_latent: bool,
        simulated: str | None = None,
    ) -> None:
        self.config = config.sampled_at(sizes.default.name)
        self.device = device
        self.precision = precision
        self.quality = quality
        self.quality_size = quality_size
        self.sizes = sizes
        self.is_latent = is_latent
        self.simulated = simulated
        self.model_hash = config.model_hash
        self.budgets = config.budgets
        self.conditions = conditions_of(config)
        self.shapes = tuple(sizes.shapes.values())
        self.spec = spec_of(config).at_size(*sizes.default.size[1:])
        self._guidances: dict[int, Guidance] = {}  # by level, as recommended
        self._step_flops: dict[StepKind, float] = {}

    def offered(self) -> ServedModel:
        """The same without weights, device and what was remembered of it: a value that another process can be told."""
        return ServedModel(
            config=self.config,
            device=self.device,
            precision=self.precision,
            quality=None if self.quality is None else replace(self.quality),
            quality_size=self.quality_size,
            sizes=self.sizes,
            is_latent=self.is_latent,
            simulated=self.simulated,
        )

    @property
    def device_name(self) -> str:
        """As answers name it."""
        return f"simulated {self.simulated}" if self.simulated else str(self.device)

    @property
    def shape_names(self) -> list[str]:
        return [shape.name for shape in self.shapes]

    def shape_named(self, name: str) -> Shape:
        return next(shape for shape in self.shapes if shape.name == name)

    def plan(
        self,
        *,
        budget: float | None = None,
        levels: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        skips: Skips = NO_SKIPS,
        size: str | None = None,
    ) -> Plan:
        """A plan for pictures of a size from what a caller gives; the model's recommended sampling fills the rest.

        `budget` fixes one level for all steps (default: full); `levels` gives one level per step and excludes it. With
        `levels`, `strides` says how many steps of the time grid each is, so that they come to `steps` together.
        Without `guidance` it is what is recommended for the highest of the levels.
        """
        defaults = self.config.sampling
        if levels is not None:
            if budget is not None:
                raise InvalidInput("budget", budget, "levels already say the budget of every step; leave it out")
            covered = len(levels) if strides is None else sum(strides)
            if steps is not None and steps != covered:
                said = f"levels has {covered} entries" if strides is None else f"strides come to {covered}"
                raise InvalidInput("steps", steps, f"{said}; leave steps out or make them equal")
            if len(levels) > MAX_STEPS:
                raise InvalidInput("levels", f"{len(levels)} levels", f"one per step, at most {MAX_STEPS}")
            chosen = tuple(self.budgets.check(level) for level in levels)
        elif strides is not None:
            raise InvalidInput("strides", strides, "only beside levels, one for each")
        else:
            num_steps = defaults.steps if steps is None else steps
            if not 1 <= num_steps <= MAX_STEPS:
                raise InvalidInput("steps", num_steps, f"between 1 and {MAX_STEPS}")
            level = self.budgets.level_of(1.0 if budget is None else budget)
            chosen = (level,) * num_steps
        guidance = guidance or self.recommended_guidance(max(chosen, default=1))
        if guidance.has_weak_level:
            self.budgets.check(guidance.weak_level, field="guidance.weak_level")
        return Plan(
            levels=chosen,
            guidance=guidance,
            time_shift=defaults.shift_of(self.sizes.shape_of(size).name),
            strides=tuple(strides or ()),
            skips=skips,
        )

    def recommended_guidance(self, level: int) -> Guidance:
        """Of pictures whose highest level this is: as measured there, or else the model's recommended sampling."""
        usual = self.config.sampling
        if self.quality is None:
            return usual.guidance
        if level not in self._guidances:  # looking it up takes milliseconds
            self._guidances[level] = self.quality.guidance_at(level, usual)
        return self._guidances[level]

    def guidance(
        self,
        *,
        method: str | None = None,
        scale: float | None = None,
        weak_budget: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> Guidance:
        """Guidance from what a caller gives; the model's recommended sampling fills the rest."""
        fields: dict[str, Any] = {"method": method, "scale": scale, "interval": interval}
        if weak_budget is not None:
            fields["weak_level"] = self.budgets.level_of(weak_budget, field="guidance.weak_budget")
        given = {name: value for name, value in fields.items() if value is not None}
        return replace(self.config.sampling.guidance, **given)

    def noise(self, seeds: Sequence[int], shape: Shape) -> Tensor:
        """Of each seed, [B, *shape] on the host."""
        return initial_noise(seeds, shape.size)

    def step_flops(self, kind: StepKind) -> float:
        """What one step of one picture computes, see `nn.flops`."""
        if kind not in self._step_flops:
            _, *sides = self.shape_named(kind.shape).size
            self._step_flops[kind] = step_flops(self.spec.at_size(*sides), kind)
        return self._step_flops[kind]

    def facts(
        self, condition: Condition, seed: int, plan: Plan, shape: str, flops: float | None = None
    ) -> dict[str, Any]:
        """What makes a picture of the shape of this name again, and how many operations it took: `flops`, or what its
        plan says. What differs from one time to the next is not in it, so that the same picture is the same file."""
        if flops is None:
            flops = sum(map(self.step_flops, plan.step_kinds(shape)))
        guidance = plan.guidance
        return {
            "model": self.config.name,
            "model_hash": self.model_hash,
            **condition.facts(),
            "size": str(self.sizes.size_of(shape)),
            "seed": seed,
            "steps": plan.grid_steps,
            "levels": list(plan.levels),
            "strides": list(plan.strides),
            "time_shift": shift_table(plan.time_shift),
            "guidance": {
                "method": guidance.method,
                "scale": guidance.scale,
                "weak_level": guidance.weak_level,
                "interval": list(guidance.interval),
            },
            "dtype": self.precision,
            **({"skips": asdict(plan.skips)} if plan.skips else {}),
            **({"simulated": self.simulated} if self.simulated else {}),
            "gflops": Cost(flops=flops).gflops,
        }


def quality_size(quality: ModelQuality | None, config: ModelConfig, picture_sizes: PictureSizes) -> str | None:
    """See `ServedModel`."""
    if quality is None:
        return None
    if quality.file.size is not None:
        return quality.file.size
    height, width = picture_sizes.picture_size(config.default_shape.size)
    return str(Size(width, height))
