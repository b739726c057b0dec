"""What a model computes in: a dtype, and whether its matrix products are quantised."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from elit_serve.engine.checkpoint import TORCH_DTYPES, weight_dtype
from elit_serve.errors import InvalidInput

Quantization = Literal["fp8"]
FP8_CAPABILITY = (8, 9)  # the first CUDA compute capability with float8 matrix products


def choose_dtype(device: torch.device, dtype: str | None, quantize: str | None) -> torch.dtype:
    """The dtype of this name; None is bfloat16 on a GPU and float32 on a CPU.

    Raises for a name that is unknown, and for a quantisation that this device or this dtype does not allow.
    """
    if quantize is None:
        return TORCH_DTYPES[weight_dtype(dtype or ("bfloat16" if device.type == "cuda" else "float32"))]
    if quantize not in get_args(Quantization):
        raise InvalidInput("quantize", quantize, f"one of {', '.join(get_args(Quantization))}, or leave it out")
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        needed = f"a CUDA device of compute capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} or newer"
        raise InvalidInput("quantize", quantize, f"it needs {needed}, and this is {_described(device)}")
    if dtype not in (None, "bfloat16"):
        raise InvalidInput("dtype", dtype, "what quantize = fp8 leaves as it is runs in bfloat16")
    return torch.bfloat16


def precision_name(dtype: torch.dtype, quantize: str | None) -> str:
    """How answers, pictures and measurements name it: the quantisation, or else the dtype."""
    return quantize or str(dtype).removeprefix("torch.")


def options_of(precision: str) -> tuple[str | None, str | None]:
    """(dtype, quantize) that make a model compute in the precision of this name."""
    return (None, precision) if precision in get_args(Quantization) else (precision, None)


def _described(device: torch.device) -> str:
    if device.type != "cuda":
        return f"a {device.type.upper()}"
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} ({major}.{minor})"
