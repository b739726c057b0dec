"""Work beside the device: what the host has to do for the next or the last batch while the device runs this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def in_background(work: Callable[[A], B], items: Iterable[A], *, ahead: int) -> Iterator[B]:
    """work(item) of every item, in order, done by one thread, which the items are `ahead` of what is taken.

    >>> list(in_background(str, [1, 2, 3], ahead=1))
    ['1', '2', '3']
    """
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="elit-evaluation") as thread:
        for item in items:
            waiting.append(thread.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
