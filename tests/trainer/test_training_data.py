"""From photographs to batches: folder or tar, memory or stream, and what is done about damaged files."""

from __future__ import annotations

import io
import itertools
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from elit_serve.engine.autoencoders.pixels import Pixels
from elit_serve.errors import DataError, InvalidInput
from elit_serve.trainer.data import Batch, DamageReport, MemoryData, PictureSet, RunOrder, SampleOrder, StreamedData
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory
from elit_serve.trainer.sources import open_data

CPU = torch.device("cpu")


def in_memory(pictures: PictureSet, *, max_fraction: float = 0.0, limit: int | None = None) -> MemoryData:
    return MemoryData(pictures, DamageReport(total=len(pictures), max_fraction=max_fraction), CPU, limit=limit)


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def assert_same_batches(ours: list[Batch], theirs: list[Batch]) -> None:
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.equal(mine.images, expected.images)
        assert torch.equal(mine.condition, expected.condition)


@pytest.fixture
def damaged_photographs(make_photographs: Callable[..., Path], tmp_path: Path) -> Path:
    """24 pictures, of which one is no picture, one is cut off and one is empty."""
    folder = make_photographs(tmp_path / "damaged")
    (folder / "rose" / "002.png").write_text("not a picture")
    cut = folder / "tulip" / "005.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (folder / "tulip" / "007.png").write_bytes(b"")  # one of those held out
    return folder


def test_a_folder_and_a_tar_of_it_give_the_same_samples(photographs: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photographs.tar", "w") as tar:
        for file in sorted(photographs.glob("*/*"), reverse=True):  # the order within the tar does not matter
            tar.add(file, f"any/where/{file.parent.name}/{file.name}")
    folder = PictureSet.open(photographs, 16, 16)
    archive = PictureSet.open(tmp_path / "photographs.tar", 16, 16)
    assert archive.classes == folder.classes == ("daisy", "rose", "tulip")
    assert len(archive) == len(folder) == 24
    order = RunOrder(batch=8, seed=0)
    assert_same_batches(take(in_memory(archive).batches(order, 0), 5), take(in_memory(folder).batches(order, 0), 5))


def test_memory_and_stream_give_the_same_batches_from_any_step_and_for_any_rank(photographs: Path) -> None:
    pictures = PictureSet.open(photographs, 16, 16)
    streamed = StreamedData(pictures, workers=0, pin_memory=False)
    for rank in range(2):
        order = RunOrder(batch=10, seed=1, rank=rank, world=2)
        expected = take(in_memory(pictures).batches(order, 0), 6)
        assert_same_batches(take(streamed.batches(order, 0), 6), expected)
        assert_same_batches(take(streamed.batches(order, 4), 2), expected[4:])
        assert_same_batches(take(in_memory(pictures).batches(order, 4), 2), expected[4:])


def test_the_ranks_batches_together_are_the_batch_of_one(photographs: Path) -> None:
    data = in_memory(PictureSet.open(photographs, 16, 16))
    whole = take(data.batches(RunOrder(batch=8, seed=1), 0), 3)
    ranks = [take(data.batches(RunOrder(batch=8, seed=1, rank=rank, world=4), 0), 3) for rank in range(4)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([parts[step].images for parts in ranks]), batch.images)
        assert torch.equal(torch.cat([parts[step].condition for parts in ranks]), batch.condition)


def test_each_pass_over_the_data_takes_every_sample_once_in_a_new_order() -> None:
    order = SampleOrder(num_samples=10, batch=4, seed=0)
    drawn = torch.cat([order.indices(step) for step in range(10)])
    passes = drawn.view(4, 10)
    assert all(sorted(one.tolist()) == list(range(10)) for one in passes)
    assert len({tuple(one.tolist()) for one in passes}) == 4
    assert torch.equal(SampleOrder(num_samples=10, batch=4, seed=0).indices(7), drawn[28:32])
    assert Counter(SampleOrder(num_samples=3, batch=8, seed=0).indices(0).tolist()).most_common()[-1][1] >= 2


def test_the_held_out_pictures_are_spread_evenly_and_not_trained_on(photographs: Path) -> None:
    rest, held_out = PictureSet.open(photographs, 16, 16).split(0.25)
    names = [{(photograph.label, photograph.name) for photograph in part.photographs} for part in (rest, held_out)]
    assert len(names[0]) == 18
    assert len(names[1]) == 6
    assert not names[0] & names[1]
    assert Counter(label for label, _ in names[1]) == {"daisy": 2, "rose": 2, "tulip": 2}
    with pytest.raises(
        DataError, match=r"24 photographs are too few to hold out .* 0\.01 .*--set data\.holdout=0\.2.*--val"
    ):
        PictureSet.open(photographs, 16, 16).split(0.01)


@pytest.mark.parametrize(("limit", "kept"), [(24, 24), (23, 12), (12, 12), (5, 5), (100, 24)])
def test_at_most_as_many_pictures_as_asked_are_kept(limit: int, kept: int, photographs: Path) -> None:
    assert len(in_memory(PictureSet.open(photographs, 16, 16), limit=limit).images) == kept


def test_photographs_of_another_size_are_cropped_to_the_middle_and_resized(photographs: Path) -> None:
    picture = PictureSet.open(photographs, 8, 12).picture(0)
    assert picture.shape == (3, 8, 12)
    assert picture.dtype == torch.uint8


def test_damaged_pictures_are_counted_named_and_skipped(
    damaged_photographs: Path, make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory]
) -> None:
    output = io.StringIO()
    recipe = make_recipe(data={"max_corrupt": 0.2}, training={"steps": 4})
    run = train_here(recipe, data=damaged_photographs, output=output)
    skipped = [line for line in output.getvalue().splitlines() if line.startswith("skipped a damaged picture: ")]
    assert [line.split(": ")[1] for line in skipped] == ["rose/002.png", "tulip/005.png", "tulip/007.png"]
    assert [name.split(": ")[0] for name in run.load().state.damaged] == ["rose/002.png", "tulip/005.png"]


def test_streaming_names_each_damaged_picture_once_and_takes_the_next_one_instead(
    damaged_photographs: Path, make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory]
) -> None:
    output = io.StringIO()
    recipe = make_recipe(data={"max_corrupt": 0.2, "memory_gb": 0, "workers": 0}, training={"steps": 8})
    run = train_here(recipe, data=damaged_photographs, output=output)
    assert output.getvalue().count("rose/002.png") == 1
    assert output.getvalue().count("tulip/005.png") == 1
    assert len(run.load().state.damaged) == 2

    pictures = PictureSet.open(damaged_photographs, 16, 16)
    batches = take(StreamedData(pictures, workers=0, pin_memory=False).batches(RunOrder(batch=24, seed=0), 0), 1)
    good = [pictures.picture(index) for index in range(24) if index not in (10, 21, 23)]
    assert all(any(torch.equal(image, picture) for picture in good) for image in batches[0].images)


@pytest.mark.parametrize("mode", [{}, {"memory_gb": 0, "workers": 0}])
def test_too_many_damaged_pictures_stop_the_run_with_their_names(
    mode: dict[str, int],
    damaged_photographs: Path,
    make_recipe: Callable[..., Recipe],
    train_here: Callable[..., RunDirectory],
) -> None:
    recipe = make_recipe(data={"max_corrupt": 0.05, **mode}, training={"steps": 8})
    with pytest.raises(DataError) as caught:
        train_here(recipe, data=damaged_photographs)
    pattern = r"[12] of 18 pictures are damaged, more than the allowed fraction 0\.05: (rose/002|tulip/005)\.png: .+"
    assert re.fullmatch(pattern, str(caught.value))


def test_a_validation_set_may_lack_classes_but_not_have_others(
    photographs: Path, make_photographs: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    fewer = make_photographs(tmp_path / "fewer", per_class=2, classes=("rose",))
    training, validation = open_data(make_recipe(), Pixels(), photographs, fewer)
    assert len(training) == 24
    assert validation.classes == training.classes
    assert [validation.whole.label(index) for index in range(2)] == [1, 1]
    other = make_photographs(tmp_path / "other", per_class=2, classes=("rose", "thistle"))
    with pytest.raises(DataError, match="has classes that the training data lacks: thistle"):
        open_data(make_recipe(), Pixels(), photographs, other)


def test_of_one_tar_with_splits_one_is_trained_on_and_the_other_validated_with(
    make_photographs: Callable[..., Path], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    for name, per_class in (("train", 3), ("val", 2)):
        make_photographs(tmp_path / "set" / name, per_class=per_class)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "set", arcname="set")
    for source in (tmp_path / "set", tmp_path / "set.tar"):
        training, validation = open_data(make_recipe(), Pixels(), source, source)
        assert (len(training), len(validation)) == (9, 6)
        assert training.note == f"{source}: left out pictures of val/: 6"
        assert len(open_data(make_recipe(), Pixels(), source, None)[0]) == 7  # two of the nine are held out


def test_a_source_that_is_no_data_set_is_one_clear_error(tmp_path: Path, photographs: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("this is no tar at all, however long it may be\n" * 40)
    for source, problem in {
        tmp_path / "missing": "does not exist",
        tmp_path / "empty": "holds no class/name.jpg, nor any of .jpeg, ",
        tmp_path / "text.tar": "is not an uncompressed tar",
        photographs / "rose": "holds no class/name.jpg",
    }.items():
        with pytest.raises(DataError) as caught:
            PictureSet.open(source, 16, 16)
        assert str(caught.value).startswith(str(source))
        assert problem in str(caught.value)


def test_pictures_of_which_none_can_be_read_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "rose").mkdir()
    (tmp_path / "rose" / "only.jpg").write_text("no picture")
    pictures = PictureSet.open(tmp_path, 16, 16)
    with pytest.raises(DataError, match="none of 1 photographs can be read"):
        in_memory(pictures, max_fraction=1.0)
    with pytest.raises(DataError, match="none of 1 photographs can be read"):
        take(StreamedData(pictures, workers=0, pin_memory=False).batches(RunOrder(batch=1, seed=0), 0), 1)


def test_a_shift_beyond_the_picture_is_refused(make_recipe: Callable[..., Recipe], photographs: Path) -> None:
    with pytest.raises(InvalidInput, match=r"data\.shift: 16 is not allowed; less than the picture, 16 x 16"):
        open_data(make_recipe(data={"shift": 16}), Pixels(), photographs, None)
