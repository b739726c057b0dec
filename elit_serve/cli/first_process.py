"""What a command must see to when it is process 1, as which a container runs it."""

from __future__ import annotations

import os
import signal
from types import FrameType


def end_when_told() -> None:
    """Ends at SIGTERM and SIGHUP. For any other process the kernel does this; process 1 gets no signal for which it has
    no handler, so stopping a container would wait until it is killed. What a command does at these signals comes later:
    a server drains once it listens, a run saves once it trains."""
    if os.getpid() == 1:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)  # at once, as the kernel does it, with the status that shells show for it
