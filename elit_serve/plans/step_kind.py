"""What one launch on the device is: the key of costs, of captured graphs, and of who may share a launch."""

from __future__ import annotations

from typing import NamedTuple


class StepKind(NamedTuple):
    """shape: the name of the samples' shape, see `Shape`. level: of the main pass.

    weak_level: of the pass that guides, never above `level`; None is an unguided step. is_skipped: whether the last
    velocity is used again in place of a new one.
    """

    shape: str
    level: int
    weak_level: int | None = None
    is_skipped: bool = False
