from __future__ import annotations

import torch

from elit_serve.engine.profile.step_set import StepSet, served_steps, step_kinds
from elit_serve.files.config import ModelConfig, SamplingConfig
from elit_serve.plans.guidance import Guidance

CPU = torch.device("cpu")


def with_guidance(config: ModelConfig, guidance: Guidance) -> ModelConfig:
    return config.model_copy(update={"sampling": SamplingConfig(guidance=guidance)})


def levels(steps: StepSet) -> list[int]:
    return list(dict.fromkeys(kind.level for kind in steps.kinds))


def test_the_levels_are_halvings_of_the_largest(tiny_config: ModelConfig) -> None:
    assert levels(served_steps(tiny_config, ["32x32"], CPU)) == [1, 2, 4]


def test_only_trained_levels_are_served(tiny_config: ModelConfig) -> None:
    config = tiny_config.model_copy(update={"levels": (1, 4)})
    assert levels(served_steps(config, ["32x32"], CPU)) == [1, 4]


def test_what_the_recommended_sampling_uses_is_captured(tiny_config: ModelConfig) -> None:
    ccfg = Guidance(method="ccfg", scale=2.0, weak_level=1)
    late = Guidance(method="ccfg", scale=2.0, weak_level=1, interval=(0.5, 1.0))
    cfg = Guidance(method="cfg", scale=2.0)

    def captured(guidance: Guidance) -> list[int | None]:
        """The weak levels at the highest level."""
        steps = served_steps(with_guidance(tiny_config, guidance), ["32x32"], CPU)
        return [kind.weak_level for kind in steps.captured if kind.level == 4]

    assert [captured(each) for each in (ccfg, late, cfg, Guidance())] == [[1], [None, 1], [4], [None]]


def test_every_shape_has_its_steps(tiny_config: ModelConfig) -> None:
    config = tiny_config.model_copy(update={"shapes": {"l": (3, 64, 32), "s": (3, 16, 16)}})
    steps = served_steps(config, ["l", "s"], CPU)
    assert list(dict.fromkeys(kind.shape for kind in steps.kinds)) == ["l", "s"]
    assert list(dict.fromkeys(kind.shape for kind, _ in steps.captures[: len(steps.captured)])) == ["l", "s"]
    assert len(steps.kinds) == 2 * len(served_steps(tiny_config, ["32x32"], CPU).kinds)


def test_the_largest_step_is_captured_first_and_equal_steps_once() -> None:
    kinds, captured = step_kinds(["s"], (1, 4), (None, 1, 4)), step_kinds(["s"], (1, 4), (1, 4))
    served = StepSet(kinds=kinds, captured=captured, batches=(1, 2))
    assert [(kind[1:3], batch) for kind, batch in served.captures] == [
        ((level, weak_level), batch) for batch in (2, 1) for level, weak_level in ((4, 4), (4, 1), (1, 1))
    ]
    assert [kind[1:3] for kind in served.kinds] == [(1, None), (1, 1), (4, None), (4, 1), (4, 4)]
