"""What transformers share whose pictures are of a text: its tokens are a stream of their own beside the picture's.

Letters: B batch, T places for tokens of text, D width, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.nn.backbones.kind import Conditions
from elit_serve.nn.backbones.transformer import Layout, Transformer, TransformerSpec
from elit_serve.nn.fields import whole
from elit_serve.nn.layers import rope_table
from elit_serve.nn.text import TextTokens
from elit_serve.plans.bounds import MAX_TEXT_DIM, MAX_TEXT_TOKENS

TINY_TEXT = {"text_dim": 8, "max_tokens": 6}
PRESET_TEXT = {"text_dim": 256, "max_tokens": 64}


@dataclass(frozen=True, kw_only=True)
class TextSpec(TransformerSpec):
    """text_dim: width of an encoded token. max_tokens: places for them, T; all of them run, whatever a text fills."""

    text_dim: int = whole(1, MAX_TEXT_DIM)
    max_tokens: int = whole(1, MAX_TEXT_TOKENS)

    @property
    def conditions(self) -> Conditions:
        return {"text_dim": self.text_dim, "max_tokens": self.max_tokens}


@dataclass(frozen=True, kw_only=True)
class TextLayout(Layout):
    """text_rope: [2, T, 1, E/2], of text that stands behind the picture's last corner, on its diagonal (Qwen-Image)."""

    text_rope: Tensor


class Text(NamedTuple):
    """What blocks are told of texts. tokens: [B, T, D]. mask: [B, 1, 1, T], 0 where there is a token, else -inf."""

    tokens: Tensor
    mask: Tensor


class TextTransformer(Transformer):
    """Conditions are texts as `nn.text` packs them. Their tokens are read in attention, and their mean modulates the
    blocks as time does (SD3). A text without tokens is no text, in whose place there is one learned token."""

    spec: TextSpec

    def make_condition_embed(self) -> None:
        self.null_text = nn.Parameter(torch.empty(self.spec.text_dim))
        self.text_embed = nn.Linear(self.spec.text_dim, self.spec.dim)
        self.mean_text_embed = nn.Linear(self.spec.text_dim, self.spec.dim)

    def null_like(self, condition: Tensor) -> Tensor:
        """Texts without tokens: [B, T, text_dim + 1] -> the same."""
        return torch.zeros_like(condition)

    def condition_embedding(self, condition: Tensor) -> Tensor:
        states, mask = self.tokens_of(condition)
        count = mask.sum(dim=1, keepdim=True)
        return self.mean_text_embed((states * mask.unsqueeze(2)).sum(dim=1) / count)

    def embed_text(self, condition: Tensor) -> Text:
        """Condition [B, T, text_dim + 1] -> what blocks are told of it."""
        states, mask = self.tokens_of(condition)
        tokens = self.text_embed(states)
        unseen = torch.zeros_like(mask, dtype=tokens.dtype).masked_fill_(~mask, -torch.inf)
        return Text(tokens, unseen[:, None, None])

    def tokens_of(self, condition: Tensor) -> TextTokens:
        """Of condition [B, T, text_dim + 1]: tokens of equal length, and the learned one where there are none."""
        states, mask = TextTokens.of(condition)
        states = F.rms_norm(states.to(self.null_text.dtype), states.shape[-1:])
        is_first = torch.arange(mask.shape[1], device=mask.device) == 0
        is_null = is_first & ~mask.any(dim=1, keepdim=True)  # [B, T]
        return TextTokens(torch.where(is_null.unsqueeze(2), self.null_text, states), mask | is_null)

    def layout(self, height: int, width: int, device: torch.device) -> TextLayout:
        layout = super().layout(height, width, device)
        assert isinstance(layout, TextLayout)
        return layout

    def _make_layout(self, height: int, width: int, device: torch.device) -> TextLayout:
        layout = super()._make_layout(height, width, device)
        behind = max(layout.rows, layout.columns) + torch.arange(self.spec.max_tokens, device=device)
        rope = rope_table(behind.unsqueeze(1).expand(-1, 2), self.spec.dim // self.spec.num_heads)
        return TextLayout(**vars(layout), text_rope=rope)
