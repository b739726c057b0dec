"""What follows the last step of pictures that end together: how long they are decoded, and then encoded."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

from torch import Tensor

from elit_serve.clock import Clock
from elit_serve.engine.encoders import EncoderOptions
from elit_serve.engine.encoding import encode_sample
from elit_serve.engine.executor import offline
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.picture import Picture
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.step_set import StepSet
from elit_serve.errors import ElitError
from elit_serve.files.latency import AnswerTime
from elit_serve.plans.formats import answer_formats
from elit_serve.plans.plan import Plan
from elit_serve.plans.shape import Shape
from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling import initial_noise


def answer_times(
    pipeline: Pipeline, executor: Executor, served: StepSet, *, clock: Clock, repeats: int, is_quick: bool
) -> tuple[AnswerTime, ...]:
    """Of every shape and batch of `served`, on an otherwise idle device.

    is_quick: only one picture is decoded, and more are taken to take as many times as long: so it is on a CPU, nearly.
    """
    return tuple(
        answer
        for shape in pipeline.shapes
        for answer in (
            _read_off(pipeline, executor, shape, served.batches, clock, repeats)
            if is_quick
            else [_measured(pipeline, executor, shape, batch, clock, repeats) for batch in served.batches]
        )
    )


def _read_off(
    pipeline: Pipeline, executor: Executor, shape: Shape, batches: Sequence[int], clock: Clock, repeats: int
) -> list[AnswerTime]:
    alone = _measured(pipeline, executor, shape, 1, clock, repeats)
    return [
        alone.model_copy(
            update={
                "batch": batch,
                "decode_ms": batch * alone.decode_ms,
                "encode_ms": batch * alone.encode_ms,
                "is_interpolated": batch > 1,
            }
        )
        for batch in batches
    ]


def _measured(
    pipeline: Pipeline, executor: Executor, shape: Shape, batch: int, clock: Clock, repeats: int
) -> AnswerTime:
    """The medians of `repeats`, each behind a step, after one that is not counted."""
    level = min(pipeline.config.levels)
    plan = Plan(levels=(level,) * (repeats + 1))
    noise = initial_noise(range(batch), shape.size)
    conditions = [pipeline.conditions[0]] * batch
    pictures = offline.pictures_of(conditions, range(batch), plan, shape, noise)
    (output_format, *_) = answer_formats(pipeline.is_latent)
    decoded_ms, encoded_ms = [], []
    with ThreadPoolExecutor(EncoderOptions().threads) as pool:
        for _ in range(repeats + 1):
            for picture in pictures:
                executor.add(picture)
            offline.advance(executor, pictures, StepKind(shape.name, level)).wait()
            started_s = clock.now()
            samples = _decoded(executor, pictures)
            decoded_s = clock.now()
            list(pool.map(partial(encode_sample, output_format=output_format, facts={}), samples))
            decoded_ms.append(1000 * (decoded_s - started_s))
            encoded_ms.append(1000 * (clock.now() - decoded_s))
    return AnswerTime(
        batch=batch,
        decode_ms=median(decoded_ms[1:]),
        encode_ms=median(encoded_ms[1:]),
        shape=shape.name if len(pipeline.config.shapes) > 1 else None,
    )


def _decoded(executor: Executor, pictures: Sequence[Picture]) -> list[Tensor]:
    samples = []
    for sample in executor.collect(pictures).result():
        if isinstance(sample, ElitError):
            raise sample
        samples.append(sample)
    return samples
