"""Photographs of several aspect ratios are trained at several sizes, each step at one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from elit_serve.engine.autoencoders.pixels import Pixels
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.plans.size import Size
from elit_serve.trainer.buckets import Buckets, SizeOrder, nearest
from elit_serve.trainer.data import Batch, DamageReport, RunOrder
from elit_serve.trainer.export import export
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory
from elit_serve.trainer.sources import open_data

SQUARE, WIDE, TALL = Size(16, 16), Size(24, 16), Size(16, 24)
SIZES = {"sizes": ["24x16", "16x24"], "shift": 0, "holdout": 0.2}
CPU = torch.device("cpu")


def photograph(width: int, height: int, value: int) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), value, dtype=np.uint8))


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 square photographs, 8 wide and 6 tall ones, of which one is only tall as a viewer turns it."""
    folder = tmp_path_factory.mktemp("album") / "daisy"
    folder.mkdir()
    for index in range(10):
        photograph(32, 32, 5 * index).save(folder / f"square-{index}.png")
    for index in range(8):
        photograph(60, 40, 60 + 5 * index).save(folder / f"wide-{index}.png")
    for index in range(5):
        photograph(40, 60, 120 + 5 * index).save(folder / f"tall-{index}.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photograph(60, 40, 200).save(folder / "turned.jpg", exif=exif)
    return folder.parent


@pytest.fixture(scope="module")
def sized(make_recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """The tiny recipe with three sizes."""

    def make(**sections: Any) -> Recipe:
        training = {"steps": 12, "batch": 4, **sections.pop("training", {})}
        every = {"log": 1, "validation": 12, "samples": 12, "checkpoint": 6, **sections.pop("every", {})}
        return make_recipe(data={**SIZES, **sections.pop("data", {})}, training=training, every=every, **sections)

    return make


def buckets_of(recipe: Recipe, album: Path) -> Buckets:
    return open_data(recipe, Pixels(), album, None)[0]


def batches(buckets: Buckets, first_step: int, count: int, **order: Any) -> list[Batch]:
    data = buckets.in_memory(DamageReport(total=len(buckets), max_fraction=0), CPU)
    return list(islice(data.batches(RunOrder(**{"batch": 4, "seed": 1, **order}), first_step), count))


def test_a_photograph_goes_to_the_size_whose_aspect_ratio_is_nearest(sized: Callable[..., Recipe], album: Path) -> None:
    training, held_out = open_data(sized(data={"holdout": 0.2}), Pixels(), album, None)
    found = Counter[str]()
    for buckets in (training, held_out):
        for shape, part in buckets.parts.items():
            found.update(f"{shape.name} {each.name.partition('-')[0]}" for each in part.photographs)
    assert found == {"16x16 square": 10, "16x24 wide": 8, "24x16 tall": 5, "24x16 turned.jpg": 1}


def test_ratios_are_compared_as_ratios() -> None:
    assert nearest((100, 71), [SQUARE, Size(32, 16)]) == [SQUARE]  # 1.41 is just nearer to 1 than to 2
    assert nearest((100, 70), [SQUARE, Size(32, 16)]) == [Size(32, 16)]
    assert nearest((70, 100), [SQUARE, Size(32, 16)]) == [SQUARE]
    assert nearest((50, 50), [SQUARE, WIDE, Size(64, 64)]) == [SQUARE, Size(64, 64)]  # both are trained with it
    assert nearest(None, [SQUARE, WIDE]) == [SQUARE]


def test_a_batch_is_of_one_size_and_tells_its_shape(sized: Callable[..., Recipe], album: Path) -> None:
    drawn = batches(buckets_of(sized(), album), 0, 60)
    shapes = Counter(batch.shape.name for batch in drawn if batch.shape)
    assert set(shapes) == {"16x16", "16x24", "24x16"}
    assert shapes["16x16"] > shapes["24x16"]
    for batch in drawn:
        assert batch.shape is not None
        assert batch.images.shape == (4, *batch.shape.size)


def test_draws_follow_from_seed_and_step_and_ranks_share_them(sized: Callable[..., Recipe], album: Path) -> None:
    buckets = buckets_of(sized(), album)
    unbroken, resumed = batches(buckets, 0, 20), batches(buckets, 13, 7)
    ranks = [batches(buckets, 13, 7, rank=rank, world=2) for rank in range(2)]
    for whole, again, *parts in zip(unbroken[13:], resumed, *ranks, strict=True):
        assert whole.shape == again.shape == parts[0].shape
        assert torch.equal(whole.images, again.images)
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert [batch.shape for batch in batches(buckets, 0, 20, seed=2)] != [batch.shape for batch in unbroken]


def test_every_photograph_comes_once_before_any_comes_again(sized: Callable[..., Recipe], album: Path) -> None:
    buckets = buckets_of(sized(), album)
    seen: dict[str, Counter[int]] = {}
    for batch in batches(buckets, 0, 80):
        assert batch.shape is not None
        seen.setdefault(batch.shape.name, Counter()).update(batch.images.flatten(1).max(1).values.tolist())
    for shape, part in buckets.parts.items():
        counts = seen[shape.name]
        assert len(counts) == len(part)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_steps_are_of_a_size_as_often_as_photographs() -> None:
    order = SizeOrder([(math.inf, [300, 100])], seed=3)
    assert 220 < sum(order.at(step) == 0 for step in range(300)) < 250
    assert order.before(40) == [sum(order.at(step) == index for step in range(40)) for index in range(2)]
    assert SizeOrder([(math.inf, [7])], seed=3).before(10**9) == [10**9]


def test_streamed_batches_are_those_of_memory(sized: Callable[..., Recipe], album: Path) -> None:
    buckets = buckets_of(sized(), album)
    streamed = buckets.streamed(0, pin_memory=False).batches(RunOrder(batch=4, seed=1), 3)
    for ours, theirs in zip(islice(streamed, 6), batches(buckets, 3, 6), strict=True):
        assert ours.shape == theirs.shape
        assert torch.equal(ours.images, theirs.images)


def test_a_run_that_goes_on_ends_as_an_unbroken_one_and_its_model_makes_every_size(
    sized: Callable[..., Recipe], album: Path, train_here: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    unbroken = train_here(sized(), out="unbroken", data=album)
    train_here(sized(training={"steps": 6}), out="broken", data=album)
    resumed = train_here(sized(), out="broken", data=album, resume=True)
    ours, theirs = resumed.load(), unbroken.load()
    assert all(torch.equal(ours.model[name], theirs.model[name]) for name in theirs.model)

    config = export(unbroken.path, tmp_path / "model")
    assert config.shapes == {"16x16": (3, 16, 16), "16x24": (3, 16, 24), "24x16": (3, 24, 16)}
    pipeline = Pipeline.load(tmp_path / "model", device="cpu")
    assert pipeline.sizes.names == ["16x16", "24x16", "16x24"]
    assert pipeline.generate("daisy", size="24x16", steps=2).image.size == (24, 16)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (["20x16"], "data.sizes: 20x16: width: 20 is not allowed; it must be a multiple of 8 .* as 16 and 24"),
        (["wide"], "a size is WIDTHxHEIGHT"),
    ],
)
def test_a_size_that_the_model_cannot_have_is_refused_with_the_recipe(
    sizes: list[str], said: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(ValueError, match=said):
        make_recipe(data={"sizes": sizes})


def test_learned_positions_have_one_size(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(ValueError, match=r"data\.sizes: 24x16: .*positions are learned for \(16, 16\) alone"):
        make_recipe(backbone={"positions": "learned"}, data={"sizes": ["24x16"]})


def test_a_size_without_photographs_is_refused(
    sized: Callable[..., Recipe], photographs: Path, train_here: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=r"data\.sizes: '24x16' is not allowed; .* none is"):
        train_here(sized(), data=photographs)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_repeats_the_few_photographs_of_a_size_too_often_is_refused(
    sized: Callable[..., Recipe], album: Path, train_here: Callable[..., RunDirectory]
) -> None:
    with pytest.raises(InvalidInput, match=r"training\.batch: 256 .* at most \d+, 16 times the \d+ photographs .* at"):
        train_here(sized(training={"batch": 256}), data=album)


def test_pictures_grow_stage_by_stage_and_a_stage_goes_on_where_it_was_left(
    sized: Callable[..., Recipe], album: Path
) -> None:
    growing = [{"sizes": ["8x8"], "steps": 3}, {"sizes": ["8x8", "24x16"], "steps": 20}]
    recipe = sized(data={"sizes": ["8x8", "24x16"], "stages": growing})
    buckets, stages = buckets_of(recipe, album), recipe.stages
    whole = batches(buckets, 0, 26, stages=stages)
    names = [batch.shape.name for batch in whole if batch.shape is not None]
    assert set(names[:3]) == {"8x8"}
    assert set(names[3:23]) == {"8x8", "16x24"}
    assert set(names[23:]) == {"16x16"}
    for first_step in (2, 11, 24):
        rest = batches(buckets, first_step, 26 - first_step, stages=stages)
        for expected, batch in zip(whole[first_step:], rest, strict=True):
            assert batch.shape == expected.shape
            assert torch.equal(batch.images, expected.images)


def test_a_stage_of_a_size_that_the_recipe_does_not_have_is_refused(sized: Callable[..., Recipe]) -> None:
    with pytest.raises(ValueError, match=r"data\.stages: 16x16, 48x48: a stage is of some of data\.sizes"):
        sized(data={"stages": [{"sizes": ["48x48", "24x16", "16x16"], "steps": 3}]})


def test_stages_that_leave_no_size_to_the_steps_behind_them_are_refused(sized: Callable[..., Recipe]) -> None:
    data = {"sizes": ["16x16", "24x16"], "stages": [{"sizes": ["16x16", "24x16"], "steps": 5}]}
    with pytest.raises(ValueError, match=r"data\.stages: they have all sizes and end after 5 of 12 steps"):
        sized(data=data)
    assert sized(data=data, training={"steps": 5}).data.stages[0].steps == 5
