"""What a device and the encoders do once before the first caller, so that he need not wait for it."""

from __future__ import annotations

import logging

import torch

from elit_serve.engine.encoding import encode_sample
from elit_serve.engine.executor import offline
from elit_serve.engine.executor.slots import AnyExecutor
from elit_serve.engine.picture import Picture
from elit_serve.engine.served_model import ServedModel
from elit_serve.errors import GenerationFailed
from elit_serve.plans.formats import answer_formats
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.shape import Shape

logger = logging.getLogger(__name__)


def warm_up(executor: AnyExecutor, pipeline: ServedModel, picture_id: int) -> None:
    """One step of every shape, its decoding and every encoder. If that fails the first request will show more, unless
    the device is lost: then raises."""
    for shape in pipeline.shapes:
        _warm_up(executor, pipeline, picture_id, shape)


def _warm_up(executor: AnyExecutor, pipeline: ServedModel, picture_id: int, shape: Shape) -> None:
    plan = pipeline.plan(steps=1, guidance=Guidance())
    picture = Picture.of_plan(
        picture_id,
        plan,
        condition=pipeline.conditions[0],
        shape=shape.name,
        seed=0,
        noise=torch.zeros(shape.size),
    )
    try:
        executor.add(picture)
        (kind,) = plan.step_kinds(shape.name)
        offline.advance(executor, [picture], kind).wait()
        (sample,) = executor.collect([picture]).result()
        if isinstance(sample, GenerationFailed):
            raise sample
        for output_format in answer_formats(pipeline.is_latent):
            encode_sample(sample, output_format, {})
    except torch.AcceleratorError:
        raise
    except Exception:
        logger.warning("the warm-up failed; the first request will show more", exc_info=True)
        executor.remove(picture)
