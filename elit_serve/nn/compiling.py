"""Whether and how a model's blocks are compiled: for training and, where no kernels of `fused` run, for inference."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from textwrap import shorten

import torch
from torch import Tensor, nn

COMPILED_VARIANTS = 64  # of one block: head, core and tail lengths, training and validation, level 1, a batch of one
_SHOWN_CHARACTERS = 160


def is_wanted(compile_: bool | None, device: torch.device) -> bool:
    """Where a recipe does not say, blocks are compiled on a GPU, where runs are long."""
    return device.type == "cuda" if compile_ is None else compile_


def compile_if_possible(blocks: Sequence[nn.Module], device: torch.device, say: Callable[[str], None]) -> bool:
    """Compiles blocks where anything can be compiled, and says what it does in lines for a user. -> whether it did"""
    say("trying whether the model can be compiled here")
    problem = why_not(device)
    if problem is not None:
        say(f"nothing can be compiled here, so the run goes on uncompiled: {problem}")
        return False
    compile_blocks(blocks)
    return True


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
        first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return shorten(first_line, _SHOWN_CHARACTERS, placeholder=" ...")  # Triton's is the compiler's whole command
    return None


def _doubled(x: Tensor) -> Tensor:
    return x.sin() * 2


def _never_compiled_before() -> int:
    """A length: compiled code holds it, and code that is compiled already is taken from a cache without a compiler."""
    return 1 + secrets.randbelow(1 << 20)
