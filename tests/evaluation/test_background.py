"""The thread beside the device."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from elit_serve.evaluation.runs.background import in_background


def test_items_are_taken_so_many_ahead_of_results_and_worked_on_by_another_thread() -> None:
    taken: list[int] = []
    threads: set[int] = set()

    def items() -> Iterator[int]:
        for item in range(6):
            taken.append(item)
            yield item

    def work(item: int) -> int:
        threads.add(threading.get_ident())
        return item * item

    found = in_background(work, items(), ahead=2)
    assert next(found) == 0
    assert taken == [0, 1, 2]
    assert list(found) == [1, 4, 9, 16, 25]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_what_goes_wrong_is_raised_where_the_result_is_taken() -> None:
    found = in_background(lambda item: 1 // item, [1, 0, 1], ahead=1)
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)
