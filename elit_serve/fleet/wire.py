"""Messages as bytes: what goes between an ingress and a replica past Ray.

Each is one frame: its length, the number of the exchange that it belongs to, and its kind, and then its fields in
msgpack, which pydantic checks when they are read. Nothing is unpickled.
"""

from __future__ import annotations

from asyncio import StreamReader
from collections.abc import Mapping
from dataclasses import dataclass, fields
from struct import Struct
from typing import Annotated, Any, get_type_hints

import msgpack
from pydantic import AfterValidator, PlainSerializer, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from elit_serve import errors
from elit_serve.engine.conditions import AnyCondition
from elit_serve.engine.order import Order
from elit_serve.engine.picture import Outcome, Preview, StepRun
from elit_serve.errors import ElitError, restored
from elit_serve.fleet.messages import Failed, HowAreYou, Published, Refused, Reply, SentOrder, Taken

HEADER = Struct(">IQB")  # length of what follows, exchange, kind
MAX_FRAME = 1 << 30  # bytes: more than the pictures of any order
MAX_FAULTS = 5  # that are told of a frame


class BadFrame(Exception):
    """The other end has sent what is no message. Says why."""


@dataclass(frozen=True)
class GivenUp:
    """Whoever says it is through with this exchange before its end: nobody waits for the answer, or there is none."""


Asked = SentOrder | HowAreYou
Answer = Reply | Published
Message = Asked | Answer | GivenUp


def _told(kind: type[Any], **others: Any) -> Any:
    """A dataclass as pydantic writes and reads it, with another type than its own for some fields."""
    hints = get_type_hints(kind) | others
    shape: Any = TypedDict(f"Told{kind.__name__}", hints)  # type: ignore[misc]
    adapter: TypeAdapter[Any] = TypeAdapter(shape)
    names = [field.name for field in fields(kind)]

    def written(value: Any) -> dict[str, Any]:
        plain: dict[str, Any] = adapter.dump_python({name: getattr(value, name) for name in names})
        return plain

    return Annotated[shape, AfterValidator(lambda told: kind(**told)), PlainSerializer(written)]


class _PlainError(TypedDict):
    kind: str
    words: str
    values: dict[str, Any]


def _written_error(error: ElitError) -> dict[str, Any]:
    return {"kind": type(error).__name__, "words": str(error), "values": vars(error)}


def _read_error(told: _PlainError) -> ElitError:
    kind = getattr(errors, told["kind"], None)
    if not (isinstance(kind, type) and issubclass(kind, ElitError)):
        raise PydanticCustomError("no_error_of_ours", "it names no error of ours")
    return restored(kind, (told["words"],), told["values"])


ToldError = Annotated[_PlainError, AfterValidator(_read_error), PlainSerializer(_written_error)]
ToldOrder = _told(Order, condition=AnyCondition, open_plans=None)  # who makes it has open plans of his own

KINDS: Mapping[type[Message], TypeAdapter[Any]] = {
    SentOrder: TypeAdapter(_told(SentOrder, order=ToldOrder)),
    HowAreYou: TypeAdapter(HowAreYou),
    Published: TypeAdapter(Published),
    GivenUp: TypeAdapter(GivenUp),
    Taken: TypeAdapter(Taken),
    Refused: TypeAdapter(_told(Refused, error=ToldError)),
    StepRun: TypeAdapter(StepRun),
    Preview: TypeAdapter(Preview),
    Outcome: TypeAdapter(_told(Outcome, order=ToldOrder)),
    Failed: TypeAdapter(_told(Failed, error=ToldError)),
}
_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
_ADAPTERS = tuple(KINDS.values())


def frame(exchange: int, message: Message) -> bytes:
    kind = type(message)
    body: bytes = msgpack.packb(KINDS[kind].dump_python(message))
    return HEADER.pack(len(body), exchange, _NUMBERS[kind]) + body


async def read_frame(reader: StreamReader) -> tuple[int, Message]:
    """The next message, and the number of its exchange. Raises `BadFrame`, and `EOFError` where there is none."""
    length, exchange, number = HEADER.unpack(await reader.readexactly(HEADER.size))
    if length > MAX_FRAME or number >= len(_ADAPTERS):
        raise BadFrame(f"a frame of {length} bytes and kind {number}")
    body = await reader.readexactly(length)
    try:
        return exchange, _ADAPTERS[number].validate_python(msgpack.unpackb(body, strict_map_key=False))
    except ValidationError as error:
        raise BadFrame(_faults(error)) from None
    except (ValueError, TypeError, ElitError) as error:
        raise BadFrame(type(error).__name__) from None


def _faults(error: ValidationError) -> str:
    """Which fields are wrong, and how; not what was given, as that may be a prompt, which belongs in no log."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_FAULTS]
    return ", ".join(f"{'.'.join(map(str, each['loc'])) or 'all of it'}: {each['type']}" for each in found)
