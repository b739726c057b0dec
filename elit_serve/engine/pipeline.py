"""One model on one device: labels, seeds and plans in, pictures out. Offline generation and tests use it directly."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from elit_serve.catalogue import read_config, resolve_model
from elit_serve.engine.autoencoders import (
    GIVEN,
    Autoencoder,
    AutoencoderChoice,
    choose_autoencoders,
    open_autoencoder,
)
from elit_serve.engine.autoencoders.folder import read_folder
from elit_serve.engine.checkpoint import Checkpoint, load_checkpoint
from elit_serve.engine.conditions import ClassConditions, Condition
from elit_serve.engine.cost import Cost
from elit_serve.engine.cpu import keep_freed_memory
from elit_serve.engine.executor import offline
from elit_serve.engine.picture import Picture
from elit_serve.engine.pixels import from_signed, to_bytes, to_images
from elit_serve.engine.precision import choose_dtype, precision_name
from elit_serve.engine.random_weights import random_checkpoint
from elit_serve.engine.sizes import Sizes
from elit_serve.engine.skips import with_skips
from elit_serve.errors import GenerationFailed, InvalidInput
from elit_serve.nn.flops import step_flops
from elit_serve.nn.quantized import quantize_
from elit_serve.pictures import encode, format_of, write_file
from elit_serve.plans.bounds import MAX_SEED, MAX_STEPS
from elit_serve.plans.formats import OutputFormat
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.shape import Shape
from elit_serve.plans.size import Size
from elit_serve.plans.skips import NO_SKIPS, SkipRule, Skips
from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling import initial_noise


@dataclass(frozen=True, kw_only=True)
class FinishedPicture:
    """A generated picture and the facts that make it again."""

    image: Image.Image
    facts: dict[str, Any]

    def encode(self, output_format: OutputFormat = "png") -> bytes:
        """The encoded file with the facts inside; the same picture gives the same bytes."""
        return encode(self.image, output_format, self.facts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes .png, .jpg, .jpeg or .webp with the facts inside."""
        save_image(self.image, path, self.facts)


def save_image(image: Image.Image, path: str | os.PathLike[str], facts: Mapping[str, object] | None = None) -> None:
    """Writes .png, .jpg, .jpeg or .webp, with `facts` inside if there are any."""
    try:
        file = encode(image, format_of(path), facts or {})
    except (OSError, ValueError) as error:  # WebP and JPEG have a largest size, which a grid of many levels may exceed
        raise InvalidInput("output", os.fspath(path), f"it cannot be encoded: {error}") from None
    write_file(path, file)


class Pipeline:
    """A loaded checkpoint that turns labels, seeds and plans into pictures."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
        quantize: str | None = None,
        autoencoders: AutoencoderChoice | None = None,
        sizes: Sequence[str] = (),
    ) -> None:
        chosen = autoencoders or choose_autoencoders(checkpoint.config, checkpoint.path)
        self.config = checkpoint.config.model_copy(update={"autoencoder": chosen.config})
        self.budgets = self.config.budgets
        self.model_hash = checkpoint.model_hash
        self.path = checkpoint.path
        self.device = device
        self.dtype = dtype
        self.precision = precision_name(dtype, quantize)
        measured = checkpoint.quality
        can_skip = checkpoint.model.spec.skips_at_any_level
        self.quality = None if measured is None else replace(measured, precision=self.precision, can_skip=can_skip)
        self.calibration = checkpoint.calibration
        self._guidances: dict[int, Guidance] = {}  # by level, as recommended
        self._step_flops: dict[StepKind, float] = {}
        self.model = checkpoint.model.to(device, dtype)
        if quantize is not None:
            quantize_(self.model)
        self.autoencoder_hash = chosen.cost_hash
        self._autoencoder = open_autoencoder(chosen.config, chosen.folder, device)
        preview = chosen.preview
        self._previewer = self._autoencoder if preview is None else open_autoencoder(GIVEN, preview, device)
        self.conditions = ClassConditions(self.config.classes, model=self.config.name)
        self.sizes = Sizes.of(self.config.shapes, self._autoencoder).only(sizes)
        self.shapes = tuple(self.sizes.shapes.values())
        self.spec = self.model.spec.at_size(*self.sizes.default.size[1:])

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        threads: int | None = None,
        autoencoder: Path | None = None,
        preview_autoencoder: Path | None = None,
        sizes: Sequence[str] = (),
    ) -> Pipeline:
        """Loads a model directory or a bundled model by name; None is the bundled default.

        Without `device` a GPU is taken if there is one; without `dtype`, bfloat16 on a GPU and float32 on a CPU.
        `quantize` is None or "fp8", for GPUs that have it: the blocks' large matrix products in float8.
        `threads` limits the CPU threads of the whole process. `autoencoder` and `preview_autoencoder` are folders in
        diffusers' format, which come before those of the model; whether they fit is found out before a weight is read.
        `sizes` are those that it makes pictures of, as "640x384", of the model's; the first is the default, and without
        any all are.
        """
        target = choose_device(device)
        chosen = choose_dtype(target, dtype, quantize)
        if target.type == "cpu":
            keep_freed_memory()
        if threads is not None:
            torch.set_num_threads(threads)
        path = resolve_model(model)
        if autoencoder is not None or preview_autoencoder is not None:
            choose_autoencoders(read_config(path), path, autoencoder, preview_autoencoder)
        checkpoint = load_checkpoint(path, dtype=chosen)
        autoencoders = choose_autoencoders(checkpoint.config, path, autoencoder, preview_autoencoder)
        return cls(checkpoint, device=target, dtype=chosen, quantize=quantize, autoencoders=autoencoders, sizes=sizes)

    @classmethod
    def random(
        cls,
        preset_name: str,
        resolution: int,
        *,
        device: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        seed: int = 0,
        autoencoder: Path | None = None,
        preview_autoencoder: Path | None = None,
        sizes: Sequence[str] = (),
    ) -> Pipeline:
        """A preset of the paper with random weights, for measuring speed: without `autoencoder` it answers samples.

        `sizes` are those of its pictures or, without `autoencoder`, its samples; without any there is the one of its
        resolution.


        Every tensor is drawn, also those that training starts at zero, so that no part of the model is idle.
        """
        target = choose_device(device)
        chosen = choose_dtype(target, dtype, quantize)
        factor = 1 if autoencoder is None else read_folder(autoencoder, "autoencoder").factor
        checkpoint = random_checkpoint(preset_name, resolution, device=target, seed=seed, sizes=sizes, factor=factor)
        autoencoders = choose_autoencoders(checkpoint.config, checkpoint.path, autoencoder, preview_autoencoder)
        return cls(checkpoint, device=target, dtype=chosen, quantize=quantize, autoencoders=autoencoders, sizes=sizes)

    @property
    def shape_names(self) -> list[str]:
        return [shape.name for shape in self.shapes]

    def plan(
        self,
        *,
        budget: float | None = None,
        levels: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        skips: Skips | SkipRule = NO_SKIPS,
    ) -> Plan:
        """A plan from what a caller gives; the model's recommended sampling fills the rest.

        `budget` fixes one level for all steps (default: full); `levels` gives one level per step and excludes it. With
        `levels`, `strides` says how many steps of the time grid each is, so that they come to `steps` together.
        Without `guidance` it is what is recommended for the highest of the levels. `skips` are steps, or a rule for
        them.
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
        plan = Plan(levels=chosen, guidance=guidance, time_shift=defaults.time_shift, strides=tuple(strides or ()))
        return with_skips(self, plan, skips) if isinstance(skips, SkipRule) else replace(plan, skips=skips)

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

    def generate(
        self,
        label: str | int,
        *,
        budget: float | None = None,
        seed: int = 0,
        levels: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        skips: Skips | SkipRule = NO_SKIPS,
        size: str | None = None,
    ) -> FinishedPicture:
        """One picture of what `label` names, of the model's first size or this one, as "640x384".

        >>> load("models/garden64").generate("tulip", budget=0.25, seed=7).save("tulip.png")  # doctest: +SKIP
        """
        plan = self.plan(budget=budget, levels=levels, steps=steps, guidance=guidance, skips=skips)
        return self.run([self.conditions.named(label)], [seed], plan, size=size)[0]

    def run(
        self,
        conditions: Sequence[Condition],
        seeds: Sequence[int],
        plan: Plan,
        on_step: Callable[[int], None] | None = None,
        *,
        size: str | None = None,
    ) -> list[FinishedPicture]:
        """A batch of pictures of one size (default: the first) under one plan, one for each condition and seed.

        `on_step` is called after each step with the number of steps done.
        """
        shape = self.sizes.shape_of(size)
        images = to_images(self.sample(conditions, seeds, plan, on_step, size=size))
        facts = [self.facts(of, seed, plan, shape.name) for of, seed in zip(conditions, seeds, strict=True)]
        return [FinishedPicture(image=image, facts=of) for image, of in zip(images, facts, strict=True)]

    @torch.inference_mode()
    def sample(
        self,
        conditions: Sequence[Condition],
        seeds: Sequence[int],
        plan: Plan,
        on_step: Callable[[int], None] | None = None,
        *,
        size: str | None = None,
    ) -> Tensor:
        """Decoded pictures [B, 3, H, W] in [0, 1] on the device, float32."""
        self._check_seeds(seeds)
        shape = self.sizes.shape_of(size)
        samples = offline.samples_of(self, conditions, seeds, plan, shape, after_step=on_step)
        if not bool(torch.isfinite(samples).all()):
            raise GenerationFailed("the model produced NaN or infinite values")
        return from_signed(self._autoencoder.decode(samples))

    def pictures(self, conditions: Sequence[Condition], seeds: Sequence[int], plan: Plan) -> list[Picture]:
        """For an executor: to be made under one plan, one for each condition and seed. Their noise is drawn here."""
        self._check_seeds(seeds)
        shape = self.sizes.default
        return offline.pictures_of(conditions, seeds, plan, shape, self.noise(seeds, shape))

    @staticmethod
    def _check_seeds(seeds: Sequence[int]) -> None:
        for seed in seeds:
            if not 0 <= seed <= MAX_SEED:
                raise InvalidInput("seed", seed, f"between 0 and {MAX_SEED}")

    def noise(self, seeds: Sequence[int], shape: Shape) -> Tensor:
        """Of each seed, [B, *shape] on the host; for a GPU in pinned memory, where copying does not wait."""
        noise = initial_noise(seeds, shape.size)
        return noise.pin_memory() if self.device.type == "cuda" else noise

    def step_flops(self, kind: StepKind) -> float:
        """What one step of one picture computes, see `nn.flops`."""
        if kind not in self._step_flops:
            (shape,) = (shape for shape in self.shapes if shape.name == kind.shape)
            self._step_flops[kind] = step_flops(self.model.spec.at_size(*shape.size[1:]), kind)
        return self._step_flops[kind]

    @torch.inference_mode()
    def decode(self, samples: Tensor) -> Tensor:
        """Samples [B, C, h, w] as they are answered, on the device: pictures as uint8 [B, H, W, 3], or, where there is
        no way to a picture, the samples themselves in float32.
        """
        return self._shown_by(self._autoencoder, samples)

    @torch.inference_mode()
    def preview(self, samples: Tensor) -> Tensor:
        """As `decode`, by the autoencoder for previews where there is one: of the same size, cheaper and less exact."""
        return self._shown_by(self._previewer, samples)

    @staticmethod
    def _shown_by(autoencoder: Autoencoder, samples: Tensor) -> Tensor:
        if not autoencoder.makes_pictures:
            return samples.float()
        return to_bytes(from_signed(autoencoder.decode(samples))).permute(0, 2, 3, 1).contiguous()

    @property
    def is_latent(self) -> bool:
        """Whether there is no way from a sample to a picture, so that the answer is the sample."""
        return not self._autoencoder.makes_pictures

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures that it makes where nobody says another size."""
        return self._autoencoder.picture_size(self.sizes.default.size)

    @property
    def quality_size(self) -> str | None:
        """The size of the pictures whose quality was measured: where the measurements do not say, that of the model's
        default. None if nothing was measured."""
        if self.quality is None:
            return None
        if self.quality.file.size is not None:
            return self.quality.file.size
        height, width = self._autoencoder.picture_size(self.config.default_shape.size)
        return str(Size(width, height))

    def finished(self, pixels: Tensor, condition: Condition, seed: int, plan: Plan) -> FinishedPicture:
        """One decoded picture, uint8 [H, W, 3] on the CPU, with its facts."""
        facts = self.facts(condition, seed, plan, self.sizes.default.name)
        return FinishedPicture(image=Image.fromarray(pixels.numpy()), facts=facts)

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
            "time_shift": plan.time_shift,
            "guidance": {
                "method": guidance.method,
                "scale": guidance.scale,
                "weak_level": guidance.weak_level,
                "interval": list(guidance.interval),
            },
            "dtype": self.precision,
            **({"skips": asdict(plan.skips)} if plan.skips else {}),
            "gflops": Cost(flops=flops).gflops,
        }


def choose_device(device: str | None) -> torch.device:
    """The device of this name, or the best one here for None."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InvalidInput("device", device, "cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise InvalidInput("device", device, "cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InvalidInput("device", device, f"this machine has {torch.cuda.device_count()} CUDA devices")
    return chosen
