"""What copies of a scheduler have in common."""

from __future__ import annotations

from typing import Self


class Shared:
    """A value that never changes: whoever copies what holds it keeps it."""

    def __deepcopy__(self, memo: object) -> Self:
        return self
