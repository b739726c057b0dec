"""How this process was started, for files that hold figures."""

from __future__ import annotations

import shlex
import sys


def command_line(*secrets: str | None) -> str:
    """The command as a shell would take it, without the values of these options."""
    words = ["elit-serve", *sys.argv[1:]]
    for secret in filter(None, secrets):
        words = [word.replace(secret, "***") for word in words]
    return shlex.join(words)
