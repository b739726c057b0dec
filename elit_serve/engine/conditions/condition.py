"""What every kind of condition is to those who make pictures.

A model has one kind. Who draws pictures knows no more of a condition than this: it is asked for its facts, and put into
the slot of its picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from elit_serve.engine.text_encoders import TextEncoder
from elit_serve.errors import InvalidInput
from elit_serve.nn import Backbone


class Condition(Protocol):
    """What one picture is of; a frozen value, which may go to another process."""

    @property
    def words(self) -> str:
        """For people."""

    @property
    def is_personal(self) -> bool:
        """Whether its words are somebody's own, so that others are told of them only where settings say so."""

    def facts(self) -> dict[str, Any]:
        """What names it again, for answers and for the picture's own metadata."""


class ConditionSlots(Protocol):
    """The conditions of all pictures on a device, by slot."""

    def put(self, slots: Sequence[int], conditions: Sequence[Condition]) -> None:
        """From now on in these slots."""

    def without(self, slot: int) -> int:
        """The index of what a weak pass that drops the condition is told for the picture in this slot."""

    def at(self, index: Tensor) -> Any:
        """What the model is told (`Backbone.read_once`), for each index [B] on the device: slots,
        and what `without` gives."""


class Conditions(Protocol):
    """The conditions that a model knows; as a sequence, those that there are to show and to try it with."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Condition: ...

    @property
    def encoder(self) -> TextEncoder | None:
        """What makes tensors of texts; None where there are none, or nothing is made."""

    def named(self, words: str | int, *, field: str = "label") -> Condition:
        """Raises `InvalidInput` for `field` if it knows none of these words."""

    def prompted(self, prompt: str, negative: str | None = None, *, field: str = "prompt") -> Condition:
        """What a prompt means, beside one for what should not be seen. Raises `InvalidInput` for `field` or for
        `negative_prompt`."""

    def nothing_said(self) -> InvalidInput:
        """What a caller is told who says nothing of what the pictures are of."""

    def subject(self, prompt: str, negative: str | None = None) -> dict[str, Any]:
        """The fields of a request for what a prompt means, where a class id may be said in one too. Raises as
        `prompted` does."""

    def num_unknown(self, condition: Condition) -> int:
        """How many texts would have to be encoded for it now; from any thread."""

    def slots(self, num_slots: int, model: Backbone) -> ConditionSlots:
        """On the device of the model."""
