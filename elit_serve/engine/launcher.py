"""Launches cohorts on an executor, and what belongs right behind a step: previews, and the decoding of the last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from elit_serve.engine.accepted import AcceptedImage, LaunchedPart
from elit_serve.engine.encoders import Encoders
from elit_serve.engine.executor.slots import Executor, Transfer
from elit_serve.scheduler.requests import Launch

logger = logging.getLogger(__name__)


class Launcher:
    """Used by the worker's thread alone; raises only if the device is lost, and everything on it.

    on_failure: is given the ids of what cannot be run, the error, and `step` or `memory`. on_small_memory: is given the
    largest batch to try from now on.
    """

    def __init__(
        self,
        executor: Executor,
        encoders: Encoders,
        *,
        on_failure: Callable[[Sequence[int], Exception, str], None],
        on_small_memory: Callable[[int], None],
    ) -> None:
        self._executor = executor
        self._encoders = encoders
        self._on_failure = on_failure
        self._on_small_memory = on_small_memory

    def launch(self, launch: Launch, members: dict[int, AcceptedImage]) -> list[LaunchedPart]:
        """Launches all at once or, if memory does not suffice, in halves. What cannot be run fails alone."""
        previewed = [image for image in members.values() if image.is_previewed_next]
        try:
            if previewed:
                self._executor.watch([image.request_id for image in previewed])
            running = self._executor.launch(launch)
        except torch.AcceleratorError:
            raise  # the device is lost, and everything on it
        except Exception as error:
            failure = error
        else:
            for request_id in launch.request_ids:
                members[request_id].levels.append(launch.kind.level)
            launched = [members[request_id] for request_id in launch.request_ids]
            watched = tuple((image.request.on_step, image.last_step) for image in launched if image.request.on_step)
            last = [image for image in launched if image.is_complete]
            self._show_all(previewed)
            return [LaunchedPart(launch.request_ids, running, watched, tuple(last), self._collect(last))]
        half = len(launch.request_ids) // 2
        if half and isinstance(failure, torch.OutOfMemoryError):
            return self._launch_halves(launch, half, members)
        self._on_failure(launch.request_ids, failure, _cause(failure))
        return []

    def _launch_halves(self, launch: Launch, half: int, members: dict[int, AcceptedImage]) -> list[LaunchedPart]:
        logger.warning("a batch of %d does not fit into memory; at most %d from now on", 2 * half, half)
        self._on_small_memory(half)
        halves = (launch.request_ids[:half], launch.request_ids[half:])
        return [part for ids in halves for part in self.launch(replace(launch, request_ids=ids), members)]

    def _collect(self, images: Sequence[AcceptedImage]) -> Transfer | None:
        """Enqueues decoding right behind the last step, so that it need not wait for the step after that."""
        if not images:
            return None
        try:
            return self._executor.collect([image.request_id for image in images])
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._on_failure([image.request_id for image in images], error, _cause(error))
            return None

    def _show_all(self, images: Sequence[AcceptedImage]) -> None:
        """Enqueues previews right behind the step; there is none where something goes wrong with it."""
        if not images:
            return
        try:
            transfer = self._executor.preview([image.request_id for image in images])
        except torch.AcceleratorError:
            raise
        except Exception:
            logger.warning("no preview of %d images", len(images), exc_info=True)
            return
        self._encoders.show(images, transfer)


def _cause(error: Exception) -> str:
    return "memory" if isinstance(error, torch.OutOfMemoryError) else "step"
