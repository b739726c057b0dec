"""What pictures keep in their slots from one step to the next, so that later steps can skip what it takes to make it.

Letters: B pictures in a step, S slots, G groups, J latents per group, L level, K = G * L tokens of a core, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from elit_serve.nn import Backbone
from elit_serve.nn.reuse import CoreChange
from elit_serve.plans.shape import Shape
from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling import expand_like

SCRATCH = 0  # the slot that fills up a batch; what is in it means nothing


class _Branch:
    """What the cores of main or of weak passes changed last, and at which level that was.

    Of a level below the full one the change of all other latents is zero. text: how many tokens of one are in the core,
    behind `tokens` in groups.
    """

    def __init__(self, slots: int, tokens: int, groups: int, text: int, width: int, like: Tensor) -> None:
        self._changes = torch.zeros((slots, groups, tokens // groups, width), dtype=like.dtype, device=like.device)
        self._of_text = torch.zeros((slots, text, width), dtype=like.dtype, device=like.device)
        self._levels = torch.ones(slots, dtype=torch.int64, device=like.device)
        self._groups = groups

    def forget(self, slot: int) -> None:
        self._changes[slot].zero_()
        self._of_text[slot].zero_()
        self._levels[slot].fill_(1)

    def at(self, slots: Tensor, level: int) -> CoreChange:
        """Of the first `level` latents of each group, and of all text, for slots [B]."""
        changes = self._changes[:, :, :level].index_select(0, slots).flatten(1, 2)
        if self._of_text.shape[1]:
            changes = torch.cat([changes, self._of_text.index_select(0, slots)], dim=1)
        return CoreChange(value=changes, levels=self._levels.index_select(0, slots))

    def keep(self, slots: Tensor, changes: Tensor, level: int, own_levels: Tensor | None) -> None:
        """Changes [B, K, D] at a level, of slots [B], or of samples at levels of their own [B], none above it: what
        these do not have has changed by zero."""
        of_latents, of_text = torch.split(changes, [self._groups * level, self._of_text.shape[1]], dim=1)
        self._changes[:, :, :level].index_copy_(0, slots, torch.unflatten(of_latents, 1, (self._groups, level)))
        self._of_text.index_copy_(0, slots, of_text)
        self._changes[:, :, level:].index_fill_(0, slots, 0)
        if own_levels is None:
            self._levels.index_fill_(0, slots, level)
        else:
            self._levels.index_copy_(0, slots, own_levels)


class Memory:
    """Of all slots, for samples of one shape; as large as the slots times the cores of two passes."""

    def __init__(self, model: Backbone, shape: Shape, *, slots: int, device: torch.device) -> None:
        spec = model.spec.at_size(*shape.size[1:])
        full = spec.levels[-1]
        tokens, width = spec.core_shape(full)
        text = spec.text_in_core
        in_groups = tokens - text
        like = next(each for each in model.parameters() if each.dtype.itemsize > 1)  # quantised ones have another dtype
        self._branches = [_Branch(slots, in_groups, in_groups // full, text, width, like) for _ in ("main", "weak")]
        self._apart = torch.zeros((slots, *shape.size), device=device)
        self._at_any_level, self._full_level = spec.skips_at_any_level, full

    def forget(self, slot: int) -> None:
        """Before a picture takes the slot."""
        for branch in self._branches:
            branch.forget(slot)
        self._apart[slot].zero_()

    def as_run(self, kind: StepKind) -> StepKind:
        """The kind that a step is run as: those that skip their cores are alike where the level makes no difference."""
        if not (kind.is_skipped and self._at_any_level):
            return kind
        return StepKind.capped(
            kind.shape, self._full_level, None if kind.weak_level is None else self._full_level, True
        )

    def step(self, kind: StepKind, slots: Tensor, uses_kept: Tensor, own_levels: Tensor | None) -> StepMemory:
        """For one step of slots [B]. uses_kept [B]: where the picture has no weak pass of its own, 1, or else 0.
        own_levels: of a mixed step, of all its passes, main ones first."""
        return StepMemory(self._branches, self._apart, kind, slots, uses_kept.bool(), own_levels)


class StepMemory:
    """What one step uses of the memory, and leaves there.

    changes: of the cores, one for each part of the pass, as `Backbone.forward` takes them.
    """

    def __init__(
        self,
        branches: Sequence[_Branch],
        apart: Tensor,
        kind: StepKind,
        slots: Tensor,
        uses_kept: Tensor,
        own_levels: Tensor | None,
    ) -> None:
        self._branches = branches[: 1 if kind.weak_level is None else 2]
        self._levels = [level for level in (kind.level, kind.weak_level) if level is not None]
        count = len(self._levels)
        self._own = [None] * count if own_levels is None else list(own_levels.chunk(count))
        self._apart, self._kind, self._slots, self._uses_kept = apart, kind, slots, uses_kept
        self._is_one_part = kind.weak_level == kind.level
        self.changes = self._given() if kind.is_skipped else [CoreChange() for _ in range(self._num_parts)]

    @property
    def _num_parts(self) -> int:
        return 1 if self._is_one_part else len(self._levels)

    def _given(self) -> list[CoreChange]:
        given = [branch.at(self._slots, level) for branch, level in zip(self._branches, self._levels, strict=True)]
        return [joined(given)] if self._is_one_part else given

    def used(self, fresh: Tensor | None) -> Tensor:
        """See `sampling.euler.Differences`."""
        kept = self._apart.index_select(0, self._slots)
        if fresh is None:
            return kept
        used = torch.where(expand_like(self._uses_kept, kept), kept, fresh)
        self._apart.index_copy_(0, self._slots, used)
        return used

    def keep(self) -> None:
        """Of the cores that were computed. A picture without a weak pass of its own, in a launch of others that have
        one, keeps what it had."""
        if self._kind.is_skipped:
            return
        values = [change.value for change in self.changes if change.value is not None]
        if self._is_one_part:
            values = list(values[0].chunk(2))
        slots = (self._slots, torch.where(self._uses_kept, SCRATCH, self._slots))
        of_passes = zip(self._branches, slots, values, self._levels, self._own, strict=False)
        for branch, slots_of, value, level, own in of_passes:
            branch.keep(slots_of, value, level, own)


def joined(changes: Sequence[CoreChange]) -> CoreChange:
    """Of several parts that run at one level, as of one."""
    values = [change.value for change in changes if change.value is not None]
    levels = [change.levels for change in changes if change.levels is not None]
    return CoreChange(value=torch.cat(values), levels=torch.cat(levels))
