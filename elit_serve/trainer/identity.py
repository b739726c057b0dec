"""By what a set of photographs is known again: its content, wherever it lies and whatever holds it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from elit_serve.photographs import Photograph

READ_BYTES = 1 << 30  # of the contents: seconds on a disk; all of ImageNet would take many minutes at each start


def content_digest(photographs: Sequence[Photograph], read_bytes: int = READ_BYTES) -> str:
    """SHA-256 over class, name, caption and size of every photograph, and over contents, in order of class and name.

    Of a set that is larger than `read_bytes` only as many photographs are read as come to that, always the same ones,
    drawn by their class and name. So another file of the very same name and size is noticed there only if it is among
    these; any other size, name or class always is. Raises `DataSetGone` when one cannot be read.
    """
    ordered = sorted(photographs, key=_key)  # stable: two of one name stay in the order in which they are trained on
    sizes = [photograph.size for photograph in ordered]
    drawn = _drawn(ordered, sizes, read_bytes)
    with ThreadPoolExecutor() as pool:
        contents = dict(zip(drawn, pool.map(lambda index: _digest(ordered[index].read()), drawn), strict=True))
    digest = hashlib.sha256()
    for index, photograph in enumerate(ordered):
        caption = [photograph.caption] if photograph.caption else []
        for part in (*_key(photograph), *caption, str(sizes[index]), contents.get(index, "")):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(4, "big") + encoded)  # no two lists of parts look the same
    return digest.hexdigest()


def _drawn(ordered: Sequence[Photograph], sizes: Sequence[int], read_bytes: int) -> list[int]:
    """Indices of the photographs that are read."""
    if sum(sizes) <= read_bytes:
        return list(range(len(ordered)))
    drawn: list[int] = []
    total = 0
    for index in sorted(range(len(ordered)), key=lambda index: _place_in_draw(ordered[index])):
        total += sizes[index]
        if total > read_bytes:
            break
        drawn.append(index)
    return drawn


def _place_in_draw(photograph: Photograph) -> bytes:
    return hashlib.sha256("/".join(_key(photograph)).encode()).digest()


def _key(photograph: Photograph) -> tuple[str, str]:
    return photograph.label, photograph.name


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
