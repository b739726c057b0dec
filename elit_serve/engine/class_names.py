"""Which class of a model a text means: the one place where labels and prompts are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from unicodedata import normalize

from elit_serve.errors import InvalidInput
from elit_serve.text.digits import is_digits, whole_number
from elit_serve.text.spelling import Names

MAX_LENGTH = 200  # of a text that is compared in its folded form: folding takes quadratic time in combining marks


class ClassNames:
    """The classes of a model by name. model: what errors call it."""

    def __init__(self, names: Sequence[str], *, model: str) -> None:
        self._names = tuple(names)
        self._model = model
        self._spellings = Names(self._names)
        self._ids = {name: index for index, name in enumerate(self._names)}
        by_fold = [folded(name) for name in self._names]
        count = Counter(by_fold)
        # names that differ in nothing else have to be spelled out
        self._folded_ids = {name: index for index, name in enumerate(by_fold) if count[name] == 1}

    def has(self, name: str) -> bool:
        """Whether a class has exactly this name."""
        return name in self._ids

    def id_of(self, label: str | int, *, field: str) -> int:
        """The index of the class that has this name, or this index.

        A name may be in any case and Unicode form, with spaces for hyphens. Raises `InvalidInput` for `field`, with the
        nearest names.
        """
        index = self._index_of(label, field) if isinstance(label, str) else label
        if index is None or not 0 <= index < len(self._names):
            raise InvalidInput(field, label, f"class ids run from 0 to {len(self._names) - 1}")
        return index

    def _index_of(self, label: str, field: str) -> int | None:
        """None for a number of too many digits."""
        name = folded(label) if len(label) <= MAX_LENGTH else label
        index = self._ids.get(label, self._folded_ids.get(name))
        if index is not None:
            return index
        if is_digits(label.strip()):
            return whole_number(label.strip())
        nearest = self._spellings.like(name, at_most=3)
        shown = nearest or [*self._names[:5], "..."]
        hint = "the nearest is" if len(nearest) == 1 else "the nearest are" if nearest else "some are"
        raise InvalidInput(field, label, f"no class of {self._model} has this name; {hint} {', '.join(shown)}")


def folded(text: str) -> str:
    """The same for all spellings of a name: Unicode's caseless match by compatibility (section 3.13, D146), with
    hyphens for spaces."""
    form = normalize("NFKC", normalize("NFKC", text).casefold())
    return form.strip().replace(" ", "-")
