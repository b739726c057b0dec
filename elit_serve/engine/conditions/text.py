"""Pictures of what a prompt says: any words, with words for what should not be seen where the model has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from elit_serve.engine.conditions.condition import Condition
from elit_serve.engine.text_encoders import CachedEncoder, TextEncoder
from elit_serve.errors import InvalidInput
from elit_serve.files.config import TextConfig
from elit_serve.nn import Backbone
from elit_serve.nn.text import TextInput, for_each, tensors_of
from elit_serve.plans.bounds import MAX_PROMPT


@dataclass(frozen=True)
class TextCondition:
    """A prompt. negative: what should not be seen; None leaves it to the model."""

    is_personal: ClassVar[bool] = True

    prompt: str
    negative: str | None = None

    @property
    def words(self) -> str:
        return self.prompt

    def facts(self) -> dict[str, Any]:
        negative = {} if self.negative is None else {"negative_prompt": self.negative}
        return {"prompt": self.prompt, **negative}


class TextSlots:
    """What the model is told of prompts, read once: first those of all slots, and then what weak passes are told.

    That is the negative or the empty prompt of each slot, where the model has these; else one row, what the model has
    learned for no text.
    """

    def __init__(self, num_slots: int, encoder: TextEncoder, model: Backbone, *, has_negatives: bool) -> None:
        rows = 2 * num_slots if has_negatives else num_slots + 1
        size, device = (1, encoder.max_tokens, encoder.dim + 1), next(model.parameters()).device
        no_text = torch.zeros(size, dtype=encoder.dtype, device=device)
        self._num_slots, self._encoder, self._model, self._has_negatives = num_slots, encoder, model, has_negatives
        with torch.no_grad():
            nothing = model.read_once(no_text if has_negatives else model.null_like(no_text))
            self._rows = for_each(lambda each: each.repeat(rows, *[1] * (each.dim() - 1)), nothing)

    @torch.no_grad()
    def put(self, slots: Sequence[int], conditions: Sequence[Condition]) -> None:
        """Encodes them together."""
        wanted = [_checked(condition) for condition in conditions]
        rows, texts = [*slots], [each.prompt for each in wanted]
        if self._has_negatives:
            rows += [self.without(slot) for slot in slots]
            texts += [each.negative or "" for each in wanted]
        told = self._model.read_once(self._encoder.encode(texts))
        for count, row in enumerate(rows):
            for kept, made in zip(tensors_of(self._rows), tensors_of(told), strict=True):
                kept[row].copy_(made[count])

    def without(self, slot: int) -> int:
        return self._num_slots + slot if self._has_negatives else self._num_slots

    def at(self, index: Tensor) -> TextInput:
        return for_each(lambda each: each.index_select(0, index), self._rows)


class TextConditions(Sequence[TextCondition]):
    """All prompts; as a sequence, the examples of the model.

    model: what errors call it. encoder: None where nothing is made, and no slots are asked for.
    """

    def __init__(self, config: TextConfig, *, model: str, encoder: CachedEncoder | None = None) -> None:
        self._examples = tuple(map(TextCondition, config.examples))
        self._has_negatives = config.negative
        self._model = model
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        return self._examples[index]

    def named(self, words: str | int, *, field: str = "label") -> TextCondition:
        """Raises `InvalidInput`: there are no names."""
        raise InvalidInput(field, words, f"left out: {self._model} makes pictures of a prompt, and knows no classes")

    def prompted(self, prompt: str, negative: str | None = None, *, field: str = "prompt") -> TextCondition:
        if negative is not None and not self._has_negatives:
            raise InvalidInput("negative_prompt", negative, f"left out: {self._model} knows no negative prompts")
        return TextCondition(_text(prompt, field), None if negative is None else _text(negative, "negative_prompt"))

    def nothing_said(self) -> InvalidInput:
        return InvalidInput("prompt", None, "what the pictures are to show; it may be empty")

    def subject(self, prompt: str, negative: str | None = None) -> dict[str, Any]:
        return self.prompted(prompt, negative).facts()

    def num_unknown(self, condition: Condition) -> int:
        """Where nothing is encoded, no text counts as known but the empty negative, which most pictures share."""
        told = _checked(condition)
        if self.encoder is None:
            return len({told.prompt, told.negative or told.prompt})
        texts = {told.prompt, told.negative or ""} if self._has_negatives else {told.prompt}
        return sum(not self.encoder.knows(text) for text in texts)

    def slots(self, num_slots: int, model: Backbone) -> TextSlots:
        assert self.encoder is not None, "a model without its weights makes nothing"
        return TextSlots(num_slots, self.encoder, model, has_negatives=self._has_negatives)


def _checked(condition: Condition) -> TextCondition:
    assert isinstance(condition, TextCondition), condition
    return condition


def _text(text: str, field: str) -> str:
    """Any text that is not too long, and that UTF-8 has: half of a surrogate pair is no character."""
    if len(text) > MAX_PROMPT:
        raise InvalidInput(field, f"{len(text)} characters", f"at most {MAX_PROMPT} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(field, ascii(text), "text of whole Unicode characters") from None
    return text
