from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from elit_serve.catalogue import ModelQuality
from elit_serve.engine.executor import offline
from elit_serve.engine.executor.slots import Executor, RunningStep
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.step_set import MAX_CAPTURED, StepSet, served_steps, step_kinds
from elit_serve.errors import InvalidInput
from elit_serve.files.config import ModelConfig, SamplingConfig
from elit_serve.files.quality import Quality
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.step_kind import StepKind

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


def test_unguided_steps_and_what_the_recommended_sampling_uses_are_captured(tiny_config: ModelConfig) -> None:
    ccfg = Guidance(method="ccfg", scale=2.0, weak_level=1)
    late = Guidance(method="ccfg", scale=2.0, weak_level=1, interval=(0.5, 1.0))
    cfg = Guidance(method="cfg", scale=2.0)

    def captured(guidance: Guidance) -> list[int | None]:
        """The weak levels at the highest level."""
        steps = served_steps(with_guidance(tiny_config, guidance), ["32x32"], CPU)
        return [kind.weak_level for kind in steps.captured if kind.level == 4]

    assert [captured(each) for each in (ccfg, late, cfg, Guidance())] == [[None, 1], [None, 1], [None, 4], [None]]


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


def test_on_a_gpu_all_captured_steps_above_the_lowest_level_are_captured_mixed_too(tiny_config: ModelConfig) -> None:
    steps = served_steps(tiny_config, ["32x32"], torch.device("cuda"))
    unmixed = [kind for kind in steps.captured if not kind.is_mixed]
    assert [kind.unmixed for kind in steps.captured if kind.is_mixed] == [kind for kind in unmixed if kind.level > 1]
    assert {batch for kind, batch in steps.captures if kind.is_mixed} == set(steps.batches) - {1}
    assert set(steps.captures) <= set(steps.costs)
    assert steps.captures[0] == (StepKind("32x32", 4, 1, is_mixed=True), max(steps.batches))
    assert [kind for kind in steps.captured if not kind.is_mixed] == list(
        served_steps(tiny_config, ["32x32"], CPU).captured
    )


def test_a_model_of_one_level_has_no_mixed_steps(tiny_config: ModelConfig) -> None:
    config = tiny_config.model_copy(update={"levels": (4,)})
    assert not any(kind.is_mixed for kind in served_steps(config, ["32x32"], torch.device("cuda")).kinds)


def test_a_server_prepares_no_batch_beyond_the_one_that_holds_its_largest(tiny_config: ModelConfig) -> None:
    steps = served_steps(tiny_config, ["32x32"], torch.device("cuda"))
    assert [steps.up_to(most).batches for most in (1, 4, 5)] == [(1,), (1, 2, 3, 4), (1, 2, 3, 4, 6)]
    assert steps.up_to(1000) == steps
    assert not any(kind.is_mixed for kind, _ in steps.up_to(1).costs)


def test_some_levels_and_batches_can_be_asked_for(tiny_config: ModelConfig) -> None:
    steps = served_steps(tiny_config, ["32x32"], CPU)
    some = steps.only([4, 1], [4])
    assert {(kind.level, batch) for kind, batch in some.costs} == {(4, 4), (1, 4)}
    assert {kind.level for kind, _ in some.captures} == {4, 1}
    assert steps.only([], []) == steps
    with pytest.raises(InvalidInput, match="levels: 3 is not allowed; some of 1, 2, 4"):
        steps.only([3], [])
    with pytest.raises(InvalidInput, match="batches: 7 is not allowed; some of 1, 4"):
        steps.only([], [1, 7])


class Capturing(Executor):
    """Knows which steps were captured, and counts those that had to be enqueued kernel by kernel on a GPU."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline, num_slots=4)
        self.captured: set[tuple[StepKind, int]] = set()
        self.eager: list[tuple[StepKind, int]] = []

    def capture(
        self,
        wanted: Sequence[tuple[StepKind, int]],
        on_progress: Callable[[int, int], None] | None = None,  # noqa: ARG002
    ) -> None:
        self.captured |= set(wanted)

    def _run(self, inputs: Tensor, kind: StepKind) -> RunningStep:
        batch = min(batch for _, batch in self.captured if batch >= inputs.shape[1])
        if (kind, batch) not in self.captured:
            self.eager.append((kind, batch))
        return super()._run(inputs, kind)


@pytest.mark.parametrize("level", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 3])
def test_steps_on_both_sides_of_an_interval_that_a_caller_asks_for_are_captured(
    shared_tiny_model_dir: Path, level: int, count: int
) -> None:
    """The model itself recommends guidance throughout."""
    pipeline = Pipeline.load(shared_tiny_model_dir, device="cpu")
    executor = Capturing(pipeline)
    executor.capture(served_steps(pipeline.config, pipeline.shape_names, CPU).captures)
    late = Guidance(method="ccfg", scale=2.0, weak_level=1, interval=(0.5, 1.0))
    plan = Plan(levels=(level,) * 4, guidance=late)
    assert {kind.weak_level for kind in plan.step_kinds("32x32")} == {None, 1}
    pictures = pipeline.pictures([pipeline.conditions[0]] * count, range(count), plan)
    offline.run(executor, pictures, plan)
    assert executor.eager == []


def test_a_menu_of_many_weak_passes_has_a_bounded_number_of_graphs(
    tiny_config: ModelConfig, make_quality: Callable[..., dict[str, Any]]
) -> None:
    """Those of the recommended sampling are always among them, and of the others those in most plans."""
    content = make_quality()
    weak_levels = [*(2, 3, 4), *(4, 4)]
    plans = [
        {**content["plans"][1], "name": str(number), "gflops": 1.0 + number, "levels": [[4, 2]]}
        | {"guidance": {"method": "ccfg", "scale": 2.0, "weak_level": weak, "interval": [0.0, 1.0]}}
        for number, weak in enumerate(weak_levels)
    ]
    quality = ModelQuality(Quality.model_validate_json(json.dumps({**content, "plans": plans, "default": "0"})))
    steps = served_steps(tiny_config, ["32x32"], CPU, quality)
    captured = {kind.weak_level for kind in steps.captured if kind.level == 4}
    assert len(captured) == MAX_CAPTURED
    assert {None, 1, 4} < captured
    assert {kind.weak_level for kind in steps.kinds if kind.level == 4} == {None, *captured}
