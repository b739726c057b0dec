"""Who is told what a worker does, as the server's metrics are."""

from __future__ import annotations

from collections.abc import Sequence

from elit_serve.engine.cost import Cost
from elit_serve.scheduler.requests import Launch

# Of an order whose replica was lost: another makes it again; none has room for it in what is left of its time; that is
# over; or it has lost so many replicas that it may be to blame.
FATES = ("made_again", "no_room", "too_late", "given_up")


class Observer:
    """Is told what happens, on the thread where it happens; this one does nothing with it."""

    def step_finished(self, launch: Launch, observed_ms: float | None, gap_ms: float | None) -> None:
        """observed_ms: what it took on the device; None if it did not run as it was planned. gap_ms: for how long the
        device had nothing to run before it, though there was work; None where it had rested, or prepared it."""

    def images_decoded(self, took_ms: float) -> None:
        """All that ended with a step, on the device. Called on a thread of the encoders."""

    def spent(self, owners: Sequence[str | None], costs: Sequence[Cost]) -> None:
        """On pictures of these owners, by what they ran or were decoded in together. Called on the worker's thread or
        the encoders'."""

    def images_failed(self, cause: str, num_images: int) -> None:
        """cause: `step`, `memory`, `nan` or `encoding`."""

    def order_lost(self, fate: str) -> None:
        """Its replica was lost while it made an order. fate: see `FATES`."""
