"""Prompts as conditions: which there are, and what the model is told of them."""

from __future__ import annotations

import pytest
import torch
from text_models import KIND, MAX_TOKENS, Letters, ToyText, text_config

from elit_serve.engine.conditions import TextCondition, TextConditions
from elit_serve.engine.executor import offline
from elit_serve.engine.text_encoders import CachedEncoder
from elit_serve.errors import InvalidInput
from elit_serve.nn.text import TextTokens
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan


def conditions(*, negative: bool = False, encoder: Letters | None = None) -> TextConditions:
    return TextConditions(text_config(negative=negative), model="painter", encoder=CachedEncoder(encoder or Letters()))


@pytest.fixture(scope="module")
def model() -> ToyText:
    torch.manual_seed(0)
    return ToyText(KIND.tiny).eval().requires_grad_(False)


@pytest.mark.parametrize("prompt", ["", " ", "a rose", "x" * 10_000, "牡丹 и роза", "rose\0\x07\n", "👩‍🌾", "7"])
def test_a_prompt_is_any_text(prompt: str) -> None:
    assert conditions().prompted(prompt) == TextCondition(prompt)


@pytest.mark.parametrize("prompt", ["x" * 10_001, "half a pair \ud83d"])
def test_what_is_no_text_or_too_long_is_refused(prompt: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        conditions().prompted(prompt)
    assert refused.value.field == "prompt"
    with pytest.raises(InvalidInput) as refused:
        conditions().prompted(prompt, field="show")
    assert refused.value.field == "show"
    with pytest.raises(InvalidInput) as refused:
        conditions(negative=True).prompted("a rose", prompt)
    assert refused.value.field == "negative_prompt"
    assert len(str(refused.value)) < 300
    str(refused.value).encode()


def test_a_model_of_prompts_knows_no_labels() -> None:
    with pytest.raises(InvalidInput, match=r"label: 3 .*painter makes pictures of a prompt, and knows no classes"):
        conditions().named(3)


def test_only_some_models_know_negative_prompts() -> None:
    with pytest.raises(InvalidInput, match="painter knows no negative prompts"):
        conditions().prompted("a rose", "thorns")
    rose = conditions(negative=True).prompted("a rose", "thorns")
    assert rose.facts() == {"prompt": "a rose", "negative_prompt": "thorns"}


def test_where_nothing_is_encoded_a_prompt_and_a_negative_one_are_two_texts() -> None:
    paper = TextConditions(text_config(negative=True), model="painter")
    asked = [TextCondition("a rose"), TextCondition("a rose", ""), TextCondition("a rose", "thorns")]
    assert [paper.num_unknown(condition) for condition in asked] == [1, 1, 2]


def test_as_a_sequence_they_are_the_examples() -> None:
    assert [each.words for each in conditions()] == ["a red tulip", "two daisies"]


def test_slots_tell_the_model_each_prompt_and_what_it_has_learned_for_none(model: ToyText) -> None:
    encoder = Letters()
    slots = conditions(encoder=encoder).slots(3, model)
    slots.put([2, 0], [TextCondition("ab"), TextCondition("abcdefgh")])
    assert encoder.calls == [["ab", "abcdefgh"]]  # together
    told = TextTokens.of(slots.at(torch.tensor([0, 2, slots.without(0), slots.without(2)])))
    assert told.mask.sum(dim=1).tolist() == [MAX_TOKENS, 2, 1, 1]
    assert torch.equal(told.states[2, 0], model.no_text)
    assert torch.equal(told.states[0, :2], told.states[1, :2])


def test_slots_tell_the_model_the_negative_or_empty_prompt_of_each_picture(model: ToyText) -> None:
    slots = conditions(negative=True).slots(3, model)
    slots.put([1, 2], [TextCondition("ab", "abc"), TextCondition("ab")])
    told = TextTokens.of(slots.at(torch.tensor([1, 2, slots.without(1), slots.without(2)])))
    assert told.mask.sum(dim=1).tolist() == [2, 2, 3, 0]


def test_pictures_of_one_batch_have_prompts_of_their_own(model: ToyText) -> None:
    drawing = offline.BareModel(
        model=model, device=torch.device("cpu"), conditions=conditions(negative=True), shapes=(model.spec.shape,)
    )
    plan = Plan(levels=(4, 4), guidance=Guidance(method="ccfg", scale=3.0, weak_level=1))
    asked = [TextCondition("rose"), TextCondition("tulip"), TextCondition("rose", "thorns")]
    together = offline.samples_of(drawing, asked, [7, 7, 7], plan, model.spec.shape)
    for one, sample in zip(asked, together, strict=True):
        (alone,) = offline.samples_of(drawing, [one], [7], plan, model.spec.shape)
        torch.testing.assert_close(alone, sample)
    assert not torch.allclose(together[0], together[1])
    assert not torch.allclose(together[0], together[2])
