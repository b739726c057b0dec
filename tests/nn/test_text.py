"""Encoded texts as one tensor: nothing is lost on the way but what there is no place for."""

from __future__ import annotations

import torch

from elit_serve.nn.text import TextTokens, packed


def test_texts_come_out_as_they_went_in_with_padding_behind_them() -> None:
    states, mask = torch.randn(2, 3, 5), torch.tensor([[True, True, False], [True, True, True]])
    tokens = TextTokens.of(packed(states, mask, 4))
    assert tokens.mask.tolist() == [[True, True, False, False], [True, True, True, False]]
    assert torch.equal(tokens.states[0, :2], states[0, :2])
    assert torch.equal(tokens.states[1, :3], states[1])
    assert not tokens.states[~tokens.mask].any()


def test_padding_in_front_is_moved_behind() -> None:
    states = torch.tensor([[[9.0], [1.0], [9.0], [2.0]]])
    assert packed(states, torch.tensor([[0, 1, 0, 1]]), 4).tolist() == [[[1, 1], [2, 1], [0, 0], [0, 0]]]


def test_of_a_text_that_is_too_long_the_first_tokens_are_kept() -> None:
    states, mask = torch.arange(6.0).view(1, 6, 1), torch.ones(1, 6, dtype=torch.long)
    tokens = TextTokens.of(packed(states, mask, 2))
    assert (tokens.states.flatten().tolist(), tokens.mask.tolist()) == ([0, 1], [[True, True]])


def test_a_text_without_tokens_is_padding() -> None:
    assert not packed(torch.ones(1, 2, 3), torch.zeros(1, 2), 3).any()
    assert packed(torch.ones(1, 0, 3), torch.zeros(1, 0), 3).shape == (1, 3, 4)


def test_the_type_of_the_states_stays() -> None:
    assert packed(torch.ones(1, 2, 3, dtype=torch.bfloat16), torch.ones(1, 2), 2).dtype == torch.bfloat16
