"""What a plan is, in a few lines: the fast one of `plan` is tested against it, and nothing else uses it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from elit_serve.scheduler.policy.pace import Work
from elit_serve.scheduler.policy.plan import ROUNDING_S
from elit_serve.scheduler.policy.rounds import decoded, launches_s

Round = list[int]  # the ids of who takes a step in it


def plan(works: Sequence[Work], start_s: float, *, max_batch: int, correction: float = 1.0) -> list[Round] | None:
    """The rounds in which `works` (in order of their deadlines) run to their end, everybody in time; None if they
    cannot so. The device is free from `start_s`, and each step takes `correction` times as long as by the table."""
    now_s, rounds = start_s, []
    batch: list[Work] = []
    waiting = [_due_as_now(work) for work in works]
    while waiting or batch:
        while waiting and len(batch) < max_batch and _keep_pace([*batch, waiting[0]], now_s, correction):
            batch.append(waiting.pop(0))
        if not batch:
            return None
        rounds.append([work.request_id for work in batch])
        now_s += correction * launches_s(batch)
        for work in batch:
            work.advance(work.longest)
        ended = [work for work in batch if not work.left]
        decode_s, late_s = decoded(ended)
        if any(
            now_s + correction * more_s > work.due_s + ROUNDING_S for work, more_s in zip(ended, late_s, strict=True)
        ):
            return None
        now_s += correction * decode_s
        batch = [work for work in batch if work.left]
    return rounds


def _due_as_now(work: Work) -> Work:
    """A copy whose margin does not shrink while the plan is made."""
    planned = copy(work)
    planned.latest_s, planned.margin_s = work.due_s, 0.0
    return planned


def _keep_pace(batch: Sequence[Work], now_s: float, correction: float) -> bool:
    """Whether nobody's steps may take less time than a round of all of these does; of unequal steps, in proportion."""
    stretch = min((work.due_s - now_s) * work.row[1] / work.solo_s for work in batch)
    return correction * launches_s(batch) <= stretch + ROUNDING_S
