"""The fields of a spec: what each may be, so that a table from a file is read with all that is wrong with it at once.

A spec is a frozen dataclass whose fields are made by `whole`, `number`, `flag`, `one_of`, `pair`, `several` and
`nested`. It is checked in the same way when it is built in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from elit_serve.errors import ElitError, InvalidInput


class SpecProblem(NamedTuple):
    """place: the keys down to a value. value: what is there, None where nothing or a whole table is. what: is wrong."""

    place: tuple[str, ...]
    value: object
    what: str


class InvalidSpec(ElitError):
    """A table that is no spec; `problems` has all that is wrong."""

    def __init__(self, problems: list[SpecProblem]) -> None:
        super().__init__("; ".join(": ".join(filter(None, (".".join(place), what))) for place, _, what in problems))
        self.problems = tuple(problems)


class _Checked(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Read = Callable[[object], Any]  # a value of a file -> that of the field; raises ValueError or InvalidSpec
S = TypeVar("S", bound=_Checked)


def whole(low: int, high: int, default: Any = MISSING) -> Any:
    """A field for an integer in low..high, or for None if that is the default."""

    def read(value: object) -> int | None:
        if value is None and default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return _field(read, default)


def number(low: float, high: float, default: Any = MISSING) -> Any:
    """A field for a number in low..high."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return float(value)

    return _field(read, default)


def flag(default: Any = MISSING) -> Any:
    """A field for true or false."""

    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value

    return _field(read, default)


def one_of(words: tuple[str, ...], default: Any = MISSING) -> Any:
    """A field for one of some words."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return value

    return _field(read, default)


def pair(low: int, high: int, default: Any = MISSING) -> Any:
    """A field for two integers in low..high."""
    return several(2, low, high, default)


def several(count: int, low: int, high: int, default: Any = MISSING) -> Any:
    """A field for so many integers in low..high."""

    def read(value: object) -> tuple[int, ...]:
        numbers = value if isinstance(value, list | tuple) else ()
        if len(numbers) != count or any(type(number) is not int or not low <= number <= high for number in numbers):
            raise ValueError(f"{count} whole numbers from {low} to {high}")
        return tuple(numbers)

    return _field(read, default)


def nested(kind: type[_Checked]) -> Any:
    """A field for a table of its own."""

    def read(value: object) -> object:
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise ValueError("a table")
        return parse(kind, value)

    return _field(read, MISSING)


def _field(read: Read, default: Any) -> Any:
    return field(default=default, metadata={"read": read})


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A dataclass that is checked field by field as it is made, and then as a whole by `check`."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            try:
                each.metadata["read"](value)
            except ValueError as error:
                raise InvalidInput(each.name, value, str(error)) from None
        self.check()

    def check(self) -> None:
        """Raises `InvalidInput` where fields do not fit together."""


def parse(kind: type[S], table: Mapping[str, object]) -> S:
    """The spec that a table of a file describes. Raises `InvalidSpec` with all that is wrong."""
    problems: list[SpecProblem] = []
    known = {each.name: each for each in fields(kind)}
    problems += [SpecProblem((name,), None, "Extra inputs are not permitted") for name in table if name not in known]
    values = {}
    for name, each in known.items():
        if name not in table:
            if each.default is MISSING:
                problems.append(SpecProblem((name,), None, "Field required"))
            continue
        try:
            values[name] = each.metadata["read"](table[name])
        except InvalidSpec as inner:
            problems += [SpecProblem((name, *place), value, what) for place, value, what in inner.problems]
        except InvalidInput as error:
            problems.append(SpecProblem((name,), None, str(error)))
        except ValueError as error:
            problems.append(SpecProblem((name,), table[name], str(error)))
    if problems:
        raise InvalidSpec(problems)
    try:
        return kind(**values)
    except InvalidInput as error:
        raise InvalidSpec([SpecProblem((), None, str(error))]) from None


def as_table(spec: _Checked, *, in_full: bool = False) -> dict[str, Any]:
    """The fields of a spec as a file holds them; what is as it would be anyway is left out, unless `in_full`."""
    table = {}
    for each in fields(spec):
        value = getattr(spec, each.name)
        if in_full or value != each.default:
            plain = as_table(value, in_full=in_full) if is_dataclass(value) and not isinstance(value, type) else value
            table[each.name] = list(plain) if isinstance(plain, tuple) else plain
    return table
