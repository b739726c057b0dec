"""The blocks of diffusers' autoencoders with less work between their convolutions.

At 512 pixels the norms, biases and sums between the convolutions of SD's decoder move more bytes than the convolutions
do: torch's group norm turns channels-last activations into channels-first ones and back, and each bias, SiLU and sum is
a pass of its own. Here a norm takes the bias before it and the SiLU behind it, a block's sum takes its last biases, and
doubling the sides reads each pixel once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.nn import fused


def quicken(autoencoder: nn.Module) -> None:
    """Puts these blocks in the place of those of diffusers that they can stand for; the weights stay where they are."""
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    for parent in list(autoencoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ResnetBlock2D) and _is_plain(child):
                setattr(parent, name, QuickBlock(child))
            elif isinstance(child, Upsample2D) and (conv := _conv_behind(child)) is not None:
                setattr(parent, name, nn.Sequential(Doubled(), conv))
        norm = getattr(parent, "conv_norm_out", None)
        if isinstance(norm, nn.GroupNorm) and isinstance(parent.conv_act, nn.SiLU):
            parent.conv_norm_out, parent.conv_act = NormSilu(norm), nn.Identity()


class NormSilu(nn.Module):
    """SiLU of a group norm."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return fused.group_norm_silu(x, self.norm)


class QuickBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a convolution for x where the channels change."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.shortcut = block.conv_shortcut
        biases = [layer.bias for layer in (self.conv2, self.shortcut) if layer is not None and layer.bias is not None]
        self.bias = torch.stack([bias.detach().float() for bias in biases]).sum(0)

    def forward(self, x: Tensor, temb: None = None) -> Tensor:  # noqa: ARG002
        """[B, C, H, W] -> [B, C', H, W]. temb: diffusers' blocks are given one; autoencoders have none."""
        inner = _without_bias(self.conv1, fused.group_norm_silu(x, self.norm1))
        inner = _without_bias(self.conv2, fused.group_norm_silu(inner, self.norm2, self.conv1.bias))
        return fused.add_biased(x if self.shortcut is None else _without_bias(self.shortcut, x), inner, self.bias)


class Doubled(nn.Module):
    """Twice the height and width."""

    def forward(self, x: Tensor) -> Tensor:
        return fused.doubled(x)


def _without_bias(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, convolution.weight, None, convolution.stride, convolution.padding)


def _is_plain(block: Any) -> bool:
    """Whether it is what `QuickBlock` computes, and nothing besides."""
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_emb_proj is None
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
        and isinstance(block.norm1, nn.GroupNorm)
        and isinstance(block.norm2, nn.GroupNorm)
        and block.conv1.bias is not None
        and block.conv2.bias is not None
    )


def _conv_behind(doubling: Any) -> nn.Conv2d | None:
    """Of a doubling, if that is all that it does besides."""
    return doubling.conv if isinstance(doubling.conv, nn.Conv2d) and doubling.norm is None else None
