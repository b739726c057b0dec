"""A data set is known by its content: a folder, a tar of it, and a copy elsewhere are the same one."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from elit_serve.photographs import open_data_set
from elit_serve.trainer.identity import content_digest


@pytest.fixture
def copy(photographs: Path, tmp_path: Path) -> Path:
    """The same photographs under another name, with other dates, for a test to change."""
    copied = Path(shutil.copytree(photographs, tmp_path / "copy"))
    for file in copied.glob("*/*"):
        os.utime(file, (1, 1))
    return copied


def digest(source: Path, **options: int) -> str:
    return content_digest(open_data_set(source).photographs, **options)


@pytest.mark.parametrize("read_bytes", [1 << 30, 2_000])
def test_a_folder_its_copy_and_its_tar_are_one_data_set(
    read_bytes: int, photographs: Path, copy: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "photographs.tar", "w") as tar:
        for file in sorted(photographs.glob("*/*"), reverse=True):
            tar.add(file, f"any/where/{file.parent.name}/{file.name}")
    known = digest(photographs, read_bytes=read_bytes)
    assert digest(copy, read_bytes=read_bytes) == known
    assert digest(tmp_path / "photographs.tar", read_bytes=read_bytes) == known


def replaced(folder: Path) -> None:
    """Other bytes, as many as before."""
    file = folder / "rose" / "003.png"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def moved(folder: Path) -> None:
    (folder / "rose" / "003.png").rename(folder / "tulip" / "103.png")


def renamed(folder: Path) -> None:
    (folder / "rose" / "003.png").rename(folder / "rose" / "103.png")


def fewer(folder: Path) -> None:
    (folder / "rose" / "003.png").unlink()


def longer(folder: Path) -> None:
    with (folder / "rose" / "003.png").open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize("change", [replaced, moved, renamed, fewer, longer], ids=lambda change: change.__name__)
def test_any_other_byte_name_or_class_is_another_data_set(
    change: Callable[[Path], None], photographs: Path, copy: Path
) -> None:
    change(copy)
    assert digest(copy) != digest(photographs)


@pytest.mark.parametrize("change", [moved, renamed, fewer, longer], ids=lambda change: change.__name__)
def test_names_and_sizes_count_even_where_no_content_is_read(
    change: Callable[[Path], None], photographs: Path, copy: Path
) -> None:
    change(copy)
    assert digest(copy, read_bytes=0) != digest(photographs, read_bytes=0)


def test_of_a_large_set_only_so_much_is_read_and_the_same_each_time(photographs: Path, copy: Path) -> None:
    sizes = sum(file.stat().st_size for file in photographs.glob("*/*"))
    known = digest(photographs, read_bytes=sizes // 2)
    seen = 0
    for file in sorted(copy.glob("*/*")):
        content = file.read_bytes()
        file.write_bytes(bytes(len(content)))
        seen += digest(copy, read_bytes=sizes // 2) != known
        file.write_bytes(content)
    assert 24 // 3 <= seen <= 24 * 2 // 3
