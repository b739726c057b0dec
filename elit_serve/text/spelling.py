"""Names that somebody may have meant, found with a bound on the work, whatever was written among however many."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Iterable

NEAR = 0.7  # `SequenceMatcher.ratio` of names that may be meant by another: max_batch by batch, not priority by quality
MAX_LENGTH = 50  # characters; comparing two strings takes up to the product of their lengths
MAX_COMPARED = 100  # names; of more, those that would stand nearest in an alphabetical list, with the same beginning


class Names:
    """What may be written in some place: fields, settings, classes."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names)

    def like(self, written: str, *, at_most: int = 1) -> list[str]:
        """The names most like `written`, the most like first."""
        if len(written) > MAX_LENGTH:
            return []
        last = max(0, len(self._names) - MAX_COMPARED)
        first = min(last, max(0, bisect_left(self._names, written) - MAX_COMPARED // 2))
        compared = [name for name in self._names[first : first + MAX_COMPARED] if len(name) <= MAX_LENGTH]
        return difflib.get_close_matches(written, compared, n=at_most, cutoff=NEAR)
