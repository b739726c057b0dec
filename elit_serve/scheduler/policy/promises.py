"""Everything that was promised, and the certificate that all of it can be kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf

from elit_serve.scheduler.policy.pace import Work
from elit_serve.scheduler.policy.plan import Certificate, plan
from elit_serve.scheduler.policy.view import View

NEXT_LAUNCH = 2 / 3  # of the margin is kept for the launch that follows: two standard deviations in place of three
REPLAN_SLOWDOWN = 1.3  # a new plan is made with this to spare, so that it serves several decisions


class Promises:
    """Promised requests that have steps to run, and a plan that is valid as long as predictions are right.

    works: in order of their deadlines. All of them may run at any time, whatever the plan says of them.
    """

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.certificate = Certificate.of_nothing()

    def copy(self, works: Mapping[int, Work]) -> Promises:
        """The same with copies of the requests, by their ids."""
        twin = Promises()
        twin.works = [works[work.request_id] for work in self.works]
        twin.certificate = self.certificate.copy(works)
        return twin

    def keep(self, works: list[Work], certificate: Certificate) -> None:
        """From now on all of these, by this plan."""
        self.works, self.certificate = works, certificate

    def let_go(self, ended: Iterable[Work]) -> None:
        """Forgets these, which have nothing left."""
        for work in ended:
            self.works.remove(work)

    def replan(self, start_s: float, view: View) -> bool:
        """Looks for a new plan from `start_s` on; False if the old one stays."""
        return self._follow(plan_for(self._unfinished(), start_s, view))

    def replan_with_slack(self, start_s: float, view: View) -> bool:
        """The same for a plan with time to spare, or else for one without."""
        return self._follow(plan_with_slack(self._unfinished(), start_s, view))

    def _unfinished(self) -> list[Work]:
        return [work for work in self.works if work.left]

    def _follow(self, found: Certificate | None) -> bool:
        if found is not None:
            self.certificate = found
        return found is not None


def reserve_s(members: Iterable[Work], launch_s: float, margin: float, view: View) -> float:
    """Seconds that a launch of these, which takes `launch_s`, may take longer than predicted, beyond what each promise
    has to spare for a step of its own: a launch of many is far longer than a step alone. margin: see `ElasticSettings`.
    """
    own_s = min([work.margin_s for work in members if work.is_promised], default=inf)
    return max(0.0, NEXT_LAUNCH * margin * view.costs.deviation * launch_s - own_s)


def plan_with_slack(works: Sequence[Work], start_s: float, view: View, slowdown: float = 1.0) -> Certificate | None:
    """As `plan_for`, with time to spare if there is such a plan."""
    with_slack = plan_for(works, start_s, view, slowdown * REPLAN_SLOWDOWN)
    return plan_for(works, start_s, view, slowdown) if with_slack is None else with_slack


def plan_for(works: Sequence[Work], start_s: float, view: View, slowdown: float = 1.0) -> Certificate | None:
    """A plan for these (in order of their deadlines) on the device as it is, free from `start_s`, or None.

    slowdown: as if every step took so many times as long.
    """
    return plan(works, start_s, max_batch=view.max_batch, correction=slowdown * view.costs.correction)
