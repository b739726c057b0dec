"""Prompts to measure or to load a model with: lines of a text, a list of captions, or the captions of photographs."""

from __future__ import annotations

import logging
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path

from elit_serve.errors import DataError
from elit_serve.files.opening import read_file
from elit_serve.photographs.captions import MAX_LIST_BYTES, json_object, one_line, open_captioned_set
from elit_serve.plans.bounds import MAX_PROMPT

logger = logging.getLogger(__name__)


def read_prompts(source: Path) -> tuple[str, ...]:
    """Those of a text file, one on each line that is not empty; of a JSON lines file (`.jsonl`), the `text` of each
    line; or the captions of a folder or tar of captioned photographs. What is left out of these is said.

    Raises `DataError` when it cannot be read, holds none, or a line is no prompt.
    """
    if source.is_dir() or source.suffix == ".tar":
        found = open_captioned_set(source)
        if found.note:
            logger.warning(found.note)
        return tuple(photograph.caption for photograph in found.photographs)
    try:
        content = read_file(source, MAX_LIST_BYTES)
        content.decode()
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{source} is no text in UTF-8") from None
    said = _listed(source, content) if source.suffix == ".jsonl" else _plain(content)
    prompts = tuple(_checked(source, number, text) for number, text in said if one_line(text))
    if not prompts:
        raise DataError(f"{source} holds no prompt; it has one on each line")
    return prompts


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a text, counted from 1. Other characters that end a line for `str.splitlines` may be in a text."""
    return enumerate(content.removeprefix(BOM_UTF8).splitlines(), start=1)


def _plain(content: bytes) -> Iterator[tuple[int, str]]:
    return ((number, line.decode()) for number, line in _lines(content))


def _listed(source: Path, content: bytes) -> Iterator[tuple[int, str]]:
    """The texts of a list, with the numbers of their lines."""
    for number, line in _lines(content):
        if not line.strip():
            continue
        text = json_object(line).get("text")
        if not isinstance(text, str):
            raise DataError(f"{source}: line {number} is no JSON object with a text")
        yield number, text


def _checked(source: Path, number: int, text: str) -> str:
    prompt = one_line(text)
    if len(prompt) > MAX_PROMPT:
        raise DataError(f"{source}: line {number} has {len(prompt)} characters; at most {MAX_PROMPT} are allowed")
    try:
        prompt.encode()
    except UnicodeEncodeError:  # JSON can spell it, and no text encoder could read it
        raise DataError(f"{source}: line {number} has half of a surrogate pair, which is no character") from None
    return prompt
