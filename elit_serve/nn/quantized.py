"""Matrix products in float8 (e4m3) for inference: the large linear layers of every block.

A weight has one scale, its largest magnitude over 448, found once. An activation has none: float8 is floating point, so
whatever lies between 2^-6 and 448 keeps its 4 significant bits, and what is read here is normalised and modulated, or
came through a GELU. No pass over memory looks for a largest value; see `fused` for who writes float8.

Letters as in `layers`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.fused import FP8, FP8_MAX, to_fp8
from elit_serve.nn.layers import Block

WIDTH_STEP = 16  # the GPU multiplies float8 matrices whose sides are multiples of this


class Fp8Linear(nn.Module):
    """What a linear layer computes, from a weight and an input in float8; sums, bias and output are wider."""

    weight: Tensor  # [out, in], float8
    weight_scale: Tensor  # [], float32: what the weight is to be multiplied by
    input_scale: Tensor  # [], float32: 1
    bias: Tensor  # [out], in the dtype of the output

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        for width in (linear.in_features, linear.out_features):
            if width % WIDTH_STEP:
                raise InvalidInput("quantize", "fp8", f"it needs widths divisible by {WIDTH_STEP}, and one is {width}")
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax() / FP8_MAX).clamp(min=torch.finfo(torch.float32).tiny)
        self.register_buffer("weight", (weight / scale).to(FP8))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("input_scale", torch.ones_like(scale))
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, in], float8 or what will be rounded to it -> [B, N, out]"""
        x = x if x.dtype == FP8 else to_fp8(x)
        y = torch._scaled_mm(
            x.flatten(0, 1),
            self.weight.t(),
            self.input_scale,
            self.weight_scale,
            bias=self.bias,
            out_dtype=self.bias.dtype,
            use_fast_accum=True,
        )
        return y.view(*x.shape[:2], -1)


def quantize_(model: nn.Module) -> None:
    """Replaces the large linear layers of all blocks by float8 ones, in place; for inference only.

    The rest stays as it is: embeddings, modulations, Read, Write and the final layer are a small part of the time, and
    the input of attention's output layer comes from a kernel that cannot write float8 (it would gain 2 %).
    """
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        for parent, name in ((block.attention, "qkv"), (block.mlp, "up"), (block.mlp, "down")):
            setattr(parent, name, Fp8Linear(getattr(parent, name)))
