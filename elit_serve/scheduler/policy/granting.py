"""Which launch leaves every promise a way to be kept: it is tried out, and taken back if none does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from elit_serve.scheduler.policy.cohort import Cohort
from elit_serve.scheduler.policy.pace import Work
from elit_serve.scheduler.policy.promises import Promises, reserve_s
from elit_serve.scheduler.policy.view import View


def longest_strides(members: Iterable[Work]) -> list[int]:
    """The largest stride that each may take."""
    return [1 if work.max_stride == 1 else work.longest for work in members]


def advance(members: Iterable[Work], strides: Iterable[int]) -> None:
    """These have run a step, each of its own stride."""
    for work, stride in zip(members, strides, strict=True):
        work.advance(stride)


def granted_level(
    promises: Promises, cohort: Cohort, strides: Sequence[int], levels: Sequence[int], *, view: View, margin: float
) -> int | None:
    """The highest of `levels`, wished for these, at which they can take such steps with every promise kept; then they
    count as run. margin: see `ElasticSettings`."""
    granted = None
    unplanned_s = sum([work.demand.prepare_s for work in cohort.members if not (work.at or work.demand.is_hard)])
    advance(cohort.members, strides)
    try:
        granted = _safe_level(promises, cohort, levels, view, view.start_s + unplanned_s, margin)
    finally:
        if granted is None:
            for work, stride in zip(cohort.members, strides, strict=True):
                work.retreat(stride)
    return granted


def _safe_level(
    promises: Promises, cohort: Cohort, levels: Sequence[int], view: View, start_s: float, margin: float
) -> int | None:
    """The highest of `levels` at which these, who count as run, leave every promise a way to be kept, though their next
    launch take longer than predicted. start_s: of their step, behind what is to be done before."""
    correction = view.costs.correction
    ending = [work for work in cohort.members if not work.left]
    decode_s, late_s = _decoding(ending, correction)
    due_s = min([work.due_s - late_s for work in ending if work.is_promised], default=inf)
    spare = margin * view.costs.deviation
    next_s = reserve_s(cohort.members, correction * cohort.step_s(levels[0]), margin, view)
    has_tried = False
    for candidate in reversed(levels):
        step_s = correction * cohort.step_s(candidate)
        end_s = start_s + step_s
        if end_s + spare * step_s > due_s:
            continue
        free_s = end_s + decode_s + next_s
        if promises.certificate.may_start(free_s, correction) or (
            not has_tried and promises.replan_with_slack(free_s, view)
        ):
            return candidate
        has_tried = True
    return None


def _decoding(ending: Sequence[Work], correction: float) -> tuple[float, float]:
    """How long these, who end in one launch, are decoded, and how much later than alone they are then answered."""
    answering = ending[0].answering if ending else None
    if answering is None:
        return 0.0, 0.0
    return correction * answering.decode_s[len(ending)], correction * answering.late_s[len(ending)]
