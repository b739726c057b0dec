"""All that jobs know of whoever makes their pictures, and of the settings: they are a guest with no other needs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from elit_serve.engine.picture import Preview, StepRun
from elit_serve.errors import ElitError
from elit_serve.http.schemas import GenerateRequest, GenerateResponse
from elit_serve.plans.formats import AnswerFormat


class PicturesUnderWay(Protocol):
    """What was submitted."""

    @property
    def future(self) -> Future[Any]:
        """Done with the pictures. Cancelling it gives them up."""

    def finish(self) -> bool:
        """Has them end with the fewest steps that their state allows; False if no step of them has run."""

    def answer(self) -> GenerateResponse | None:
        """What was made, or None if it was given up, once the future is done. Raises why it was not made:
        `EngineStopped` if somebody else may make it. To be called once."""


class PicturePort(Protocol):
    """Makes pictures, and says what that takes; used by any thread. See `server.guest.GuestPort`."""

    @property
    def is_open(self) -> bool:
        """Whether more work is taken."""

    @property
    def is_ready(self) -> bool:
        """Whether it is, and run without delay."""

    @property
    def has_died(self) -> bool:
        """Whether an engine ended by an error."""

    @property
    def max_batch(self) -> int:
        """Pictures that are made at a time."""

    def picture_s(self, request: GenerateRequest) -> float:
        """Seconds that a picture of its model takes, as a rule."""

    def output_format(self, request: GenerateRequest) -> AnswerFormat:
        """Of the files that a request gets."""

    def check(self, request: GenerateRequest) -> None:
        """Raises why such a request can never be taken."""

    def refused(self, request: GenerateRequest, error: ElitError) -> None:
        """Counts a request that was not taken by jobs themselves."""

    def submit(
        self,
        request: GenerateRequest,
        *,
        name: str,
        owner: str | None,
        waited_s: float,
        is_awaited: bool,
        num_previews: int,
        on_step: Callable[[StepRun], None],
        on_preview: Callable[[Preview], None] | None,
    ) -> PicturesUnderWay:
        """Has pictures made, or raises why not. owner: for whom. waited_s: since the request came. is_awaited: whether
        somebody waits to hear that."""


class JobSettings(Protocol):
    """What jobs are told: the settings of these names in `server.settings.Settings`."""

    @property
    def results(self) -> str | None: ...
    @property
    def results_bytes(self) -> int: ...
    @property
    def results_seconds(self) -> float: ...
    @property
    def database(self) -> str | None: ...
    @property
    def max_jobs(self) -> int: ...
    @property
    def webhook_host(self) -> tuple[str, ...]: ...
    @property
    def webhook_secret_file(self) -> str | None: ...
