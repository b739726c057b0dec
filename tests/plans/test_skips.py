"""Which steps may use again what earlier ones computed, and how they are chosen before sampling."""

from __future__ import annotations

import pytest

from elit_serve.errors import InvalidInput
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.skips import SkipRule, Skips
from elit_serve.plans.step_kind import StepKind

LATE = Guidance(method="ccfg", scale=2.0, weak_level=1, interval=(0.4, 0.8))  # steps 4 to 8 of 10


def plan(**skips: tuple[int, ...]) -> Plan:
    return Plan(levels=(8,) * 10, guidance=LATE, skips=Skips(**skips))


def test_skipped_steps_are_kinds_of_their_own_and_those_without_a_weak_pass_are_as_unguided_ones() -> None:
    kinds = plan(core=(2, 5, 6), weak=(5, 7)).step_kinds("s")
    assert kinds[1] == StepKind("s", 8)
    assert kinds[2] == StepKind("s", 8, is_skipped=True)
    assert kinds[4] == StepKind("s", 8, 1)
    assert kinds[5] == StepKind("s", 8, is_skipped=True)
    assert kinds[6] == StepKind("s", 8, 1, is_skipped=True)
    assert kinds[7] == StepKind("s", 8)
    assert plan(weak=(5, 7)).weak_caps(16) == (None,) * 4 + (1, None, 1, None, 1, None)


@pytest.mark.parametrize(
    ("skips", "problem"),
    [
        ({"core": (0,)}, "each 1 or more"),
        ({"core": (3, 3)}, "rising"),
        ({"core": (10,)}, "below 10"),
        ({"weak": (3, 12)}, "below 10"),
        ({"core": (4,)}, "those of step 4 have not"),  # the first guided one: its weak pass has no core yet
        ({"weak": (4,)}, "which step 4 is not"),
        ({"weak": (9,)}, "which step 9 is not"),  # behind the interval
    ],
)
def test_what_was_never_computed_cannot_be_used_again(skips: dict[str, tuple[int, ...]], problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        plan(**skips)


@pytest.mark.parametrize(
    ("word", "rule"),
    [
        ("none", SkipRule()),
        ("0.15", SkipRule(threshold=0.15)),
        ("weak", SkipRule(halves_weak=True)),
        ("2+weak", SkipRule(threshold=2.0, halves_weak=True)),
    ],
)
def test_rules_are_read_as_the_command_line_spells_them(word: str, rule: SkipRule) -> None:
    assert SkipRule.read(word) == rule


@pytest.mark.parametrize("word", ["", "0", "-0.1", "nan", "weak+0.1", "0.1+", "+weak", "0.1+0.2", "weak+weak", "1e3"])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(InvalidInput, match="skips"):
        SkipRule.read(word)


def test_cores_are_skipped_while_what_they_change_adds_up_to_less_than_the_threshold() -> None:
    changes = [0.1, 0.1, 0.1, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1]
    rule = SkipRule(threshold=0.25)
    assert rule.skips(changes, [False] * 10) == Skips(core=(1, 2, 5, 6, 8))
    assert SkipRule().skips(changes, [False] * 10) == Skips()


def test_the_first_guided_step_and_both_ends_compute_everything() -> None:
    guided = [False, False, True, True, True, True]
    assert SkipRule(threshold=9.0).skips([0.1] * 5, guided) == Skips(core=(1, 3, 4))
    assert SkipRule(threshold=9.0, halves_weak=True).skips([0.1] * 5, guided) == Skips(core=(1, 3, 4), weak=(3, 5))
    for rule in (SkipRule(threshold=9.0), SkipRule(threshold=0.15, halves_weak=True)):
        skips = rule.skips([0.1] * 9, LATE_STEPS)
        Plan(levels=(8,) * 10, guidance=LATE, skips=skips)  # which checks them


LATE_STEPS = Plan(levels=(8,) * 10, guidance=LATE).is_guided
