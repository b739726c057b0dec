"""Which captions photographs have, in a folder and in the tar of it; what is not taken is named."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest

from elit_serve.errors import DataError
from elit_serve.photographs import DataSet, Part, open_captioned_set
from elit_serve.plans.bounds import MAX_PROMPT
from tests.photographs.test_data_set import picture, tar_of


def write(root: Path, captions: dict[str, str | bytes | None]) -> Path:
    """Pictures by name, each with its caption beside it if it has one."""
    for number, (name, caption) in enumerate(captions.items()):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))
        if caption is not None:
            file.with_suffix(".txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())
    return root


def listed(found: DataSet) -> list[tuple[str, str]]:
    return [(each.place, each.caption) for each in found.photographs]


def assert_alike(folder: Path, part: Part = "training") -> DataSet:
    """Opens a folder and the two usual tars of it, and gives what the folder holds."""
    expected = open_captioned_set(folder, part)
    for wrapped in (True, False):
        found = open_captioned_set(tar_of(folder, wrapped=wrapped), part)
        assert (listed(found), found.left_out) == (listed(expected), expected.left_out)
    return expected


def test_a_caption_is_a_text_beside_its_photograph_however_deep(tmp_path: Path) -> None:
    found = assert_alike(
        write(tmp_path / "set", {"b/2.png": "two\n daisies ", "a.jpg": "a red tulip", "b/c/1.png": "ä"})
    )
    assert listed(found) == [("a.jpg", "a red tulip"), ("b/2.png", "two daisies"), ("b/c/1.png", "ä")]
    assert found.note is None


def test_a_list_names_photographs_from_where_it_lies(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"b/1.png": None, "b/c/2.png": None, "b/3.png": "beside it", "d.png": "outside"})
    lines = [{"file_name": "1.png", "text": "one"}, {"file_name": "./c/2.png", "text": "two", "source": "elsewhere"}]
    lines += [{"file_name": "3.png", "text": "in the list"}, {"file_name": "../d.png", "text": "not from here"}]
    (folder / "b" / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = assert_alike(folder)
    expected = [("b/1.png", "one"), ("b/3.png", "beside it"), ("b/c/2.png", "two"), ("d.png", "outside")]
    assert listed(found) == expected


def test_a_photograph_without_a_caption_that_can_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    others = {"empty.png": " \n", "latin.png": "Bl\xfcte".encode("latin-1"), "long.png": "a" * (MAX_PROMPT + 1)}
    others |= {"huge.png": b"a" * (5 * MAX_PROMPT)}
    found = assert_alike(write(tmp_path / "set", {"1.png": "one", "none.png": None, **others}))
    assert listed(found) == [("1.png", "one")]
    for name, reason in {
        "none.png": "without a caption",
        "empty.png": "whose caption is empty",
        "latin.png": "whose caption is no UTF-8",
        "huge.png, long.png": f"whose caption has more than {MAX_PROMPT} characters",
    }.items():
        assert f"pictures {reason} ({name})" in found.left_out
    assert "pictures without a caption (none.png): 1" in str(found.note)


def test_a_name_that_a_tar_uses_again_has_no_caption_for_sure(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"1.png": "one", "2.png": "two"})
    path = tar_of(folder)
    with tarfile.open(path, "a") as tar:
        for name in ("1.png", "1.txt"):
            tar.add(folder / name, arcname=f"set/{name}")
    found = open_captioned_set(path)
    assert listed(found) == [("2.png", "two")]
    assert found.left_out == {"pictures with several captions (1.png, 1.png)": 2}


@pytest.mark.parametrize(
    "line", ["{", '["1.png", "one"]', '{"file_name": "1.png"}', '{"file_name": 1, "text": "one"}', "[" * 100_000]
)
def test_a_list_with_a_line_that_says_nothing_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    folder = write(tmp_path / "set", {"1.png": None})
    (folder / "metadata.jsonl").write_text(f'{{"file_name": "1.png", "text": "one"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata\.jsonl: line 2 is no JSON object with a file_name and a text"):
        open_captioned_set(folder)


def test_a_set_that_is_split_at_its_top_gives_one_part(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"train/1.png": "one", "val/2.png": "two", "val/deep/3.png": "three"})
    assert listed(assert_alike(folder)) == [("1.png", "one")]
    assert listed(assert_alike(folder, "held out")) == [("2.png", "two"), ("deep/3.png", "three")]


def test_a_set_without_any_caption_says_what_one_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {f"{number}.png": None for number in range(7)})
    expected = "holds no photograph with a caption: name.txt beside name.jpg, or a line of metadata.jsonl; pictures "
    named = "without a caption: 0.png, 1.png, 2.png, 3.png, 4.png and 2 more"
    with pytest.raises(DataError, match=re.escape(expected + named)):
        open_captioned_set(folder)
