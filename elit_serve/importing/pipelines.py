"""What is known of each pipeline of diffusers that becomes a model: its transformer, and how it samples by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from elit_serve.nn.backbones.dense.dense import DenseSpec
from elit_serve.nn.backbones.dense.prx import PRXSpec
from elit_serve.plans.bounds import MAX_TIME_SHIFT, MIN_TIME_SHIFT
from elit_serve.plans.grid import Shift, TimeShift
from elit_serve.plans.guidance import Guidance


class Scheduler(BaseModel):
    """What a pipeline's `scheduler_config.json` may say: Euler steps of flow matching, nothing else.

    shift: of all sizes, unless `use_dynamic_shifting`: then the pipeline finds one for each size.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    kind: Literal["FlowMatchEulerDiscreteScheduler"] = Field(alias="_class_name")
    num_train_timesteps: int = Field(default=1000, ge=1, le=10**6)
    shift: float = Field(default=1.0, ge=MIN_TIME_SHIFT, le=MAX_TIME_SHIFT)
    use_dynamic_shifting: bool = False
    shift_terminal: float | None = Field(default=None, ge=0, lt=1)
    invert_sigmas: Literal[False] = False
    use_karras_sigmas: Literal[False] | None = False
    use_exponential_sigmas: Literal[False] | None = False
    use_beta_sigmas: Literal[False] | None = False
    stochastic_sampling: Literal[False] = False


@dataclass(frozen=True, kw_only=True)
class PipelineFacts:
    """transformer: the spec of its backbone. steps, guidance: what it does where nobody says.

    shift: of its time grid, for a scheduler and so many tokens of a sample. Raises `ValueError` for a scheduler that
        the pipeline does not work with.
    """

    transformer: type[DenseSpec]
    steps: int
    guidance: Guidance
    shift: Callable[[Scheduler, int], Shift]


def shift_of_prx(scheduler: Scheduler, num_tokens: int) -> Shift:  # noqa: ARG001
    """The same for all sizes. It leaves noise levels to the scheduler, which spaces them between those of its training,
    shifted already, and shifts them again."""
    if scheduler.use_dynamic_shifting:
        raise ValueError("use_dynamic_shifting: true is not allowed; PRX has one shift for all sizes")
    lowest = 1 / scheduler.num_train_timesteps
    last = scheduler.shift * lowest / (1 + (scheduler.shift - 1) * lowest)
    return TimeShift(factor=scheduler.shift, last=last, terminal=scheduler.shift_terminal or None)


PIPELINES = {
    "PRXPipeline": PipelineFacts(
        transformer=PRXSpec, steps=28, guidance=Guidance(method="cfg", scale=4.0), shift=shift_of_prx
    ),
}
