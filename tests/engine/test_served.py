from __future__ import annotations

import torch

from elit_serve.engine.profile.step_set import StepSet, served_steps
from elit_serve.files.config import ModelConfig, SamplingConfig
from elit_serve.plans.guidance import Guidance

CPU = torch.device("cpu")


def with_guidance(config: ModelConfig, guidance: Guidance) -> ModelConfig:
    return config.model_copy(update={"sampling": SamplingConfig(guidance=guidance)})


def test_the_levels_are_halvings_of_the_largest(tiny_config: ModelConfig) -> None:
    assert served_steps(tiny_config, CPU).levels == (1, 2, 4)


def test_only_trained_levels_are_served(tiny_config: ModelConfig) -> None:
    config = tiny_config.model_copy(update={"levels": (1, 4)})
    assert served_steps(config, CPU).levels == (1, 4)


def test_what_the_recommended_sampling_uses_is_captured(tiny_config: ModelConfig) -> None:
    ccfg = Guidance(method="ccfg", scale=2.0, weak_level=1)
    late = Guidance(method="ccfg", scale=2.0, weak_level=1, interval=(0.5, 1.0))
    cfg = Guidance(method="cfg", scale=2.0)
    captured = [
        served_steps(with_guidance(tiny_config, guidance), CPU).captured_caps
        for guidance in (ccfg, late, cfg, Guidance())
    ]
    assert captured == [(1,), (1, None), (4,), (None,)]


def test_the_largest_step_is_captured_first_and_equal_steps_once() -> None:
    served = StepSet(levels=(1, 4), weak_caps=(None, 1, 4), captured_caps=(1, 4), batches=(1, 2))
    assert served.captured_keys() == [(4, 4, 2), (4, 1, 2), (1, 1, 2), (4, 4, 1), (4, 1, 1), (1, 1, 1)]
    assert served.points() == [(1, None), (1, 1), (4, None), (4, 1), (4, 4)]
