"""A pool of threads that turns samples into files while the next step runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from elit_serve.engine.accepted import AcceptedImage
from elit_serve.engine.encoding import encode_sample
from elit_serve.engine.executor.slots import Transfer
from elit_serve.engine.order import Preview
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import GenerationFailed

logger = logging.getLogger(__name__)

MAX_ENCODERS = 8  # threads

_Samples = list[Tensor | GenerationFailed]


class Encoders:
    """First in, first out, so that nothing waits for what comes after it.

    on_file: is given each finished image with its file. on_failure: is given the ids of what failed, the error, and
    `nan` or `encoding`. Both are called on a thread of the pool.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        on_file: Callable[[AcceptedImage, bytes], None],
        on_failure: Callable[[Sequence[int], Exception, str], None],
    ) -> None:
        self._pipeline = pipeline
        self._on_file = on_file
        self._on_failure = on_failure
        num_threads = min(MAX_ENCODERS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="elit-encoder")

    def show(self, images: Sequence[AcceptedImage], transfer: Transfer) -> None:
        """Previews of these images, as they are after the steps that have been launched."""
        samples = self._pool.submit(transfer.result)
        for index, image in enumerate(images):
            num_steps = len(image.levels)
            image.shown = self._pool.submit(self._show, image, samples, index, num_steps, image.shown)

    def encode(self, images: Sequence[AcceptedImage], transfer: Transfer, request_ids: Collection[int]) -> None:
        """The files of those that are among `request_ids`."""
        samples = self._pool.submit(transfer.result)
        for index, image in enumerate(images):
            if image.request_id in request_ids:
                self._pool.submit(self._encode, image, samples, index)

    def close(self) -> None:
        """Drops what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _show(
        self, image: AcceptedImage, samples: Future[_Samples], index: int, num_steps: int, before: Future[None] | None
    ) -> None:
        """before: the image's last preview, which must be out first."""
        job = image.request.job
        try:
            sample = samples.result()[index]
            if isinstance(sample, GenerationFailed):
                return
            file = encode_sample(sample, job.output_format, {"preview_after_steps": num_steps}, job.file_quality)
            if before is not None:
                before.result()
            number = job.preview_steps.index(num_steps)
            image.request.on_preview(Preview(file=file, seed=image.seed, index=number, num_steps=num_steps))
        except Exception:
            logger.warning("a preview could not be shown", exc_info=True)

    def _encode(self, image: AcceptedImage, samples: Future[_Samples], index: int) -> None:
        job = image.request.job
        try:
            sample = samples.result()[index]
            if isinstance(sample, GenerationFailed):
                self._on_failure([image.request_id], sample, "nan")
                return
            facts = self._pipeline.facts(job.class_id, image.seed, job.plan(tuple(image.levels)))
            file = encode_sample(sample, job.output_format, facts, job.file_quality)
            if image.shown is not None:
                image.shown.result()
        except Exception as error:
            self._on_failure([image.request_id], error, "encoding")
            return
        self._on_file(image, file)
