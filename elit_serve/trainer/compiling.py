"""Whether and how a model's blocks are compiled for training."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

COMPILED_VARIANTS = 64  # of one block: head, core and tail lengths, training and validation, level 1


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """is_done: whether blocks are compiled. problem: what kept them from it, if they were meant to be."""

    is_done: bool
    problem: str | None = None


def try_to_compile(blocks: Sequence[nn.Module], wanted: bool | None, device: torch.device) -> Compiled:
    """Compiles blocks where that is wanted and possible. `wanted` None is on a GPU, where runs are long."""
    if not (device.type == "cuda" if wanted is None else wanted):
        return Compiled(is_done=False)
    problem = why_not(device)
    if problem is None:
        compile_blocks(blocks)
    return Compiled(is_done=problem is None, problem=problem)


def compile_blocks(blocks: Sequence[nn.Module], backend: str = "inductor") -> None:
    """Compiles each block by itself with dynamic shapes: about a minute in all, whatever levels come."""
    torch._dynamo.config.recompile_limit = COMPILED_VARIANTS
    for block in blocks:
        block.compile(dynamic=True, backend=backend)


def why_not(device: torch.device) -> str | None:
    """Why nothing can be compiled for this device, in one line; None if it can.

    It is tried, with something small: a compiler may be missing, its headers, or a folder that it can write to.
    """
    try:
        torch.compile(_doubled, dynamic=False)(torch.ones(_never_compiled_before(), device=device))
    except Exception as error:  # of dynamo, inductor, Triton, the compiler, the loader, the file system
        torch.compiler.reset()
        return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return None


def _doubled(x: Tensor) -> Tensor:
    return x.sin() * 2


def _never_compiled_before() -> int:
    """A length: compiled code holds it, and code that is compiled already is taken from a cache without a compiler."""
    return 1 + secrets.randbelow(1 << 20)
