"""Which passes a plan has at each step, and how they are combined."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elit_serve.errors import InvalidInput
from elit_serve.plans.guidance import Guidance, GuidanceMethod
from elit_serve.plans.plan import Plan
from elit_serve.plans.step_kind import StepKind
from elit_serve.sampling import guided


@pytest.mark.parametrize(("method", "weak_level", "drops"), [("cfg", 8, True), ("ag", 2, False), ("ccfg", 2, True)])
def test_the_weak_pass_of_each_method(method: GuidanceMethod, weak_level: int, drops: bool) -> None:
    guidance = Guidance(method=method, scale=2, weak_level=2)
    assert Plan(levels=(8,), guidance=guidance).step_kinds("s") == [StepKind("s", 8, weak_level)]
    assert guidance.drops_condition is drops


def test_the_weak_level_never_exceeds_the_main_one() -> None:
    plan = Plan(levels=(8, 2), guidance=Guidance(method="ccfg", scale=2, weak_level=4))
    assert [kind.weak_level for kind in plan.step_kinds("s")] == [4, 2]


def test_autoguidance_with_both_levels_equal_is_refused() -> None:
    guidance = Guidance(method="ag", scale=2, weak_level=4)
    with pytest.raises(InvalidInput, match="below the lowest level of the plan, 4"):
        Plan(levels=(8, 4), guidance=guidance)
    assert Plan(levels=(8, 5), guidance=guidance).mean_level == 6.5


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(method="ccfg", scale=1), Guidance(method="none", scale=3)])
def test_guidance_that_is_off_costs_one_pass(guidance: Guidance) -> None:
    assert Plan(levels=(8,), guidance=guidance).step_kinds("s") == [StepKind("s", 8, None)]


def test_the_interval_is_guided_with_both_ends() -> None:
    guidance = Guidance(method="cfg", scale=2, interval=(0.25, 0.75))
    guided_at = {t: guidance.applies_at(t) for t in (0, 0.2499, 0.25, 0.5, 0.75, 0.7501, 1)}
    assert guided_at == {0: False, 0.2499: False, 0.25: True, 0.5: True, 0.75: True, 0.7501: False, 1: False}


@given(st.floats(1, 20))
def test_guidance_is_the_papers_combination(scale: float) -> None:
    main, weak = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = scale - 1  # lambda
    expected = (weight + 1) * main - weight * weak
    torch.testing.assert_close(guided(main, main - weak, scale), expected)
    torch.testing.assert_close(guided(main, main - weak, torch.tensor([[scale], [1.0], [scale]]))[1], main[1])
    assert torch.equal(guided(main, main - main, scale), main)
    assert torch.equal(guided(main, main - weak, 1), main)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"method": "pag"}, "guidance.method"),
        ({"scale": 0.5}, "guidance.scale"),
        ({"scale": math.nan}, "guidance.scale"),
        ({"scale": math.inf}, "guidance.scale"),
        ({"weak_level": 0}, "guidance.weak_level"),
        ({"interval": (0.7, 0.3)}, "guidance.interval"),
        ({"interval": (-0.1, 0.3)}, "guidance.interval"),
        ({"interval": (0.1, math.nan)}, "guidance.interval"),
    ],
)
def test_bad_guidance_is_refused_by_field(fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Guidance(**fields)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize("levels", [(), (4, 0), (-1,)])
def test_a_plan_needs_a_level_of_at_least_one_for_each_step(levels: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="levels"):
        Plan(levels=levels)


def test_a_plan_moves_to_another_level_with_everything_else_kept() -> None:
    plan = Plan(levels=(8, 4, 2), guidance=Guidance(method="cfg", scale=3), time_shift=2.0)
    moved = plan.at_level(5)
    assert moved == Plan(levels=(5, 5, 5), guidance=plan.guidance, time_shift=2.0)
