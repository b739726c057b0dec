"""Everything random in a training step, drawn from (run seed, step) alone.

Each rank draws for the whole global batch and takes its part, so a run does not depend on the number of ranks
or micro-batches, and a resumed run draws what an unbroken one would. Letters: B samples, C x h x w one sample.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from elit_serve.trainer.recipe import Budget, Data, Training


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any parts, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True, kw_only=True)
class StepDraws:
    """noise [B, C, h, w], t [B], dropped [B] bool (of the condition), flipped [B] bool, shift [B, 2] int in pixels."""

    noise: Tensor
    t: Tensor
    dropped: Tensor
    flipped: Tensor
    shift: Tensor

    def part(self, index: int, count: int) -> StepDraws:
        """The `index`-th of `count` equal parts of the batch."""
        return StepDraws(**{name: value.chunk(count)[index] for name, value in vars(self).items()})


def draw_step(
    step: int, sample_shape: tuple[int, ...], training: Training, data: Data, device: torch.device
) -> StepDraws:
    """The draws of a step for the global batch. t is logit-normal (Esser et al. 2024), shifted or not."""
    generator = torch.Generator(device).manual_seed(seed_of(training.seed, "step", step))
    batch = training.batch

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def uniform() -> Tensor:
        return torch.rand(batch, generator=generator, device=device)

    shift = torch.randint(-data.shift, data.shift + 1, (batch, 2), generator=generator, device=device)
    return StepDraws(
        noise=normal(batch, *sample_shape),
        t=torch.sigmoid(training.mean_of_shifted_times + training.time_std * normal(batch)),
        dropped=uniform() < training.class_dropout,
        flipped=(uniform() < 0.5) & data.flip,
        shift=shift,
    )


def draw_levels(step: int, budget: Budget, levels: tuple[int, ...], training: Training) -> tuple[int, ...]:
    """The level of a step's samples, or those of their two halves, the full one first; the same on every rank.

    Drawn once per iteration (paper, section 3.4).
    """
    full = levels[-1]
    if budget.drawing == "fixed" or step < budget.elastic_from * training.steps:
        return (full,)
    draw = random.Random(seed_of(training.seed, "level", step))
    drawn = draw.choice(levels)
    if draw.random() < abs(2 * budget.full_share - 1):  # all alike; otherwise half of them is full
        return (full,) if budget.full_share > 0.5 else (drawn,)
    return full, drawn


def drawable_levels(budget: Budget, levels: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All that `draw_levels` may give once lower levels have begun, each once."""
    full = levels[-1]
    if budget.drawing == "fixed":
        return [(full,)]
    alone = [(level,) for level in levels] if budget.full_share < 0.5 else [(full,)]
    halves = [(full, level) for level in levels] if budget.full_share > 0 else []
    return [*(alone if budget.full_share != 0.5 else []), *halves]


def draw_permutation(step: int, num_latents: int, seed: int) -> Tensor:
    """The order of the learned latents under random drop: [J] int64."""
    generator = torch.Generator().manual_seed(seed_of(seed, "drop", step))
    return torch.randperm(num_latents, generator=generator)


def augment(images: Tensor, draws: StepDraws) -> Tensor:
    """Moves and mirrors pictures, reflecting at the border: [B, 3, H, W] uint8 -> [B, 3, H, W] in [-1, 1]."""
    rows = _reflected(images.shape[2], draws.shift[:, 0])  # [B, H]
    columns = _reflected(images.shape[3], draws.shift[:, 1])  # [B, W]
    columns = torch.where(draws.flipped.unsqueeze(1), columns.flip(1), columns)
    sample = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    moved = images.permute(0, 2, 3, 1)[sample, rows.unsqueeze(2), columns.unsqueeze(1)]  # [B, H, W, 3]
    return to_unit(moved.permute(0, 3, 1, 2))


def to_unit(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def _reflected(size: int, shift: Tensor) -> Tensor:
    """Indices 0..size-1 moved by shift [B] and reflected into range. -> [B, size]"""
    places = torch.arange(size, device=shift.device) + shift.unsqueeze(1)
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)
