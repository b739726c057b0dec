"""What was typed to start this process, for files that hold figures and for names that people look up."""

from __future__ import annotations

import shlex
import sys


def command_line(*secrets: str | None) -> str:
    """The command as a shell would take it, without the values of these options."""
    words = ["elit-serve", *map(readable, sys.argv[1:])]
    for secret in filter(None, secrets):
        words = [word.replace(secret, "***") for word in words]
    return shlex.join(words)


def readable(text: str) -> str:
    """An argument or a file's name, which has bytes in it that the locale could not read: in UTF-8, if that can."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
