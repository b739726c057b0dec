"""Qwen-Image: a stream of image tokens and one of text through all blocks, which attend to both together.

Letters: B batch, C channels, H x W sample size, N image tokens, or K latents in their place, T text tokens, A heads,
D width, E head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.dense.dense import ONE, Dense, DenseSpec, square_fields
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.backbones.texts import PRESET_TEXT
from elit_serve.nn.fields import several
from elit_serve.nn.flops import block_flops
from elit_serve.nn.fused import Residual, norm_rotate
from elit_serve.nn.interface import patchify, unpatchify
from elit_serve.nn.layers import attend, settled
from elit_serve.nn.reuse import CoreChange, through_core
from elit_serve.nn.text import TextTokens

ROPE_THETA = 10_000
PUBLISHED: dict[str, Any] = {"patch": 2, "dim": 3072, "depth": 60, "num_heads": 24}
SHORT_TEXT = {**PRESET_TEXT, "max_tokens": 104}  # of presets: about as long as the texts whose FLOPs the paper counts
UNUSED = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")  # of other pipelines
UNKNOWN = "pooled_projection_dim"  # in published configurations; diffusers knows no such name any more, and ignores it


@dataclass(frozen=True, kw_only=True)
class QwenImageSpec(DenseSpec):
    """axes: how much of a head its RoPE turns by frame, row and column."""

    kind: ClassVar[str] = "qwen-image"
    their_class: ClassVar[str] = "QwenImageTransformer2DModel"
    their_names: ClassVar[dict[str, str]] = {
        "channels": "out_channels", "patch": "patch_size", "text_dim": "joint_attention_dim", "depth": "num_layers",
        "num_heads": "num_attention_heads", "axes": "axes_dims_rope",
    }  # fmt: skip
    their_constants: ClassVar[dict[str, object]] = dict.fromkeys(UNUSED, False)

    axes: tuple[int, ...] = several(3, 2, 1024, (16, 56, 56))

    @classmethod
    def completed(cls, table: dict[str, object]) -> dict[str, object]:
        """Its width is that of a head times their number, and samples come in patches already."""
        rest = dict(table)
        rest.pop(UNKNOWN, None)
        head, inputs = (rest.pop(name, None) for name in ("attention_head_dim", "in_channels"))
        heads = rest.get("num_heads")
        if isinstance(head, int) and isinstance(heads, int):
            rest["dim"] = head * heads
        if isinstance(inputs, int) and isinstance(patch := rest.get("patch"), int):
            rest["channels"] = inputs // patch**2 if inputs % patch**2 == 0 else inputs / patch**2
        return rest

    def arguments(self) -> dict[str, Any]:
        of_fields = super().arguments() | {"axes_dims_rope": list(self.axes)}
        head = self.dim // self.num_heads
        return of_fields | {"attention_head_dim": head, "in_channels": self.channels * self.patch**2}

    def check(self) -> None:
        if self.dim % self.num_heads or sum(self.axes) != self.dim // self.num_heads or any(a % 2 for a in self.axes):
            head = f"{self.dim} / {self.num_heads}"
            raise InvalidInput("axes", self.axes, f"three even numbers, together the size of a head: {head}")
        super().check()

    @property
    def guidance_patch(self) -> int:
        """Guidance keeps the norm of each token."""
        return self.patch

    def blocks_flops(self, tokens: int) -> float:
        """Both streams have the same layers, and attend to both."""
        return self.depth * block_flops(tokens + self.max_tokens, self.dim)


class Streams(NamedTuple):
    """Image tokens or latents [B, K, D], and words [B, T, D]."""

    tokens: Tensor
    words: Tensor

    def joined(self) -> Tensor:
        """Words behind tokens, as what a core changes has them. [B, K + T, D]"""
        return torch.cat(self, dim=1)

    @classmethod
    def of(cls, joined: Tensor, num_words: int) -> Streams:
        """The inverse of `joined`."""
        return cls(*torch.split(joined, [joined.shape[1] - num_words, num_words], dim=1))


class QwenImage(Dense):
    """Qwen-Image of diffusers; its only level is 1."""

    spec: QwenImageSpec
    transformer_blocks: nn.ModuleList
    pos_embed: nn.Module
    time_text_embed: nn.Module
    txt_norm: nn.Module
    img_in: nn.Module
    txt_in: nn.Module
    norm_out: nn.Module
    proj_out: nn.Module

    def __init__(self, spec: QwenImageSpec) -> None:
        """What the last block makes of the text is read by nobody, so what only that depends on cannot be trained."""
        super().__init__(spec)
        for block in self.transformer_blocks:
            attention: Any = block.attn
            attention.set_processor(AddedMask())
        last: Any = self.transformer_blocks[-1]
        for part in (last.attn.to_add_out, last.txt_mlp):
            part.requires_grad_(False)

    def every_block(self) -> Iterable[nn.Module]:
        return self.transformer_blocks

    def make_layout(self, rows: int, columns: int, device: torch.device) -> Any:
        """Turns of image tokens and of text tokens, see `as_turns`."""
        return tuple(as_turns(each).to(device) for each in self.phases(rows, columns))

    def phases(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Rotations of image tokens and of text tokens, as complex numbers on the CPU: [N, E / 2] and [T, E / 2].

        Tables of diffusers' module are no buffers: where it was made without memory they have none.
        """
        with torch.device("cpu"):
            tables = type(self.pos_embed)(theta=ROPE_THETA, axes_dim=list(self.spec.axes), scale_rope=True)
            image, text = tables([(1, rows, columns)], max_txt_seq_len=self.spec.max_tokens)
        return image, text

    def time_embedding(self, t: Tensor) -> Tensor:
        return self.embedded_noise_level(1 - t)

    def embedded_noise_level(self, sigma: Tensor) -> Tensor:
        """sigma [B] -> [B, D]

        Its waves are computed in float32 whatever the model computes in, which is told by the second tensor.
        """
        return self.time_text_embed(sigma.float(), sigma.new_empty(0, dtype=self.dtype))

    def theirs(self, x: Tensor, sigma: Tensor, text: TextTokens, change: CoreChange | None) -> Tensor:
        height, width = x.shape[-2:]
        tokens = self.img_in(patchify(x, patch=self.spec.patch, window=ONE))  # [B, N, D]
        words = self.txt_in(self.txt_norm(text.states.to(self.dtype)))  # [B, T, D]
        vector = self.embedded_noise_level(sigma)  # [B, D]
        rope = self.layout(x.shape, x.device)
        seen = F.pad(self.mask_of(text), (0, tokens.shape[1]))  # [B, 1, 1, T + N]

        def core(stream: Tensor | Residual) -> Tensor:
            told = {"encoder_hidden_states_mask": seen, "temb": vector, "image_rotary_emb": rope}
            return self.run(self.transformer_blocks, settled(stream), words, told)[0]

        tokens = through_core(core, tokens, change)
        patches = self.proj_out(self.norm_out(tokens, vector))  # [B, N, C * P * P]
        return unpatchify(patches, patch=self.spec.patch, window=ONE, height=height, width=width)

    @staticmethod
    def run(blocks: Iterable[nn.Module], tokens: Tensor, words: Tensor, told: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Image tokens [B, N, D] and text tokens [B, T, D] through blocks."""
        for block in blocks:
            words, tokens = block(hidden_states=tokens, encoder_hidden_states=words, **told)
        return tokens, words


class AddedMask:
    """How blocks of diffusers' Qwen-Image attend here: image tokens may be hidden, too, and real numbers turn what they
    attend with; by itself it can hide text only, and turns by complex numbers, which torch does not compile."""

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        *,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
        attention_mask: None = None,
    ) -> tuple[Tensor, Tensor]:
        """encoder_hidden_states_mask [B, 1, 1, T + K] is added to scores; see `attended`."""
        assert attention_mask is None
        streams = Streams(hidden_states, encoder_hidden_states)
        return attended(attention, streams, image_rotary_emb, encoder_hidden_states_mask)


def attended(attention: Any, streams: Streams, turns: tuple[Tensor, Tensor], seen: Tensor) -> Streams:
    """Tokens [B, K, D] and words [B, T, D] attend to all of both, by weights of Qwen-Image.

    turns: of tokens and of words. seen: of words, then of tokens [B, 1, 1, T + K].
    """
    norms = attention.norm_q, attention.norm_k
    of_tokens = projected(streams.tokens, attention, ("to_q", "to_k", "to_v"), norms, turns[0])
    norms = attention.norm_added_q, attention.norm_added_k
    of_words = projected(streams.words, attention, ("add_q_proj", "add_k_proj", "add_v_proj"), norms, turns[1])
    q, k, v = (torch.cat(both, dim=2) for both in zip(of_words, of_tokens, strict=True))  # [B, A, T + K, E] each
    made = attend(q, k, v, seen).transpose(1, 2).flatten(2)  # [B, T + K, D]
    words, tokens = torch.split(made, [streams.words.shape[1], streams.tokens.shape[1]], dim=1)
    return Streams(attention.to_out[0](tokens), attention.to_add_out(words))


def projected(
    x: Tensor, attention: Any, names: Sequence[str], norms: tuple[Any, Any], turns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of x [B, K, D] by the linear layers of these names, [B, A, K, E] each."""
    q, k, v = (getattr(attention, name)(x).unflatten(-1, (attention.heads, -1)) for name in names)  # [B, K, A, E]
    (q,), (k,) = (
        norm_rotate(part.unsqueeze(2), (norm.weight,), turns, pairs=True)
        for part, norm in zip((q, k), norms, strict=True)
    )
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def as_turns(phases: Tensor) -> Tensor:
    """Complex numbers [K, E / 2] as cosines and sines, [2, K, 1, E / 2]."""
    return torch.stack([phases.real, phases.imag]).unsqueeze(2)


def _preset(resolution: int, channels: int, conditions: Conditions) -> QwenImageSpec:
    return QwenImageSpec(**PUBLISHED, **square_fields("qwen-image", resolution, 16, channels, conditions))


KIND = BackboneKind(
    spec=QwenImageSpec,
    module=QwenImage,
    tiny=QwenImageSpec(
        channels=4,
        height=8,
        width=8,
        patch=2,
        dim=32,
        depth=3,
        num_heads=2,
        axes=(4, 6, 6),
        text_dim=16,
        max_tokens=7,
    ),
    presets={"qwen-image": _preset},
    is_published=True,
    conditions=SHORT_TEXT,
)
