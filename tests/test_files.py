"""Whatever lies where a file should be, every reader answers at once and in one line that names it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch

from elit_serve.bench.simulate.arrivals import read_arrivals
from elit_serve.engine.autoencoders import open_autoencoder
from elit_serve.engine.checkpoint import load_checkpoint
from elit_serve.errors import ElitError
from elit_serve.evaluation.features import FeatureCache, open_features
from elit_serve.evaluation.report.folder import read_measurements
from elit_serve.evaluation.runs.reference import Reference
from elit_serve.files.config import AutoencoderConfig
from elit_serve.files.latency import read_latency
from elit_serve.files.opening import parse_toml, read_file, read_text
from elit_serve.files.quality import read_quality
from elit_serve.server.keys import read_keys
from elit_serve.server.setting_sources import from_file
from elit_serve.trainer.recipe import read_recipe
from elit_serve.trainer.run import RunDirectory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """A reader that waits is interrupted."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError("it still reads after 20 s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fifo(path: Path) -> None:
    """Without anybody who writes."""
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def huge(path: Path) -> None:
    """A terabyte, of which nothing is on disk."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


def looped(path: Path) -> None:
    path.symlink_to(path)


def load_with_weights(path: Path) -> None:
    load_checkpoint(path.parent)


# What is read, by the name of the file that something else lies in place of.
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config of a model": ("config.json", load_with_weights),
    "weights of a model": ("model.safetensors", load_with_weights),
    "quality of a model": ("quality.json", load_with_weights),
    "quality": ("quality.json", read_quality),
    "latency": ("cpu.json", read_latency),
    "keys": ("keys.toml", read_keys),
    "settings": ("elit.toml", from_file),
    "recipe": ("recipe.toml", read_recipe),
    "run": ("run.json", lambda path: RunDirectory(path.parent).facts()),
    "trace": ("trace.txt", read_arrivals),
    "reference": ("reference.safetensors", Reference.load),
    "evaluation": ("evaluation.json", lambda path: read_measurements(path.parent)),
    "autoencoder": (
        "config.json",
        lambda path: open_autoencoder(AutoencoderConfig(kind="diffusers"), path.parent, CPU),
    ),
    "features in TorchScript": ("net.ts", lambda path: open_features(f"torchscript:{path}", CPU)),
    "Inception": ("inception.pth", lambda path: open_features(f"inception:{path}", CPU)),
    "DINOv2": ("config.json", lambda path: open_features(f"dinov2:{path.parent}", CPU)),
}


@pytest.mark.parametrize("made", [fifo, endless, folder, looped], ids=lambda made: made.__name__)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_refused_at_once(
    reader: str, made: Callable[[Path], None], tiny_model_dir: Path
) -> None:
    name, read = READERS[reader]
    (tiny_model_dir / name).unlink(missing_ok=True)
    made(tiny_model_dir / name)
    with pytest.raises(ElitError) as caught:
        read(tiny_model_dir / name)
    assert tiny_model_dir.name in str(caught.value)
    assert "\n" not in str(caught.value)


BOUNDED = [name for name in READERS if name not in ("reference", "features in TorchScript", "Inception")]


@pytest.mark.parametrize("reader", BOUNDED)
def test_what_is_too_large_is_refused_before_it_is_read(reader: str, tiny_model_dir: Path) -> None:
    name, read = READERS[reader]
    (tiny_model_dir / name).unlink(missing_ok=True)
    huge(tiny_model_dir / name)
    with pytest.raises(ElitError, match="larger than"):
        read(tiny_model_dir / name)


def test_a_damaged_place_in_the_cache_of_features_counts_as_empty(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    place = cache._file({"set": 1})
    for made in (fifo, endless, folder, looped):
        made(place)
        assert cache.read({"set": 1}) is None
        place.rmdir() if made is folder else place.unlink()


def test_a_file_that_is_linked_to_is_read(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"\xef\xbb\xbfL\xc3\xb6wenzahn")
    (tmp_path / "link").symlink_to("there")
    assert read_text(tmp_path / "link", 100) == "Löwenzahn"


def test_a_file_of_the_size_that_is_allowed_is_read_and_one_of_a_byte_more_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="it is larger than 4 bytes"):
        read_file(tmp_path / "file", 4)
    with pytest.raises(OSError, match="it is larger than 4 bytes"):
        read_file(Path("/proc/self/status"), 4)  # which has no size


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a = " + "[" * 100_000, id="nested"),
        pytest.param("a = " + "9" * 5_000, id="long number"),
        pytest.param(".".join("a" * 5_000) + " = 1", id="long key"),
        pytest.param("[" + ".".join("b" * 99) + "]", id="long table"),
        pytest.param("a = 1\na = 2", id="twice"),
    ],
)
def test_toml_that_a_parser_does_not_bear_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_toml(text)


def test_dots_in_numbers_texts_and_comments_are_no_keys() -> None:
    numbers = ", ".join(["0.5"] * 200)
    text = f'# {"." * 200}\na.b = [{numbers}]\nc = "{"." * 200}"\n'
    assert parse_toml(text)["c"] == "." * 200


def test_a_refused_file_is_not_left_open(tmp_path: Path) -> None:
    fifo(tmp_path / "fifo")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(OSError, match="it is no regular file"):
            read_file(tmp_path / "fifo", 10)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
