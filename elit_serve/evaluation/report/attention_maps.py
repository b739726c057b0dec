"""What the latents of a picture read, drawn over the picture: a map for each level and step.

Letters: N spatial tokens, G groups, W tokens in a window, L latents kept per group, H x W picture in pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from safetensors.torch import save
from torch import Tensor

from elit_serve.engine.conditions import Condition
from elit_serve.engine.executor import offline
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.pipeline import FinishedPicture, Pipeline
from elit_serve.errors import ElitError, InvalidInput
from elit_serve.evaluation.report.attention import read_probabilities
from elit_serve.evaluation.report.sheets import evenly
from elit_serve.files.writing import check_folder
from elit_serve.nn import Backbone
from elit_serve.nn.backbones.transformer import TransformerSpec
from elit_serve.nn.interface import unpatchify
from elit_serve.pictures import labelled
from elit_serve.plans.levels import check_level
from elit_serve.plans.plan import Plan

SHOWN_STEPS = 5
HALVINGS = 5  # levels J, J/2, ... J/16
SHOWN_LATENTS = 8
MIN_SIDE_PX = 192  # smaller pictures are enlarged by a whole factor, or a patch could not be seen

MOST_SHOWN = 4.0  # reads of 4 times the uniform share, or a quarter of it, and beyond get the full colour
STRONGEST = 0.85  # how much of the picture the full colour hides
MORE, LESS = np.array([255.0, 96.0, 0.0]), np.array([0.0, 60.0, 255.0])  # orange and blue, which all eyes tell apart
LEGEND_PX, LEGEND_BAR_PX = 44, 240
PADDING = (128, 128, 128)  # what the zeros of pixels in -1..1 look like
GROUP_LINE = (255, 255, 255, 110)


@dataclass(frozen=True, kw_only=True)
class ReadMap:
    """What every latent read at one step, counted from 0, at time t.

    probabilities: [G, L, W] averaged over heads, float32 on the CPU; each row sums to 1.
    """

    level: int
    step: int
    t: float
    probabilities: Tensor

    @property
    def name(self) -> str:
        return f"level-{self.level:02d}-step-{self.step + 1:03d}"

    def relative(self, latent: int | None = None) -> Tensor:
        """How often each token is read, 1 being uniform over its group: by all latents on average, or by one. -> [N]"""
        read = self.probabilities.mean(dim=1) if latent is None else self.probabilities[:, latent]  # [G, W]
        return (read * read.shape[1]).flatten()

    @property
    def effective_tokens(self) -> float:
        """Tokens that a latent reads, from 1 to W: exp of the entropy of its row, averaged over latents."""
        entropy = torch.special.entr(self.probabilities).sum(dim=-1)  # [G, L]
        return float(entropy.exp().mean())


@dataclass(frozen=True, kw_only=True)
class ReadRecord:
    """A picture made at one level, and what was read on the way."""

    picture: FinishedPicture
    maps: tuple[ReadMap, ...]


def record_reads(pipeline: Pipeline, condition: Condition, seed: int, plan: Plan, steps: Sequence[int]) -> ReadRecord:
    """Makes a picture and records what its main pass reads at each of `steps`, counted from 0.

    Each recorded step costs one more pass of the model; the picture is the one that is made without recording.
    """
    (model, _), maps = _elastic(pipeline), []
    executor = Executor(pipeline, num_slots=1)
    pictures = pipeline.pictures([condition], [seed], plan)

    def record(step: int) -> None:
        if step in steps:
            level, t = plan.levels[step], plan.times[step]
            x = executor.samples(pictures)
            told = executor.conditions_of(pictures)
            read = read_probabilities(model, x, torch.full((1,), t, device=x.device), told, level)  # [1, G, H, L, W]
            maps.append(ReadMap(level=level, step=step, t=t, probabilities=read[0].mean(dim=1).float().cpu()))

    offline.run(executor, pictures, plan, before_step=record)
    (pixels,) = executor.collect(pictures).result()  # [H, W, 3]
    if isinstance(pixels, ElitError):
        raise pixels
    return ReadRecord(picture=pipeline.finished(pixels, condition, seed, plan), maps=tuple(maps))


def write_attention(
    pipeline: Pipeline, plan: Plan, *, condition: Condition, seed: int, levels: Sequence[int], folder: Path
) -> list[ReadRecord]:
    """Records one picture at each of `levels` and writes everything into `folder`, which is made if need be.

    `reads.png`: a row for each level, a column for each of a few steps. `first-latent.png`: the same for the one
    latent that every level keeps. `latents.png`: the first latents of the highest level, one by one. Beside these a
    picture for each level and step, `maps.safetensors` with the probabilities [G, L, W] of each, and `attention.json`.
    """
    _, spec = _elastic(pipeline)
    for level in levels:
        check_level(level, pipeline.config.levels)
    check_folder(folder, field="attention")
    steps = evenly(plan.num_steps, SHOWN_STEPS)
    records = [record_reads(pipeline, condition, seed, plan.at_level(level), steps) for level in levels]
    _reads_sheet(records, spec).save(folder / "reads.png")
    _reads_sheet(records, spec, latent=0).save(folder / "first-latent.png")
    _latents_sheet(max(records, key=lambda record: record.maps[0].level), spec).save(folder / "latents.png")
    for record in records:
        for read in record.maps:
            overlay(record.picture.image, read.relative(), spec).save(folder / f"{read.name}.png")
    maps = [read for record in records for read in record.maps]
    (folder / "maps.safetensors").write_bytes(save({read.name: read.probabilities.contiguous() for read in maps}))
    (folder / "attention.json").write_text(json.dumps(_facts(records), indent=2) + "\n", encoding="utf-8")
    return records


def halved_levels(levels: Sequence[int]) -> list[int]:
    """The highest of the trained levels, half of it, and so on while these are trained, the highest first."""
    halves = [max(levels) >> power for power in range(HALVINGS)]
    return [level for level in halves if level in levels]


def overlay(picture: Image.Image, relative: Tensor, spec: TransformerSpec) -> Image.Image:
    """The picture in grey, orange where tokens are read more than uniformly and blue where less.

    relative: [N], 1 being uniform, which leaves the picture as it is; the colour grows with the logarithm. Tokens of
    the model's padding are drawn around the picture.
    Small pictures are enlarged by a whole factor; thin lines part the groups.
    """
    rows, columns = spec.token_grid(spec.height, spec.width)
    window = spec.window
    grid = unpatchify(relative.view(1, -1, 1), patch=1, window=window, height=rows, width=columns)[0, 0]  # [rows, cols]
    grey = ImageOps.grayscale(_enlarged(picture, spec))
    size = grey.size
    strength = Image.fromarray(_strength(grid).numpy()).resize(size, Image.Resampling.NEAREST)
    drawn = Image.fromarray(_tinted(np.asarray(grey, dtype=np.float64), np.asarray(strength, dtype=np.float64)))
    lines = ImageDraw.Draw(drawn, "RGBA")
    for row in range(window[0], rows, window[0]):
        lines.line([(0, row * size[1] // rows), (size[0], row * size[1] // rows)], fill=GROUP_LINE)
    for column in range(window[1], columns, window[1]):
        lines.line([(column * size[0] // columns, 0), (column * size[0] // columns, size[1])], fill=GROUP_LINE)
    return drawn


def _strength(relative: Tensor) -> Tensor:
    """log relative, scaled so that -1 and 1 are the limits of what is shown."""
    return (relative.float().clamp_min(1e-9).log2() / math.log2(MOST_SHOWN)).clamp(-1, 1)


def _tinted(grey: np.ndarray[Any, Any], strength: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """grey [H, W] in 0..255 under colour of strength [H, W] in -1..1. -> uint8 [H, W, 3]"""
    alpha = STRONGEST * np.abs(strength)[..., None]
    colour = np.where(strength[..., None] > 0, MORE, LESS)
    tinted: np.ndarray[Any, Any] = (1 - alpha) * grey[..., None] + alpha * colour
    return tinted.round().astype(np.uint8)


def _reads_sheet(records: Sequence[ReadRecord], spec: TransformerSpec, latent: int | None = None) -> Image.Image:
    """A row for each level: the picture, then what was read at each step, by all latents or by one."""
    rows = [
        [
            _enlarged(record.picture.image, spec),
            *(overlay(record.picture.image, m.relative(latent), spec) for m in record.maps),
        ]
        for record in records
    ]
    who = "all latents kept, on average" if latent is None else f"latent {latent + 1} of every group"
    return _with_legend(
        labelled(
            rows,
            row_labels=[f"level {record.maps[0].level}" for record in records],
            column_labels=["picture", *(f"step {m.step + 1}, t = {m.t:.2f}" for m in records[0].maps)],
        ),
        f"What is read by {who}",
    )


def _latents_sheet(record: ReadRecord, spec: TransformerSpec) -> Image.Image:
    """A row for each step, a column for each of the first latents."""
    count = min(SHOWN_LATENTS, record.maps[0].level)
    rows = [[overlay(record.picture.image, m.relative(latent), spec) for latent in range(count)] for m in record.maps]
    return _with_legend(
        labelled(
            rows,
            row_labels=[f"t = {m.t:.2f}" for m in record.maps],
            column_labels=[f"latent {latent + 1}" for latent in range(count)],
        ),
        f"What each of the first latents reads at level {record.maps[0].level}",
    )


def _enlarged(picture: Image.Image, spec: TransformerSpec) -> Image.Image:
    """At least `MIN_SIDE_PX` wide, inside a border where the model computes on padding."""
    border = spec.padding * picture.width // spec.width
    whole = ImageOps.expand(picture, border, fill=PADDING)
    scale = max(1, -(-MIN_SIDE_PX // whole.width))
    return whole.resize((whole.width * scale, whole.height * scale), Image.Resampling.NEAREST)


def _with_legend(sheet: Image.Image, title: str) -> Image.Image:
    """The sheet on top of its title and of the scale of colours."""
    font = ImageFont.load_default(13)
    whole = Image.new("RGB", (sheet.width, sheet.height + LEGEND_PX), "white")
    whole.paste(sheet, (0, 0))
    draw, middle = ImageDraw.Draw(whole), sheet.height + LEGEND_PX // 2
    draw.text((8, middle), title, fill="black", font=font, anchor="lm")
    strength = np.tile(np.linspace(-1, 1, LEGEND_BAR_PX), (14, 1))
    left = int(font.getlength(title)) + 40
    less, more = f"{1 / MOST_SHOWN:g}x", f"{MOST_SHOWN:g}x a uniform share of the group, or more"
    draw.text((left, middle), less, fill="black", font=font, anchor="lm")
    left += int(font.getlength(less)) + 6
    whole.paste(Image.fromarray(_tinted(np.full_like(strength, 200.0), strength)), (left, middle - 7))
    draw.text((left + LEGEND_BAR_PX + 6, middle), more, fill="black", font=font, anchor="lm")
    return whole


def _facts(records: Sequence[ReadRecord]) -> dict[str, Any]:
    """What the files of the folder hold, and how concentrated the reads are."""
    groups, _, window = records[0].maps[0].probabilities.shape
    return {
        "maps": "probabilities [groups, latents, tokens of the group] of Read, averaged over heads; groups row by row",
        "groups": groups,
        "tokens_per_group": window,
        "levels": [
            {
                "level": record.maps[0].level,
                "picture": record.picture.facts,
                "steps": [
                    {
                        "name": read.name,
                        "step": read.step + 1,
                        "t": read.t,
                        "effective_tokens": read.effective_tokens,
                        "most_read": float(read.relative().max()),
                        "least_read": float(read.relative().min()),
                    }
                    for read in record.maps
                ],
            }
            for record in records
        ],
    }


def _elastic(pipeline: Pipeline) -> tuple[Backbone, TransformerSpec]:
    """The model, if it has a Read to look at and makes pictures to draw on, and how its tokens lie."""
    spec = pipeline.spec
    if pipeline.model.latent_reader() is None or not isinstance(spec, TransformerSpec):
        raise InvalidInput(
            "attention", pipeline.config.name, "a model with a latent interface; a plain DiT has no Read"
        )
    if pipeline.is_latent:
        raise InvalidInput(
            "attention", pipeline.config.name, "a model that decodes pictures; this one has no autoencoder"
        )
    return pipeline.model, spec
