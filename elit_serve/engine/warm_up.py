"""What a device and the encoders do once before the first caller, so that he need not wait for it."""

from __future__ import annotations

import logging

import torch

from elit_serve.engine.encoding import encode_sample
from elit_serve.engine.executor.slots import Executor, ImageTask
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import GenerationFailed
from elit_serve.plans.formats import answer_formats
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.shape import Shape
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.requests import Launch

logger = logging.getLogger(__name__)


def warm_up(executor: Executor, pipeline: Pipeline, request_id: int) -> None:
    """One step, its decoding and every encoder. If that fails the first request will show more, unless the device is
    lost: then raises."""
    plan = pipeline.plan(steps=1)
    noise = torch.zeros(pipeline.config.spec.sample_shape)
    task = ImageTask(
        request_id=request_id, class_id=0, num_steps=1, guidance=Guidance(), time_shift=plan.time_shift, noise=noise
    )
    kind = StepKind(Shape.of(noise.shape).name, plan.levels[0])
    launch = Launch(launch_id=-1, request_ids=(request_id,), kind=kind, predicted_ms=0.0)
    try:
        executor.add(task)
        executor.launch(launch).wait()
        (sample,) = executor.collect([request_id]).result()
        if isinstance(sample, GenerationFailed):
            raise sample
        for output_format in answer_formats(pipeline.is_latent):
            encode_sample(sample, output_format, {})
    except torch.AcceleratorError:
        raise
    except Exception:
        logger.warning("the warm-up failed; the first request will show more", exc_info=True)
        executor.remove(request_id)
