"""What a core changes, kept from one step to use in later ones in place of the core (TeaCache; paper, appendix A).

A core is what most of a pass runs through: the blocks between Read and Write, or all blocks of a transformer without
latents. What it changes is its output less its input.

Letters: B batch, K tokens of the core, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elit_serve.nn.fused import Residual
from elit_serve.nn.layers import settled


@dataclass(eq=False)
class CoreChange:
    """What the core changed in one part of a pass, all of whose samples run at one level.

    value: [B, K, D]. Where it is given, the pass adds it to what comes to the core and computes no core; where it is
        None, the pass computes the core and leaves here what that changed.
    levels: at which each was computed [B] int64; goes with a given value, for backbones that know their level.
    output: what left the core [B, K, D]; left by the pass that computes it.
    """

    value: Tensor | None = None
    levels: Tensor | None = None
    output: Tensor | None = None


Core = Callable[[Tensor | Residual], Tensor | Residual]


def are_given(changes: Sequence[CoreChange]) -> bool:
    """Whether a pass of these parts computes no core. All of them are given, or none."""
    given = [change.value is not None for change in changes]
    assert not any(given) or all(given), "the parts of a pass skip their cores together"
    return any(given)


def through_core(core: Core, stream: Tensor | Residual, change: CoreChange | None) -> Tensor:
    """A stream through the core, or past it with a change that is given. None keeps nothing. -> [B, K, D]"""
    if change is None:
        return settled(core(stream))
    before = settled(stream)
    if change.value is not None:
        return before + change.value
    change.output = settled(core(before))
    change.value = change.output - before
    return change.output


def levels_of(changes: Sequence[CoreChange]) -> Tensor:
    """At which level each sample of a pass was computed whose changes are given: [B] int64."""
    levels = [change.levels for change in changes if change.levels is not None]
    assert len(levels) == len(changes), "a change that is given says its levels"
    return torch.cat(levels)
