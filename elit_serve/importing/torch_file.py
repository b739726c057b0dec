"""Reading a file of `torch.save` that somebody else made: tensors and plain values, and no code.

The file is mapped, not read: a tensor takes memory when it is looked at, and no more than the system can take back.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from elit_serve.errors import CheckpointError
from elit_serve.files.opening import regular

WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before names
SHOWN_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class TorchFile:
    """weights: averaged ones where there are such. args: what the training was told. steps: None where it is not said.

    is_averaged: whether they were under `ema`.
    """

    weights: Mapping[str, Tensor]
    args: Mapping[str, Any]
    steps: int | None
    is_averaged: bool


def read_torch_file(path: Path) -> TorchFile:
    """A training checkpoint with its averaged weights under `ema`, or a state dict by itself.

    Raises one `CheckpointError` for what is neither, is damaged, or holds anything but tensors and plain values.
    """
    content = _load(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(path, [f"it holds a {type(content).__name__}, not weights by name"])
    is_whole = "ema" in content
    weights = content["ema"] if is_whole else content
    if not isinstance(weights, Mapping) or not weights or not all(map(_is_weight, weights.items())):
        raise CheckpointError(path, ["it holds neither averaged weights under `ema` nor weights by name alone"])
    args, steps = content.get("args"), content.get("steps")
    return TorchFile(
        weights={_unwrapped(name): tensor for name, tensor in weights.items()},
        args=vars(args) if is_whole and isinstance(args, Namespace) else {},
        steps=steps if is_whole and isinstance(steps, int) else None,
        is_averaged=is_whole,
    )


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(regular(path), map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise CheckpointError(path, [f"it cannot be read: {error.strerror or error}"]) from None
    except Exception as error:  # whatever a damaged or hostile file makes of an unpickler
        if "GLOBAL" in str(error) or "Unsupported operand" in str(error):
            what = "it holds code or objects, and only tensors, plain values and argparse.Namespace are read"
        else:
            what = "it is no whole file of torch.save"
        raise CheckpointError(path, [f"{what}: {_reason(error)}"]) from None


def _reason(error: Exception) -> str:
    """The sentence of torch's message that says what is wrong; the others say how to trust a file, and such."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "WeightsUnpickler error" in line or "GLOBAL" in line] or lines
    sentence = told[0].partition(". ")[0] if told else type(error).__name__
    return shorten(sentence, SHOWN_CHARACTERS, placeholder=" ...")


def _is_weight(item: tuple[object, object]) -> bool:
    name, value = item
    return isinstance(name, str) and isinstance(value, Tensor)


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name
