"""The fast planner against the plain one, and both against the truth: every order of launches that there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from math import ceil, sqrt
from random import Random

import pytest

from elit_serve.plans.coarsening import Coarsening
from elit_serve.plans.grid import time_grid
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.scheduler.costs import AnswerCost, CorrectedCosts
from elit_serve.scheduler.policy import plan_plain
from elit_serve.scheduler.policy.pace import Work
from elit_serve.scheduler.policy.plan import plan
from elit_serve.scheduler.policy.rounds import decoded
from elit_serve.scheduler.requests import Demand

LEVELS = (2, 4, 8)
SHAPES = ("32x32", "64x64")
SLACK = 0.01  # share of what the fast planner accepts that the plain one accepts beyond it
ROUNDING_S = 1e-7


def drawn_costs(random: Random, *, decodes: bool = False) -> CorrectedCosts:
    """Costs that rise with level, weak level and batch, and in half of the tables not even that. In half of them
    several levels share launches."""
    fixed_ms, noise = random.uniform(0.1, 5), random.choice([0.0, 0.5])
    steps_ms = {
        (StepKind(shape, level, weak), batch): (fixed_ms + batch * (level + (weak or 0)) * (1 + SHAPES.index(shape)))
        * random.uniform(1 - noise, 1 + noise)
        for shape in SHAPES
        for level in LEVELS
        for weak in {None, 2, level}
        for batch in (1, 2, 3, 8)
    }
    if random.random() < 0.5:
        steps_ms |= {
            (kind._replace(is_mixed=True), batch): step_ms * random.uniform(1 - noise, 1.1)
            for (kind, batch), step_ms in steps_ms.items()
            if kind.level > LEVELS[0] and kind.weak_level != kind.level and batch > 1
        }
    table = CostTable(steps_ms=steps_ms, overhead_ms=0.0, pads_batches=random.random() < 0.5)
    return CorrectedCosts(replace(table, answers_ms=drawn_answers(random)) if decodes else table)


def drawn_answers(random: Random) -> dict[tuple[str, int], AnswerCost]:
    """Decoding that costs as much as some steps do."""
    return {
        (shape, batch): AnswerCost(random.uniform(1, 5) * batch * (1 + SHAPES.index(shape)), random.uniform(0, 20))
        for shape in SHAPES
        for batch in (1, 2, 8)
    }


def drawn_works(random: Random, costs: CorrectedCosts, count: int, max_steps: int, margin: float = 0.3) -> list[Work]:
    """In order of their deadlines, and none of them hopeless alone; half of them with such a margin."""
    works = []
    mixed, crowd = random.random() < 0.6, random.uniform(1.0, 1.0 + 3 * count)
    for request_id in range(count):
        steps = random.randint(1, max_steps)
        guided_from = random.choice([0, steps, steps // 2]) if mixed else 0
        low = random.choice(LEVELS) if mixed else 2
        longest = random.choice([1, 1, 2, 3]) if mixed else 1
        losses = {2: (0.0, *(0.01 * stride for stride in range(longest)))}
        demand = Demand(
            request_id=request_id,
            shape=random.choice(SHAPES) if mixed else SHAPES[0],
            arrived_s=0.0,
            deadline_s=1.0,
            weak_caps=(None,) * guided_from + (random.choice([2, 8]),) * (steps - guided_from),
            min_level=low,
            max_level=8,
            coarsening=Coarsening.of(time_grid(steps), losses) if longest > 1 else None,
        )
        margin_s = margin * costs.row_s(StepKind.capped(demand.shape, 8, None))[1] if request_id % 2 else 0.0
        work = Work(demand, costs, latest_s=0.0, margin_s=margin_s, order=0.0)
        work = work.moved_to(random.choice([0, random.randrange(steps)]))
        due_s = work.solo_s * random.uniform(crowd**0.5, crowd)
        works.append(work.promised(due_s + margin_s * sqrt(work.left)))
    return sorted(works, key=lambda work: work.due_s)


def assert_in_time_when_followed(works: Sequence[Work], costs: CorrectedCosts, max_batch: int) -> None:
    """Runs a plan launch by launch, each for as long as the table says."""
    certificate, now_s = plan(works, 0.0, max_batch=max_batch), 0.0
    assert certificate is not None
    while members := certificate.next_members():
        assert len(members) <= max_batch
        assert len({work.kind for work in members}) == 1 or can_mix(members), "a launch is of one kind or mixed"
        assert certificate.latest_start_s(1.0) >= now_s - ROUNDING_S, "the rest can still be in time"
        now_s += launch_s(members, costs)
        for work in members:
            work.advance(work.longest)
        ended = [work for work in members if not work.left]
        answering = ended[0].answering if ended else None
        late_s = 0.0 if answering is None else answering.late_s[len(ended)]
        for work in ended:
            assert now_s + late_s <= work.due_s + ROUNDING_S, "it ends in time"
        now_s += 0.0 if answering is None else answering.decode_s[len(ended)]
    assert not any(work.left for work in works), "everybody is done"


def can_mix(members: Sequence[Work]) -> bool:
    mixings = {work.rung.mixing for work in members}
    return len(mixings) == 1 and None not in mixings


def launch_s(members: Sequence[Work], costs: CorrectedCosts) -> float:
    """Of these, each at its lowest level, by the table."""
    kind = members[0].ladder.across([work.lowest for work in members])
    return costs.row_s(kind)[len(members)]


@pytest.mark.parametrize("seed", range(600))
def test_whoever_follows_a_plan_is_in_time_with_everybody(seed: int) -> None:
    random = Random(seed)
    costs = drawn_costs(random, decodes=seed % 2 == 1)
    works = drawn_works(random, costs, random.choice([2, 5, 12, 40]), random.choice([2, 8, 20]))
    max_batch = random.choice([1, 3, 8])
    if plan(works, 0.0, max_batch=max_batch) is not None:
        assert_in_time_when_followed(works, costs, max_batch)


@pytest.mark.parametrize("seed", range(200))
def test_whichever_levels_end_in_one_launch_decoding_takes_no_longer_than_is_planned(seed: int) -> None:
    random = Random(seed)
    ended = drawn_works(random, drawn_costs(random, decodes=True), random.randint(1, 8), 1)
    planned_s, planned_late_s = decoded(ended)
    cuts = [level for level in LEVELS if random.random() < 0.5]
    launches = [
        (work.rung.mixing, sum(cut <= work.lowest for cut in cuts)) if work.rung.mixing else work.rung for work in ended
    ]
    answering = {launch: work.answering for launch, work in zip(launches, ended, strict=True)}
    took_s = {launch: told.decode_s[launches.count(launch)] for launch, told in answering.items() if told}
    assert sum(took_s.values()) <= planned_s + ROUNDING_S
    for launch, late_s in zip(launches, planned_late_s, strict=True):
        others_s, told = sum(took_s.values()) - took_s[launch], answering[launch]
        assert told is not None
        assert others_s + told.late_s[launches.count(launch)] <= late_s + ROUNDING_S, "whose launch was the last"


@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(100))
def test_the_few_that_are_remembered_decide_as_all_do_until_when_a_plan_may_wait(seed: int, margin: float) -> None:
    """No later, where margins have shrunk since they were found."""
    random = Random(seed)
    works = drawn_works(random, drawn_costs(random), random.choice([5, 12, 40]), 20, margin)
    certificate = plan(works, 0.0, max_batch=8)
    if certificate is None:
        return
    ids = {work.request_id: work for work in works}
    while any(work.left for work in works):
        if random.random() < 0.5:
            certificate.follow(correction=1.0)
        for correction in (0.85, 0.99, 1.0, 1.02, 1.19):
            looked_at_all = certificate.copy(ids).latest_start_s(correction)
            remembered = certificate.latest_start_s(correction)
            assert remembered <= looked_at_all if margin else remembered == looked_at_all
        for work in certificate.next_members() if random.random() < 0.7 else works:
            if work.left:
                work.advance(work.longest)


@pytest.mark.parametrize("seed", range(200))
def test_no_shorter_step_needs_more_afterwards_nor_others(seed: int) -> None:
    """Whatever strides a request takes: the longest steps that are left are an end of those that were planned."""
    random = Random(seed)
    costs = drawn_costs(random)
    steps, longest = random.randint(1, 13), random.choice([1, 2, 3, 5])
    losses = {2: (0.0, *(0.01 * stride for stride in range(longest)))}
    demand = Demand(
        request_id=0,
        shape=SHAPES[0],
        arrived_s=0.0,
        deadline_s=1.0,
        weak_caps=tuple(random.choice([None, None, 2]) for _ in range(steps)),
        min_level=2,
        max_level=8,
        ceilings=tuple(random.choice([2, 4, 8]) for _ in range(steps)),
        coarsening=Coarsening.of(time_grid(steps), losses) if longest > 1 else None,
    )
    work = Work(demand, costs, latest_s=1.0, margin_s=0.01, order=1.0)
    planned = [run.kind for run in work.runs for _ in range(run.steps)]
    while work.at < steps:
        before = [getattr(work, name) for name in ("at", "left", "run", "run_left", "kind", "highest")]
        assert work.left == ceil((steps - work.at) / longest)
        assert work.due_s == pytest.approx(1.0 - 0.01 * sqrt(work.left))
        assert work.kind == planned[len(planned) - work.left]
        assert work.solo_s == pytest.approx(sum(costs.row_s(kind)[1] for kind in planned[len(planned) - work.left :]))
        cap, (_, ceiling) = demand.weak_caps[work.at], demand.bounds[work.at]
        assert cap is None or work.ladder.weak_cap == cap
        assert work.highest <= ceiling
        stride = random.randint(1, work.longest)
        work.advance(stride)
        work.retreat(stride)
        assert [getattr(work, name) for name in ("at", "left", "run", "run_left", "kind", "highest")] == before
        work.advance(stride)
    assert work.left == 0
    assert work.solo_s == pytest.approx(0)


def is_possible(works: Sequence[Work], costs: CorrectedCosts, max_batch: int) -> bool:
    """Whether any order of launches at the lowest levels has everybody in time: all are tried."""
    runs = [[run for run in work.runs for _ in range(run.steps)] for work in works]

    @cache
    def can_end(done: tuple[int, ...], now_s: float) -> bool:
        if any(now_s > work.due_s + ROUNDING_S for work, steps in zip(works, done, strict=True) if steps < work.left):
            return False
        nexts = {i: runs[i][steps] for i, steps in enumerate(done) if steps < works[i].left}
        for size in range(1, min(len(nexts), max_batch) + 1):
            for members in combinations(nexts, size):
                kinds, mixings = {nexts[i].kind for i in members}, {nexts[i].rung.mixing for i in members}
                if len(kinds) > 1 and (len(mixings) > 1 or None in mixings):
                    continue
                kind = nexts[members[0]].ladder.across([kind.level for kind in kinds])
                end_s = now_s + costs.row_s(kind)[size]
                after = tuple(steps + (i in members) for i, steps in enumerate(done))
                late = any(after[i] == works[i].left and end_s > works[i].due_s + ROUNDING_S for i in members)
                if not late and can_end(after, round(end_s, 9)):
                    return True
        return not nexts

    return can_end((0,) * len(works), 0.0)


def test_no_plan_is_found_where_no_order_of_launches_is_in_time_and_some_where_one_is() -> None:
    possible, found = 0, 0
    for seed in range(400):
        random = Random(seed)
        costs = drawn_costs(random)
        works = drawn_works(random, costs, random.choice([2, 3]), 3)
        max_batch = random.choice([1, 2, 3])
        truth = is_possible(works, costs, max_batch)
        for planned in (plan(works, 0.0, max_batch=max_batch), plan_plain.plan(works, 0.0, max_batch=max_batch)):
            assert truth or planned is None, f"seed {seed}: what is planned is impossible"
        possible += truth
        found += plan(works, 0.0, max_batch=max_batch) is not None
    assert possible >= 150
    assert found >= 0.95 * possible, f"{found} of {possible}"


@pytest.mark.parametrize(("decodes", "slack"), [(False, SLACK), (True, 3 * SLACK)])
def test_the_fast_planner_accepts_what_the_plain_one_accepts_but_for_a_hundredth(decodes: bool, slack: float) -> None:
    """It looks for who may join only when somebody in the batch ends or goes on with another kind of step; the plain
    one looks before every round, and now and then somebody gains time enough in between. Where decoding takes as long
    as steps do, paces change with it in between."""
    accepted, only_plain = 0, 0
    for seed in range(1500):
        random = Random(seed)
        works = drawn_works(
            random, drawn_costs(random, decodes=decodes), random.choice([2, 5, 12, 30]), random.choice([2, 8, 20])
        )
        max_batch = random.choice([1, 3, 8])
        fast = plan(works, 0.0, max_batch=max_batch) is not None
        accepted += fast
        only_plain += not fast and plan_plain.plan(works, 0.0, max_batch=max_batch) is not None
    assert 500 <= accepted <= 1300
    assert only_plain <= slack * accepted, f"{only_plain} of {accepted}"
