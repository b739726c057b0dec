"""The two pictures of a model card: budgets by classes, and samples beside their nearest training photographs."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from elit_serve.engine.pipeline import Pipeline
from elit_serve.evaluation.evaluator import Evaluator
from elit_serve.evaluation.nearest import nearest
from elit_serve.photographs import decode
from elit_serve.pictures import fit, grid
from elit_serve.sampling import Plan

TEXT_PX = 13
MIN_CELL_PX = 128  # smaller pictures are enlarged by a whole factor
GAP_PX = 2


def budget_sheet(
    pipeline: Pipeline, plan: Plan, *, levels: Sequence[int], class_ids: Sequence[int], seed: int = 0
) -> Image.Image:
    """A row per level, a column per class; each column has one seed, so it shows one picture at every budget."""
    seeds = [seed + column for column in range(len(class_ids))]
    latents_per_group = pipeline.config.spec.latents_per_group
    chosen = sorted(levels, reverse=True)
    rows = [[picture.image for picture in pipeline.run(class_ids, seeds, plan.at_level(level))] for level in chosen]
    return labelled(
        rows,
        row_labels=[f"{level / latents_per_group:.4g}" for level in chosen],
        column_labels=[pipeline.config.classes[class_id] for class_id in class_ids],
    )


def nearest_sheet(pipeline: Pipeline, plan: Plan, evaluator: Evaluator, *, columns: int = 10) -> Image.Image:
    """Samples above their nearest reference photographs: an even selection, then the closest pairs of all n."""
    reference = evaluator.reference
    found = nearest(evaluator.features(plan, 0), reference.features)
    columns = min(columns, reference.num_samples)
    even = evenly(reference.num_samples, columns)
    closest: list[int] = found.distances.argsort()[:columns].tolist()
    seeds = evaluator.seeds(0)
    rows = []
    for samples in (even, closest):
        classes = [reference.held_out_classes[i] for i in samples]
        images = [picture.image for picture in pipeline.run(classes, [seeds[i] for i in samples], plan)]
        size = images[0].size
        neighbours = [reference.photographs[int(found.indices[i])] for i in samples]
        rows += [images, [fit(decode(photograph), size[1], size[0]) for photograph in neighbours]]
    return labelled(rows, row_labels=["sample", "nearest", "closest", "nearest"], column_labels=[])


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` of the indices 0..count - 1, evenly spaced.

    >>> evenly(10, 4)
    [0, 3, 6, 9]
    """
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)] if wanted > 1 else [0][:wanted]


def labelled(
    rows: Sequence[Sequence[Image.Image]], *, row_labels: Sequence[str], column_labels: Sequence[str]
) -> Image.Image:
    """A grid of pictures of one size on white, with text at the left of each row and above each column."""
    font = ImageFont.load_default(TEXT_PX)
    scale = max(1, MIN_CELL_PX // rows[0][0].width)
    pictures = grid(rows, scale=scale, gap=GAP_PX)
    width, height = (side * scale + GAP_PX for side in rows[0][0].size)
    left = 8 + max(int(font.getlength(text)) for text in row_labels)
    top = TEXT_PX + 8 if column_labels else 0
    sheet = Image.new("RGB", (left + pictures.width, top + pictures.height), "white")
    sheet.paste(pictures, (left, top))
    draw = ImageDraw.Draw(sheet)
    for row, text in enumerate(row_labels):
        draw.text((left - 4, top + row * height + height // 2), text, fill="black", font=font, anchor="rm")
    for column, text in enumerate(column_labels):
        position = (left + column * width + width // 2, top // 2)
        draw.text(position, _shortened(text, width, font), fill="black", font=font, anchor="mm")
    return sheet


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while font.getlength(text) > width and len(text) > 1:
        text = text[:-2] + "…"
    return text
