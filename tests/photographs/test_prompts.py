"""Prompts of a text, of a list, and of captioned photographs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elit_serve.errors import DataError
from elit_serve.photographs import read_prompts
from elit_serve.plans.bounds import MAX_PROMPT
from tests.photographs.test_captions import write
from tests.photographs.test_data_set import tar_of


def test_a_text_has_a_prompt_on_each_line_that_is_not_empty(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red  tulip \r\n\n \u00e9clair\na red tulip".encode())
    assert read_prompts(file) == ("a red tulip", "éclair", "a red tulip")


def test_a_list_has_them_as_its_texts_and_photographs_as_their_captions(tmp_path: Path) -> None:
    listed = tmp_path / "metadata.jsonl"
    listed.write_text('{"file_name": "a.jpg", "text": "two daisies"}\n\n{"text": "a rose"}\n', encoding="utf-8")
    assert read_prompts(listed) == ("two daisies", "a rose")
    folder = write(tmp_path / "set", {"b.png": "two", "a.png": "one"})
    assert read_prompts(folder) == read_prompts(tar_of(folder)) == ("one", "two")


def test_photographs_without_a_caption_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "set", {"a.png": "one", "b.png": None})
    assert read_prompts(folder) == ("one",)
    assert "left out" in caplog.text
    assert "b.png" in caplog.text


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_a_separator_inside_a_prompt_is_a_space_and_no_new_line(tmp_path: Path, name: str) -> None:
    """JSON allows U+2028, U+2029 and U+0085 in a string as they are, and `json.dumps(..., ensure_ascii=False)` writes
    them so."""
    prompt = "a rose\u2028with dew\u2029on\u0085grass"
    line = json.dumps({"text": prompt}, ensure_ascii=False) if name.endswith(".jsonl") else prompt
    (tmp_path / name).write_text(f"{line}\n", encoding="utf-8")
    assert read_prompts(tmp_path / name) == ("a rose with dew on grass",)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("prompts.txt", b"\n \n", "holds no prompt"),
        ("prompts.txt", b"a rose\n\xff", "is no text in UTF-8"),
        ("prompts.txt", b"a rose\n" + b"a" * (MAX_PROMPT + 1), "line 2 has 10001 characters; at most 10000"),
        ("prompts.jsonl", b'{"text": "a rose"}\n{"text": 3}', "line 2 is no JSON object with a text"),
        ("prompts.jsonl", b'{"text": "a rose"}\n{"text": "\\ud83c"}', "line 2 has half of a surrogate pair"),
        ("prompts.jsonl", b"a rose", "line 1 is no JSON object with a text"),
    ],
)
def test_what_is_no_prompt_is_named(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=why):
        read_prompts(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "none.txt")
