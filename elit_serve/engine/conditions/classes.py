"""Pictures of one of a model's classes: how words name it, and how the device keeps it beside the samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from unicodedata import normalize

import torch
from torch import Tensor

from elit_serve.engine.conditions.condition import Condition
from elit_serve.errors import InvalidInput
from elit_serve.nn import Backbone
from elit_serve.text.digits import is_digits, whole_number
from elit_serve.text.spelling import Names

MAX_LENGTH = 200  # of a text that is compared in its folded form: folding takes quadratic time in combining marks


@dataclass(frozen=True)
class ClassCondition:
    """One of the classes that a model was trained with."""

    is_personal: ClassVar[bool] = False

    class_id: int
    name: str

    @property
    def words(self) -> str:
        return self.name

    def facts(self) -> dict[str, Any]:
        return {"label": self.name, "class_id": self.class_id}


class ClassSlots:
    """Class ids, int64 [num_slots + 1]; the last is the model's id for no class."""

    def __init__(self, num_slots: int, null_class: int, device: torch.device) -> None:
        self._ids = torch.zeros(num_slots + 1, dtype=torch.int64, device=device)
        self._ids[num_slots] = null_class

    def put(self, slots: Sequence[int], conditions: Sequence[Condition]) -> None:
        for slot, condition in zip(slots, conditions, strict=True):
            assert isinstance(condition, ClassCondition), condition
            self._ids[slot].fill_(condition.class_id)

    def without(self, slot: int) -> int:  # noqa: ARG002 (it is the same for all)
        return len(self._ids) - 1

    def at(self, index: Tensor) -> Tensor:
        return self._ids.index_select(0, index)


class ClassConditions(Sequence[ClassCondition]):
    """The classes of a model, by id, by name, and by one of the synonyms that commas separate in a name.

    model: what errors call it.
    """

    def __init__(self, names: Sequence[str], *, model: str) -> None:
        self._classes = tuple(ClassCondition(index, name) for index, name in enumerate(names))
        self._model = model
        self._by_name = {each.name: each for each in self._classes}
        whole = [(folded(each.name), each) for each in self._classes]
        synonyms = [(fold, each) for each in self._classes for fold in {folded(each.name), *_synonyms(each.name)}]
        # names that differ in nothing else have to be spelled out, and a synonym of two classes is none
        self._by_fold = _unambiguous(synonyms) | _unambiguous(whole)
        self._spellings = Names({*names, *(word for name in names for word in name.split(", "))})

    encoder = None

    def __len__(self) -> int:
        return len(self._classes)

    def __getitem__(self, index: Any) -> Any:
        return self._classes[index]

    def num_unknown(self, condition: Condition) -> int:  # noqa: ARG002
        return 0

    def slots(self, num_slots: int, model: Backbone) -> ClassSlots:
        return ClassSlots(num_slots, len(self._classes), next(model.parameters()).device)

    def named(self, words: str | int, *, field: str = "label") -> ClassCondition:
        """The class that has this name, or this id.

        A name may be in any case and Unicode form, with spaces for hyphens. Raises `InvalidInput` for `field`, with the
        nearest names.
        """
        found = self._of_text(words, field) if isinstance(words, str) else self._of_id(words)
        if found is None:
            raise InvalidInput(field, words, f"class ids run from 0 to {len(self._classes) - 1}")
        return found

    def prompted(self, prompt: str, negative: str | None = None, *, field: str = "prompt") -> ClassCondition:
        """The class whose name is this prompt; an id is none, and no class has a negative."""
        self._refuse(negative)
        if is_digits(prompt.strip()) and prompt not in self._by_name:
            raise InvalidInput(field, prompt, "exactly a class name; a class id goes into label")
        return self.named(prompt, field=field)

    def nothing_said(self) -> InvalidInput:
        return InvalidInput("label", None, "a class name or id, or a prompt that is exactly a class name")

    def subject(self, prompt: str, negative: str | None = None) -> dict[str, Any]:
        self._refuse(negative)
        return {"label": self.named(prompt, field="prompt").class_id}

    def _refuse(self, negative: str | None) -> None:
        if negative is not None:
            raise InvalidInput("negative_prompt", negative, f"left out: {self._model} knows classes and no other words")

    def _of_id(self, index: int | None) -> ClassCondition | None:
        return self._classes[index] if index is not None and 0 <= index < len(self._classes) else None

    def _of_text(self, text: str, field: str) -> ClassCondition | None:
        """None for a number that is no id."""
        name = folded(text) if len(text) <= MAX_LENGTH else text
        found = self._by_name.get(text, self._by_fold.get(name))
        if found is not None:
            return found
        if is_digits(text.strip()):
            return self._of_id(whole_number(text.strip()))
        nearest = self._spellings.like(name, at_most=3)
        shown = nearest or [*(each.name for each in self._classes[:5]), "..."]
        hint = "the nearest is" if len(nearest) == 1 else "the nearest are" if nearest else "some are"
        raise InvalidInput(field, text, f"no class of {self._model} has this name; {hint} {', '.join(shown)}")


def _synonyms(name: str) -> set[str]:
    """Those in a name, folded: `tench, Tinca tinca` has two."""
    return {folded(word) for word in name.split(", ")}


def _unambiguous(spelled: Sequence[tuple[str, ClassCondition]]) -> dict[str, ClassCondition]:
    """By its spelling, what no other class shares it with."""
    count = Counter(spelling for spelling, _ in spelled)
    return {spelling: each for spelling, each in spelled if count[spelling] == 1}


def folded(text: str) -> str:
    """The same for all spellings of a name: Unicode's caseless match by compatibility (section 3.13, D146), with
    hyphens for spaces."""
    form = normalize("NFKC", normalize("NFKC", text).casefold())
    return form.strip().replace(" ", "-")
