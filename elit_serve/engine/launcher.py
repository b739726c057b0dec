"""Launches pictures on an executor, and what belongs right behind a step: previews, and the decoding of the last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from elit_serve.engine.encoders import Encoders
from elit_serve.engine.executor.slots import AnyExecutor, RunningStep, Transfer
from elit_serve.engine.picture import Caller, Picture, StepRun
from elit_serve.plans.step_kind import StepKind

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LaunchedPart:
    """Pictures of a launch that run together: all of them, but where memory did not suffice.

    watched: what to tell those who watch, once it has run.
    last: those whose last step it is; their samples are in `transfer`, in the same order, unless that failed.
    """

    pictures: Sequence[Picture]
    running: RunningStep
    watched: Sequence[tuple[Callable[[StepRun], None], StepRun]]
    last: Sequence[Picture]
    transfer: Transfer | None


class Launcher:
    """Used by the worker's thread alone; raises only if the device is lost, and everything on it.

    on_failure: is given what cannot be run, the error, and `step` or `memory`. on_small_memory: is given the largest
    batch to try from now on.
    """

    def __init__(
        self,
        executor: AnyExecutor,
        encoders: Encoders,
        *,
        on_failure: Callable[[Sequence[Picture], Exception, str], None],
        on_small_memory: Callable[[int], None],
    ) -> None:
        self._executor = executor
        self._encoders = encoders
        self._on_failure = on_failure
        self._on_small_memory = on_small_memory

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> list[LaunchedPart]:
        """Launches all at once or, if memory does not suffice, in halves. What cannot be run fails alone.

        Those whose first step it is get their slots, and what they are of is encoded, right before it.
        """
        try:
            pictures = self._begun(pictures)
            if not pictures:
                return []
            previewed = [picture for picture in pictures if picture.present_preview is not None]
            if previewed:
                self._executor.watch(previewed)
            running = self._executor.launch(pictures, kind)
        except torch.AcceleratorError:
            raise  # the device is lost, and everything on it
        except torch.OutOfMemoryError as error:
            if len(pictures) < 2:
                self._on_failure(pictures, error, "memory")
                return []
        except Exception as error:
            self._on_failure(pictures, error, "step")
            return []
        else:
            last = [picture for picture in pictures if picture.is_complete]
            self._show_all(previewed)
            return [LaunchedPart(pictures, running, _watched(pictures), last, self._collect(last))]
        return self._launch_halves(pictures, kind)  # not before the error is gone, and with it what it holds of memory

    def _begun(self, pictures: Sequence[Picture]) -> Sequence[Picture]:
        """Those that can run: new ones get a slot. Where these cannot all begin together, each order begins alone."""
        new = [picture for picture in pictures if picture.slot is None]
        try:
            if new:
                self._executor.add(*new)
        except (torch.AcceleratorError, torch.OutOfMemoryError):
            raise
        except Exception:
            for of_one_order in _by_order(new):
                self._begin(of_one_order)
        return [picture for picture in pictures if picture.slot is not None]

    def _begin(self, pictures: Sequence[Picture]) -> None:
        """One order, which fails alone if it cannot begin: its pictures are of the same, and end together anyway."""
        try:
            self._executor.add(*pictures)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._on_failure(pictures, error, _cause(error))

    def _launch_halves(self, pictures: Sequence[Picture], kind: StepKind) -> list[LaunchedPart]:
        half = len(pictures) // 2
        logger.warning("a batch of %d does not fit into memory; at most %d from now on", len(pictures), half)
        self._on_small_memory(half)
        return [*self.launch(pictures[:half], kind), *self.launch(pictures[half:], kind)]

    def _collect(self, pictures: Sequence[Picture]) -> Transfer | None:
        """Enqueues decoding right behind the last step, so that it need not wait for the step after that."""
        if not pictures:
            return None
        try:
            return self._executor.collect(pictures)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._on_failure(pictures, error, _cause(error))
            return None

    def _show_all(self, pictures: Sequence[Picture]) -> None:
        """Enqueues previews right behind the step; there is none where something goes wrong with it."""
        if not pictures:
            return
        try:
            transfer = self._executor.preview(pictures)
        except torch.AcceleratorError:
            raise
        except Exception:
            logger.warning("no preview of %d images", len(pictures), exc_info=True)
            return
        self._encoders.show(pictures, transfer)


def _by_order(pictures: Sequence[Picture]) -> Iterable[Sequence[Picture]]:
    orders: dict[Caller, list[Picture]] = {}
    for picture in pictures:
        orders.setdefault(picture.caller, []).append(picture)
    return orders.values()


def _watched(pictures: Sequence[Picture]) -> list[tuple[Callable[[StepRun], None], StepRun]]:
    return [(tell, picture.last_step) for picture in pictures if (tell := picture.caller.on_step) is not None]


def _cause(error: Exception) -> str:
    return "memory" if isinstance(error, torch.OutOfMemoryError) else "step"
