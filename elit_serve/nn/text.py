"""Encoded texts as one tensor, so that whatever carries a condition carries them unchanged.

Letters: B batch, T the places for tokens that every text of a model has, D width of a token.

A batch of texts is `[B, T, D + 1]`: the state of each token and, in the last place, 1 where there is a token and 0
where there is padding, whose states are 0. Padding stands at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor


class TextTokens(NamedTuple):
    """Texts as a backbone reads them. states: [B, T, D]. mask: bool [B, T], where there is a token."""

    states: Tensor
    mask: Tensor

    @classmethod
    def of(cls, condition: Tensor) -> Self:
        """The tokens of packed texts [B, T, D + 1]."""
        return cls(condition[..., :-1], condition[..., -1] > 0)


class ReadText(NamedTuple):
    """Texts as the blocks of a backbone have read them, where that is the same at every step of a picture. words: keys
    and values for all L blocks [B, L, 2, H, T, E]. mask: bool [B, T], where there is a token."""

    words: Tensor
    mask: Tensor


TextInput = Tensor | ReadText  # what a backbone is told of texts: packed, or read once for all steps


def opened(told: TextInput) -> TextTokens | ReadText:
    """As a backbone reads it."""
    return TextTokens.of(told) if isinstance(told, Tensor) else told


def for_each(change: Callable[[Tensor], Tensor], told: TextInput) -> TextInput:
    """The same with all tensors changed."""
    return change(told) if isinstance(told, Tensor) else ReadText(*map(change, told))


def tensors_of(told: TextInput) -> tuple[Tensor, ...]:
    """All of them."""
    return (told,) if isinstance(told, Tensor) else told


def packed(states: Tensor, mask: Tensor, length: int) -> Tensor:
    """Texts of any length N as a model with `length` places has them.

    states [B, N, D], mask [B, N], of any type that is true where there is a token, wherever these stand; of a text with
    more than `length` tokens the first ones are kept. -> [B, length, D + 1], of the type of the states
    """
    own = mask.bool()
    order = torch.argsort(~own, dim=1, stable=True)[:, :length]  # tokens first, in their order
    own = own.gather(1, order).unsqueeze(-1)
    kept = states.gather(1, order.unsqueeze(-1).expand(-1, -1, states.shape[-1])).masked_fill(~own, 0)
    tokens = torch.cat([kept, own.to(states.dtype)], dim=-1)
    padding = tokens.new_zeros(len(tokens), length - tokens.shape[1], tokens.shape[2])
    return torch.cat([tokens, padding], dim=1)
