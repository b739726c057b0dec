"""What the latents of a picture read, drawn over the picture: a map for each level and step, and figures of them.

Pictures show the latents that run through the core, which are what a level pays for. Where the model's Read makes all
latents at every level (reach `all`), the others are in the file of probabilities and in the figures.

Letters: N spatial tokens, G groups, W tokens in a window, R latents that Read makes of a group, L level: the first L
of them run through the core; H x W picture in pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich import box
from rich.table import Table
from safetensors.torch import save
from torch import Tensor

from elit_serve.engine.conditions import Condition
from elit_serve.engine.executor import offline
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.pipeline import FinishedPicture, Pipeline
from elit_serve.errors import ElitError, InvalidInput
from elit_serve.evaluation.report.attention import zero_tokens
from elit_serve.evaluation.report.sheets import evenly
from elit_serve.files.writing import check_folder, write_whole
from elit_serve.nn import Backbone
from elit_serve.nn.backbones.transformer import TransformerSpec
from elit_serve.nn.interface import unpatchify, without_zeros_between
from elit_serve.nn.latents import LatentFigures, LatentPass, watch_latents
from elit_serve.pictures import labelled, write_sheet
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
GROUP_LINE = (255, 255, 255, 110)


@dataclass(frozen=True, kw_only=True)
class ReadMap:
    """What every latent read at one step, counted from 0, at time t, and what all latents did there.

    probabilities: [G, R, W] averaged over heads, float32 on the CPU; each row sums to 1, those of the core first.
    """

    level: int
    step: int
    t: float
    probabilities: Tensor
    figures: LatentFigures

    @property
    def name(self) -> str:
        return f"level-{self.level:02d}-step-{self.step + 1:03d}"

    def relative(self, latent: int | None = None) -> Tensor:
        """How often each token is read, 1 being uniform over its group: by one latent, or by those that run through
        the core on average. -> [N]"""
        in_core = self.probabilities[:, : self.level]
        read = in_core.mean(dim=1) if latent is None else in_core[:, latent]  # [G, W]
        return (read * read.shape[1]).flatten()

    def share_on(self, tokens: Tensor) -> float:
        """How much of what the latents of the core read is of the tokens marked in a mask [N]: 0 to 1, on average."""
        relative = self.relative()
        return float(relative[tokens].sum()) / len(relative)


@dataclass(frozen=True, kw_only=True)
class ReadRecord:
    """A picture made at one level, and what was read on the way."""

    level: int
    picture: FinishedPicture
    maps: tuple[ReadMap, ...]


def record_reads(pipeline: Pipeline, condition: Condition, seed: int, plan: Plan, steps: Sequence[int]) -> ReadRecord:
    """Makes a picture and records what its main pass reads at each of `steps`, counted from 0.

    Each recorded step costs one more pass of the model; the picture is the one that is made without recording.
    """
    (model, _), passes = _elastic(pipeline), dict[int, LatentPass]()
    executor = Executor(pipeline, num_slots=1, keeps=bool(plan.skips))
    pictures = pipeline.pictures([condition], [seed], plan)

    def record(step: int) -> None:
        if step in steps:
            x = executor.samples(pictures)
            t = torch.full((1,), plan.times[step], device=x.device)
            passes[step] = watch_latents(model, x, t, executor.conditions_of(pictures), plan.levels[step])

    offline.run(executor, pictures, plan, before_step=record)
    (pixels,) = executor.collect(pictures).result()  # [H, W, 3]
    if isinstance(pixels, ElitError):
        raise pixels
    return ReadRecord(
        level=plan.levels[0],
        picture=pipeline.finished(pixels, condition, seed, plan),
        maps=tuple(_read_map(seen, step, plan) for step, seen in passes.items()),
    )


def _read_map(seen: LatentPass, step: int, plan: Plan) -> ReadMap:
    return ReadMap(
        level=plan.levels[step],
        step=step,
        t=plan.times[step],
        probabilities=seen.reads[0].cpu(),
        figures=seen.figures(),
    )


def write_attention(
    pipeline: Pipeline, plan: Plan, *, condition: Condition, seed: int, levels: Sequence[int], folder: Path
) -> list[ReadRecord]:
    """Records one picture at each of `levels` and writes everything into `folder`, which is made if need be.

    `reads.png`: a row for each level, a column for each of a few steps. `first-latent.png`: the same for the one
    latent that every level keeps. `latents.png`: the first latents of the highest level, one by one. Beside these a
    picture for each level and step, `maps.safetensors` with the probabilities [G, R, W] of each, and `attention.json`
    with the figures of each.
    """
    _, spec = _elastic(pipeline)
    for level in levels:
        check_level(level, pipeline.config.levels)
    check_folder(folder, field="attention")
    steps = evenly(plan.num_steps, SHOWN_STEPS)
    records = [record_reads(pipeline, condition, seed, plan.at_level(level), steps) for level in levels]
    write_sheet(folder / "reads.png", _reads_sheet(records, spec), field="attention")
    write_sheet(folder / "first-latent.png", _reads_sheet(records, spec, latent=0), field="attention")
    highest = max(records, key=lambda record: record.level)
    write_sheet(folder / "latents.png", _latents_sheet(highest, spec), field="attention")
    for record in records:
        for read in record.maps:
            drawn = overlay(record.picture.image, read.relative(), spec)
            write_sheet(folder / f"{read.name}.png", drawn, field="attention")
    maps = [read for record in records for read in record.maps]
    tensors = save({read.name: read.probabilities.contiguous() for read in maps})
    write_whole(folder / "maps.safetensors", tensors, field="attention")
    write_whole(folder / "attention.json", json.dumps(_facts(records, spec), indent=2) + "\n", field="attention")
    return records


def figures_table(records: Sequence[ReadRecord]) -> Table:
    """A row for each level: the figures of its latents, averaged over the steps that were looked at."""
    caption = f"means of {len(records[0].maps)} steps; each is in attention.json"
    table = Table(title="What the latents do", caption=caption, box=box.SIMPLE_HEAD)
    table.add_column("level", justify="right")
    names = [field.name for field in fields(LatentFigures)]
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for record in records:
        shown = [read.figures.present() for read in record.maps]
        means = [f"{fmean(each[name] for each in shown):.2f}" if name in shown[0] else "-" for name in names]
        table.add_row(str(record.level), *means)
    return table


def halved_levels(levels: Sequence[int]) -> list[int]:
    """The highest of the trained levels, half of it, and so on while these are trained, the highest first."""
    halves = [max(levels) >> power for power in range(HALVINGS)]
    return [level for level in halves if level in levels]


def overlay(picture: Image.Image, relative: Tensor, spec: TransformerSpec) -> Image.Image:
    """The picture in grey, orange where tokens are read more than uniformly and blue where less.

    relative: [N], 1 being uniform, which leaves the picture as it is; the colour grows with the logarithm. Zeros that
    the model puts between patches have no pixels, so what is read of them is not drawn.
    Small pictures are enlarged by a whole factor; thin lines part the groups.
    """
    grid = _grid_of_patches(relative, spec)
    grey = ImageOps.grayscale(_enlarged(picture))
    size = grey.size
    strength = Image.fromarray(_strength(grid).numpy()).resize(size, Image.Resampling.NEAREST)
    drawn = Image.fromarray(_tinted(np.asarray(grey, dtype=np.float64), np.asarray(strength, dtype=np.float64)))
    lines = ImageDraw.Draw(drawn, "RGBA")
    rows, columns = grid.shape
    for row in _first_patches(rows, spec.window[0], spec):
        lines.line([(0, row * size[1] // rows), (size[0], row * size[1] // rows)], fill=GROUP_LINE)
    for column in _first_patches(columns, spec.window[1], spec):
        lines.line([(column * size[0] // columns, 0), (column * size[0] // columns, size[1])], fill=GROUP_LINE)
    return drawn


def _grid_of_patches(of_tokens: Tensor, spec: TransformerSpec) -> Tensor:
    """A figure for each token [N] where its patch lies in the sample, zeros between patches left out. -> [H/P, W/P]"""
    rows, columns = spec.token_grid(spec.height, spec.width)
    grid = unpatchify(of_tokens.view(1, -1, 1), patch=1, window=spec.window, height=rows, width=columns)
    return without_zeros_between(grid, patch=1, count=spec.zeros_between)[0, 0]


def _first_patches(patches: int, window: int, spec: TransformerSpec) -> list[int]:
    """The first patch of each group but the first, along a side of so many patches and a window of so many tokens."""
    step = 1 + spec.zeros_between  # from patch to patch, in tokens
    return [-(-token // step) for token in range(window, patches * step, window)]


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
            _enlarged(record.picture.image),
            *(overlay(record.picture.image, m.relative(latent), spec) for m in record.maps),
        ]
        for record in records
    ]
    who = "the latents of the core, on average" if latent is None else f"latent {latent + 1} of every group"
    return _with_legend(
        labelled(
            rows,
            row_labels=[f"level {record.level}" for record in records],
            column_labels=["picture", *(f"step {m.step + 1}, t = {m.t:.2f}" for m in records[0].maps)],
        ),
        f"What is read by {who}",
    )


def _latents_sheet(record: ReadRecord, spec: TransformerSpec) -> Image.Image:
    """A row for each step, a column for each of the first latents."""
    count = min(SHOWN_LATENTS, record.level)
    rows = [[overlay(record.picture.image, m.relative(latent), spec) for latent in range(count)] for m in record.maps]
    return _with_legend(
        labelled(
            rows,
            row_labels=[f"t = {m.t:.2f}" for m in record.maps],
            column_labels=[f"latent {latent + 1}" for latent in range(count)],
        ),
        f"What each of the first latents reads at level {record.level}",
    )


def _enlarged(picture: Image.Image) -> Image.Image:
    """At least `MIN_SIDE_PX` wide."""
    scale = max(1, -(-MIN_SIDE_PX // picture.width))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


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


def _facts(records: Sequence[ReadRecord], spec: TransformerSpec) -> dict[str, Any]:
    """What the files of the folder hold, how concentrated the reads are, and how much of them goes to zeros."""
    groups, _, window = records[0].maps[0].probabilities.shape
    zeros = zero_tokens(spec, spec.height, spec.width)
    return {
        "maps": "probabilities [groups, latents, tokens of the group] of Read, averaged over heads; groups row by row; "
        "of the latents, as many as the level run through the core, the first ones, and pictures show these",
        "groups": groups,
        "tokens_per_group": window,
        "zeros_of_tokens": float(zeros.float().mean()),
        "levels": [
            {
                "level": record.level,
                "picture": record.picture.facts,
                "steps": [
                    {
                        "name": read.name,
                        "step": read.step + 1,
                        "t": read.t,
                        **read.figures.present(),
                        "most_read": float(read.relative().max()),
                        "least_read": float(read.relative().min()),
                        "share_on_zeros": read.share_on(zeros),
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
    if pipeline.model.latent_parts() is None or not isinstance(spec, TransformerSpec):
        raise InvalidInput(
            "attention", pipeline.config.name, "a model with a latent interface; a plain DiT has no Read"
        )
    if pipeline.is_latent:
        raise InvalidInput(
            "attention", pipeline.config.name, "a model that decodes pictures; this one has no autoencoder"
        )
    return pipeline.model, spec
