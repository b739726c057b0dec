"""What happens on other threads becomes events, in order, with something said in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.sse import KEEPALIVE_COMMENT
from pydantic import BaseModel

import elit_serve
from elit_serve.http import events
from elit_serve.http.events import Mailbox, event


class Word(BaseModel):
    text: str


def written(number: int) -> bytes:
    return event("number", str(number), event_id=f"a-{number}")


def read_all(write: Callable[[Mailbox[int]], None]) -> list[bytes]:
    """What a reader gets of a mailbox that another thread writes into."""

    async def read() -> list[bytes]:
        mailbox: Mailbox[int] = Mailbox()
        threading.Thread(target=write, args=(mailbox,)).start()
        return [text async for text in mailbox.events(written)]

    return asyncio.run(read())


def test_an_event_has_a_name_data_on_one_line_and_an_id() -> None:
    assert event("word", Word(text="two\nlines")) == b'event: word\ndata: {"text":"two\\nlines"}\n\n'
    assert written(3) == b"event: number\ndata: 3\nid: a-3\n\n"


def test_what_is_put_comes_out_in_order_until_the_end() -> None:
    def write(mailbox: Mailbox[int]) -> None:
        for number in range(100):
            mailbox.put(number)
        mailbox.put(None)
        mailbox.put(100)

    assert read_all(write) == [written(number) for number in range(100)]


def test_a_reader_hears_something_while_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.01)
    quiet = threading.Event()

    def write(mailbox: Mailbox[int]) -> None:
        quiet.wait(0.2)
        mailbox.put(1)
        mailbox.put(None)

    *comments, last = read_all(write)
    assert last == written(1)
    assert set(comments) == {KEEPALIVE_COMMENT}


def test_who_puts_something_when_the_reader_has_gone_is_not_troubled() -> None:
    async def made() -> Mailbox[int]:
        return Mailbox()

    asyncio.run(made()).put(1)


def test_no_other_module_writes_or_reads_events_by_hand() -> None:
    root = Path(elit_serve.__file__).parent
    knowing = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if "text/event-stream" in path.read_text("utf-8")
    }
    assert knowing <= {"client/requests.py", "server/middleware/forwarding.py"}  # the latter passes on what it is sent
