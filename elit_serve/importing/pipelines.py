"""What is known of each pipeline of diffusers that becomes a model: its transformer, and how it samples by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from elit_serve.nn.backbones.dense.dense import DenseSpec
from elit_serve.nn.backbones.dense.elit import ElitDenseSpec
from elit_serve.nn.backbones.dense.elit_prx import ElitPRXSpec
from elit_serve.nn.backbones.dense.elit_qwen_image import ElitQwenImageSpec
from elit_serve.nn.backbones.dense.flux2 import Flux2Spec
from elit_serve.nn.backbones.dense.prx import PRXSpec
from elit_serve.nn.backbones.dense.qwen_image import QwenImageSpec
from elit_serve.nn.backbones.dense.z_image import ZImageSpec
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
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    base_shift: float = Field(default=0.5, ge=-10, le=10)
    max_shift: float = Field(default=1.15, ge=-10, le=10)
    base_image_seq_len: int = Field(default=256, ge=1, le=10**6)
    max_image_seq_len: int = Field(default=4096, ge=1, le=10**6)

    def shift_of_tokens(self, num_tokens: int) -> float:
        """A straight line in the tokens of a sample, of the shift or of its logarithm. Raises `ValueError`."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        found = self.base_shift + slope * (num_tokens - self.base_image_seq_len)
        try:
            return math.exp(found) if self.time_shift_type == "exponential" else found
        except OverflowError:
            raise ValueError(f"the shift of {num_tokens} tokens would be e^{found:.0f}") from None

    @model_validator(mode="after")
    def _has_a_line(self) -> Self:
        if self.base_image_seq_len == self.max_image_seq_len:
            raise ValueError("base_image_seq_len and max_image_seq_len must differ")
        return self


@dataclass(frozen=True, kw_only=True)
class PipelineFacts:
    """transformer: the spec of its backbone; elastic: of the same with ELIT inside, if there is one.

    steps, guidance: what it does where nobody says.
    shift: of its time grid, for a scheduler and so many tokens of a sample. Raises `ValueError` for a scheduler that
        the pipeline does not work with, and `InvalidInput` for one whose shift is beyond bounds.
    max_tokens: of a prompt; None is what its tokenizer says.
    distilled_steps: what it does where a folder says that it is distilled; None is the same.
    """

    transformer: type[DenseSpec]
    steps: int
    guidance: Guidance
    shift: Callable[[Scheduler, int], Shift]
    max_tokens: int | None = None
    distilled_steps: int | None = None
    elastic: type[ElitDenseSpec] | None = None


def shift_of_prx(scheduler: Scheduler, num_tokens: int) -> Shift:  # noqa: ARG001
    """The same for all sizes. It leaves noise levels to the scheduler, which spaces them between those of its training,
    shifted already, and shifts them again."""
    if scheduler.use_dynamic_shifting:
        raise ValueError("use_dynamic_shifting: true is not allowed; PRX has one shift for all sizes")
    lowest = 1 / scheduler.num_train_timesteps
    last = scheduler.shift * lowest / (1 + (scheduler.shift - 1) * lowest)
    return TimeShift(factor=scheduler.shift, last=last, terminal=scheduler.shift_terminal or None)


def shift_of_tokens(scheduler: Scheduler, num_tokens: int) -> Shift:
    """It grows with the tokens; noise levels are spaced evenly before, and stretched to a last one behind."""
    factor = scheduler.shift_of_tokens(num_tokens) if scheduler.use_dynamic_shifting else scheduler.shift
    if not scheduler.shift_terminal:
        return factor
    return TimeShift(factor=factor, terminal=scheduler.shift_terminal)


def shift_of_flux2_klein(scheduler: Scheduler, num_tokens: int) -> Shift:
    """Its logarithm is a straight line in the number of steps through what was found to be best at 10 and at 200 of
    them, both straight lines in the tokens. Of many tokens it is the second whatever the steps (`compute_empirical_mu`
    of diffusers).
    """
    if not scheduler.use_dynamic_shifting:
        return shift_of_tokens(scheduler, num_tokens)
    if scheduler.time_shift_type == "linear":
        raise ValueError("time_shift_type: linear is not allowed; the shift of FLUX.2 is exponential")
    terminal = scheduler.shift_terminal or None
    at_200 = 0.00016927 * num_tokens + 0.45666666
    if num_tokens > 4300:
        return TimeShift(factor=math.exp(at_200), terminal=terminal)
    at_10 = 8.73809524e-05 * num_tokens + 1.89833333
    growth = (at_200 - at_10) / 190
    return TimeShift(factor=math.exp(at_200 - 200 * growth), growth=growth, terminal=terminal)


PIPELINES = {
    "PRXPipeline": PipelineFacts(
        transformer=PRXSpec,
        elastic=ElitPRXSpec,
        steps=28,
        guidance=Guidance(method="cfg", scale=4.0),
        shift=shift_of_prx,
    ),
    "QwenImagePipeline": PipelineFacts(
        transformer=QwenImageSpec,
        elastic=ElitQwenImageSpec,
        steps=50,
        guidance=Guidance(method="cfg", scale=4.0),
        shift=shift_of_tokens,
        max_tokens=512,
    ),
    "Flux2KleinPipeline": PipelineFacts(
        transformer=Flux2Spec,
        steps=50,
        distilled_steps=4,
        guidance=Guidance(method="cfg", scale=4.0),
        shift=shift_of_flux2_klein,
        max_tokens=512,
    ),
    "ZImagePipeline": PipelineFacts(
        transformer=ZImageSpec,
        steps=50,
        guidance=Guidance(method="cfg", scale=6.0),  # it counts its scale from 0, which is off: 5
        shift=shift_of_tokens,
        max_tokens=512,
    ),
}
