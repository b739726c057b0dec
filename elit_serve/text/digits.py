"""Whole numbers in text from outside.

Python's `int` is not for these: it takes the digits of every script, signs, spaces and underscores, and raises a plain
`ValueError` for more than 4300 digits.
"""

from __future__ import annotations

MAX_DIGITS = 18  # what they can say fits into 64 bits


def whole_number(text: str) -> int | None:
    """The number that up to 18 of the digits 0 to 9 spell; None for any other text.

    >>> whole_number("007"), whole_number("-1"), whole_number("9" * 5000)
    (7, None, None)
    """
    return int(text) if len(text) <= MAX_DIGITS and is_digits(text) else None


def is_digits(text: str) -> bool:
    """Whether it is one or more of the digits 0 to 9, however many."""
    return text.isascii() and text.isdigit()
