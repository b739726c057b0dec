"""A pool of threads that turns samples into files while the next step runs.

They compute without the interpreter's lock (but for a JPEG, which takes a millisecond at 512 pixels), so neither the
worker's thread nor the event loop waits for them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from elit_serve.engine.encoding import encode_sample
from elit_serve.engine.executor.slots import Transfer
from elit_serve.engine.order import Order
from elit_serve.engine.picture import Picture, Preview
from elit_serve.engine.served_model import ServedModel
from elit_serve.errors import GenerationFailed
from elit_serve.plans.formats import PngCompression

logger = logging.getLogger(__name__)

MAX_ENCODERS = 8  # threads where nobody says how many

_Samples = list[Tensor | GenerationFailed]


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """num_threads: None is one for each processor, at most `MAX_ENCODERS`. compression: of PNG files.
    tells_prompts: whether files say what was asked for in somebody's own words."""

    num_threads: int | None = None
    compression: PngCompression = "fast"
    tells_prompts: bool = True

    @property
    def threads(self) -> int:
        """As many as encode."""
        return self.num_threads or min(MAX_ENCODERS, os.cpu_count() or 1)


class Encoders:
    """First in, first out, so that nothing waits for what comes after it.

    on_previewed, on_decoded: are told in how many milliseconds the device has decoded these together, as previews or
    because they have ended, before their files are made.
    on_file: is given each finished picture with its file. on_failure: is given what failed, the error, and `nan` or
    `encoding`. All are called on a thread of the pool.
    """

    def __init__(
        self,
        pipeline: ServedModel,
        options: EncoderOptions,
        *,
        on_previewed: Callable[[Sequence[Picture], float], None],
        on_decoded: Callable[[Sequence[Picture], float], None],
        on_file: Callable[[Picture, bytes], None],
        on_failure: Callable[[Sequence[Picture], Exception, str], None],
    ) -> None:
        self._pipeline = pipeline
        self._on_previewed = on_previewed
        self._on_decoded = on_decoded
        self._on_file = on_file
        self._on_failure = on_failure
        self._compression = options.compression
        self._tells_prompts = options.tells_prompts
        self._pool = ThreadPoolExecutor(options.threads, thread_name_prefix="elit-encoder")

    def show(self, pictures: Sequence[Picture], transfer: Transfer) -> None:
        """Previews of these, as they are after the steps that have been launched."""
        samples = self._pool.submit(_decoded, pictures, transfer, self._on_previewed)
        for index, picture in enumerate(pictures):
            number, before = picture.present_preview, picture.last_preview
            assert number is not None, "a preview of it is due"
            told = Preview(file=b"", seed=picture.seed, index=number, num_steps=picture.progress.at)
            picture.last_preview = self._pool.submit(self._show, picture, samples, index, told, before)

    def encode(self, pictures: Sequence[Picture], transfer: Transfer, picture_ids: Collection[int]) -> None:
        """The files of those whose ids are given."""
        samples = self._pool.submit(_decoded, pictures, transfer, self._on_decoded)
        for index, picture in enumerate(pictures):
            if picture.picture_id in picture_ids:
                self._pool.submit(self._encode, picture, samples, index)

    def close(self) -> None:
        """Drops what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _show(
        self, picture: Picture, samples: Future[_Samples], index: int, told: Preview, before: Future[None] | None
    ) -> None:
        """told: but for its file. before: the picture's last preview, which must be out first."""
        order = picture.caller.order
        try:
            sample = samples.result()[index]
            if isinstance(sample, GenerationFailed):
                return
            file = self._file(sample, order, {"preview_after_steps": told.num_steps})
            if before is not None:
                before.result()
            picture.caller.on_preview(replace(told, file=file))
        except Exception:
            logger.warning("a preview could not be shown", exc_info=True)

    def _encode(self, picture: Picture, samples: Future[_Samples], index: int) -> None:
        order = picture.caller.order
        try:
            sample = samples.result()[index]
            if isinstance(sample, GenerationFailed):
                self._on_failure([picture], sample, "nan")
                return
            plan = order.plan(picture.progress)
            facts = self._pipeline.facts(order.condition, picture.seed, plan, order.shape, picture.cost.flops)
            if order.condition.is_personal and not self._tells_prompts:
                facts = {name: value for name, value in facts.items() if name not in order.condition.facts()}
            file = self._file(sample, order, facts)
            if picture.last_preview is not None:
                picture.last_preview.result()
        except Exception as error:
            self._on_failure([picture], error, "encoding")
            return
        self._on_file(picture, file)

    def _file(self, sample: Tensor, order: Order, facts: dict[str, Any]) -> bytes:
        quality, compression = order.file_quality, self._compression
        return encode_sample(sample, order.output_format, facts, quality=quality, compression=compression)


def _decoded(
    pictures: Sequence[Picture], transfer: Transfer, tell: Callable[[Sequence[Picture], float], None]
) -> _Samples:
    samples = transfer.result()
    tell(pictures, transfer.took_ms())
    return samples
