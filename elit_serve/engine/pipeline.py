"""One model on one device: labels, seeds and plans in, pictures out. Offline generation and tests use it directly."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
from elit_serve.engine.conditions import Condition, open_conditions
from elit_serve.engine.cpu import keep_freed_memory
from elit_serve.engine.executor import offline
from elit_serve.engine.picture import Picture
from elit_serve.engine.pixels import from_signed, to_bytes, to_images
from elit_serve.engine.precision import choose_dtype, precision_name
from elit_serve.engine.random_weights import random_checkpoint
from elit_serve.engine.served_model import ServedModel, quality_size
from elit_serve.engine.sizes import Sizes
from elit_serve.engine.skips import with_skips
from elit_serve.engine.text_encoders import encoder_digest
from elit_serve.errors import GenerationFailed, InvalidInput
from elit_serve.files.config import TextConfig
from elit_serve.nn.quantized import quantize_
from elit_serve.pictures import encode, format_of, write_file
from elit_serve.plans.bounds import MAX_SEED
from elit_serve.plans.formats import OutputFormat
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.shape import Shape
from elit_serve.plans.skips import NO_SKIPS, SkipRule, Skips


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


class Pipeline(ServedModel):
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
        self._autoencoder = open_autoencoder(chosen.config, chosen.folder, device)
        preview = chosen.preview
        self._previewer = self._autoencoder if preview is None else open_autoencoder(GIVEN, preview, device)
        precision, measured = precision_name(dtype, quantize), checkpoint.quality
        can_skip = checkpoint.model.spec.skips_at_any_level
        super().__init__(
            config=checkpoint.config.model_copy(update={"autoencoder": chosen.config}),
            device=device,
            precision=precision,
            quality=None if measured is None else replace(measured, precision=precision, can_skip=can_skip),
            quality_size=quality_size(measured, checkpoint.config, self._autoencoder),
            sizes=Sizes.of(checkpoint.config.shapes, self._autoencoder).only(sizes),
            is_latent=not self._autoencoder.makes_pictures,
        )
        self.path = checkpoint.path
        self.conditions = open_conditions(checkpoint.config, checkpoint.path, device)
        self.dtype = dtype
        self.calibration = checkpoint.calibration
        self.model = checkpoint.model.to(device, dtype)
        if quantize is not None:
            quantize_(self.model)
        self.autoencoder_hash = chosen.cost_hash

    @cached_property
    def encoder_sha256(self) -> str | None:
        """Of the files of its text encoder, which are read for it, once; None of classes."""
        told = self.config.conditions
        return encoder_digest(told.encoder, self.path) if isinstance(told, TextConfig) else None

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
        max_tokens: int | None = None,
    ) -> Pipeline:
        """A preset of the paper with random weights, for measuring speed: without `autoencoder` it answers samples.

        `sizes` are those of its pictures or, without `autoencoder`, its samples; without any there is the one of its
        resolution. `max_tokens` is how many of a prompt are read; None is as many as the preset has places for.

        Every tensor is drawn, also those that training starts at zero, so that no part of the model is idle.
        """
        target = choose_device(device)
        chosen = choose_dtype(target, dtype, quantize)
        factor = 1 if autoencoder is None else read_folder(autoencoder, "autoencoder").factor
        checkpoint = random_checkpoint(
            preset_name, resolution, device=target, seed=seed, sizes=sizes, factor=factor, max_tokens=max_tokens
        )
        autoencoders = choose_autoencoders(checkpoint.config, checkpoint.path, autoencoder, preview_autoencoder)
        return cls(checkpoint, device=target, dtype=chosen, quantize=quantize, autoencoders=autoencoders, sizes=sizes)

    def plan(
        self,
        *,
        budget: float | None = None,
        levels: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        skips: Skips | SkipRule = NO_SKIPS,
        size: str | None = None,
    ) -> Plan:
        """As `ServedModel.plan`; `skips` may also be a rule for the steps that skip something."""
        said = skips if isinstance(skips, Skips) else NO_SKIPS
        plan = super().plan(
            budget=budget, levels=levels, strides=strides, steps=steps, guidance=guidance, skips=said, size=size
        )
        return with_skips(self, plan, skips) if isinstance(skips, SkipRule) else plan

    def generate(
        self,
        label: str | int | None = None,
        *,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        budget: float | None = None,
        seed: int = 0,
        levels: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        skips: Skips | SkipRule = NO_SKIPS,
        size: str | None = None,
    ) -> FinishedPicture:
        """One picture of what `label` names or `prompt` says, of the model's first size or this one, as "640x384".

        >>> load("models/garden64").generate("tulip", budget=0.25, seed=7).save("tulip.png")  # doctest: +SKIP
        """
        plan = self.plan(budget=budget, levels=levels, steps=steps, guidance=guidance, skips=skips, size=size)
        condition = self._condition(label, prompt, negative_prompt)
        plan.guidance.check_negative(negative_prompt)
        return self.run([condition], [seed], plan, size=size)[0]

    def _condition(self, label: str | int | None, prompt: str | None, negative_prompt: str | None) -> Condition:
        if label is not None and prompt is not None:
            raise InvalidInput("prompt", prompt, "a label is given; leave one of them out")
        if label is not None:
            return self.conditions.named(label)
        if prompt is None:
            raise self.conditions.nothing_said()
        return self.conditions.prompted(prompt, negative_prompt)

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
        """For a GPU in pinned memory, where copying does not wait."""
        noise = super().noise(seeds, shape)
        return noise.pin_memory() if self.device.type == "cuda" else noise

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
    def picture_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures that it makes where nobody says another size."""
        return self._autoencoder.picture_size(self.sizes.default.size)

    def finished(self, pixels: Tensor, condition: Condition, seed: int, plan: Plan) -> FinishedPicture:
        """One decoded picture, uint8 [H, W, 3] on the CPU, with its facts."""
        facts = self.facts(condition, seed, plan, self.sizes.default.name)
        return FinishedPicture(image=Image.fromarray(pixels.numpy()), facts=facts)


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
