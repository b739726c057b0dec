"""What one launch on the device is: the key of costs, of captured graphs, and of who may share a launch."""

from __future__ import annotations

from typing import NamedTuple


class StepKind(NamedTuple):
    """shape: the name of the samples' shape, see `Shape`. level: of the main pass.

    weak_level: of the pass that guides, never above `level`; None is a step without one. is_skipped: whether its passes
    skip their cores, see `Skips.core`. is_mixed: whether its members run at levels of their own, none above `level`,
    and the weak pass of each at min(weak_level, own level). A mixed step skips no core.
    """

    shape: str
    level: int
    weak_level: int | None = None
    is_skipped: bool = False
    is_mixed: bool = False

    def of_member(self, level: int) -> StepKind:
        """What a member of it that runs at this level is by itself.

        >>> StepKind("64x64", 8, 4, is_mixed=True).of_member(2)
        StepKind(shape='64x64', level=2, weak_level=2, is_skipped=False, is_mixed=False)
        """
        return StepKind.capped(self.shape, level, self.weak_level) if self.is_mixed else self

    @classmethod
    def capped(
        cls, shape: str, level: int, weak_cap: int | None, is_skipped: bool = False, is_mixed: bool = False
    ) -> StepKind:
        """With its weak pass at min(weak_cap, level), see `Guidance.weak_caps`; without one for None.

        >>> StepKind.capped("64x64", 4, 8)
        StepKind(shape='64x64', level=4, weak_level=4, is_skipped=False, is_mixed=False)
        """
        return cls(shape, level, None if weak_cap is None else min(weak_cap, level), is_skipped, is_mixed)

    @property
    def unmixed(self) -> StepKind:
        """The same for members that are all at its level."""
        return self._replace(is_mixed=False)
