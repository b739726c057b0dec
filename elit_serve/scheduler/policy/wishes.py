"""What would run next if no promise stood in the way: who, at which level, and in how long steps.

Level and strides maximise quality minus price times seconds, where the price of a second of the device follows from how
much work is due how soon, and from how much is expected to arrive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from elit_serve.plans.coarsening import Coarsening
from elit_serve.scheduler.arrivals import Urgent
from elit_serve.scheduler.mixing import Mixing
from elit_serve.scheduler.policy.cohort import Cohort, Mix, keep_pace
from elit_serve.scheduler.policy.pace import Ladder, Work, paces_s
from elit_serve.scheduler.policy.price import Rates
from elit_serve.scheduler.policy.view import View
from elit_serve.scheduler.quality import QualityTable


class Wishes:
    """quality, parking: see `ElasticPolicy` and `ElasticSettings`."""

    def __init__(self, quality: QualityTable, parking: float) -> None:
        self._quality, self._parking = quality, parking
        self._rates: dict[tuple[int, Ladder, Coarsening | None], Rates] = {}
        self._mix: Mix | None = None

    def rates_of(self, count: int, like: Work, view: View) -> Rates:
        """Of a plan and a next step as this one's, for the batch that so many requests can fill; remembered."""
        key = min(count, view.max_batch), like.ladder, like.demand.coarsening
        rates = self._rates.get(key)
        if rates is None:
            batch, ladder, coarsening = key
            rates = self._rates[key] = Rates(self._quality, view.costs, batch, ladder, coarsening)
        return rates

    def cohort(self, order: Sequence[Work], urgent: Urgent, view: View) -> tuple[Cohort, float]:
        """Whom of these to run, the most urgent first, at which level, and at which price of a second.

        urgent: what is expected to come and cannot wait.
        """
        head, mixing, rates = order[0], order[0].rung.mixing, self.rates_of(len(order), order[0], view)
        stretch = self._stretch(order, urgent, view)
        crowd = [] if mixing is None else [work for work in order if work.rung.mixing is mixing][: view.max_batch]
        bounds = dict(Counter([work.bounds for work in crowd]))
        if mixing is None or len(bounds) == 1:
            price = rates.price(stretch * head.row[1])
            level_price = price / rates.mean_stride(price) / self._weight(order[: view.max_batch])
            cohort = _alike(order, level_price, rates, view)
        else:
            mix = self._mix_of(bounds, mixing, rates)
            longer = stretch * sum([work.row[1] for work in crowd]) / mix.least_s
            price = rates.price(longer * rates.least_s)
            level_price = price / rates.mean_stride(price) / self._weight(crowd)
            cohort = mix.cohort(crowd, level_price, view.costs)
        if all(work.is_hurried for work in cohort.members):
            cohort.level = max(work.lowest for work in cohort.members)
        lowest = min(cohort.distinct, default=head.bounds)[0]
        levels = view.costs.levels_within(lowest, cohort.level)
        keep_pace(cohort, levels, level_price, view, parking=self._parking)
        return cohort, price

    def strides(self, cohort: Cohort, longest: Sequence[int], price: float, view: View) -> list[int]:
        """Of each member, what is worth most at this price.

        A promise that cannot go on to its end in the shortest steps, if they take as long as this one, would take the
        time that it lacks from the level of all. So a second is worth to it at least what the highest level would lose.
        """
        members, levels, step_s = cohort.members, cohort.levels(cohort.level), cohort.step_s(cohort.level)
        everywhere: dict[tuple[Coarsening, bool, int], Sequence[int]] = {}
        wished = []
        for work, level, most, pace_s in zip(members, levels, longest, paces_s(members, view), strict=True):
            coarsening = work.demand.coarsening
            if coarsening is None or work.is_hurried:
                wished.append(most)
                continue
            lacks_time = work.is_promised and pace_s < work.max_stride * step_s
            best = everywhere.get((coarsening, lacks_time, level))
            if best is None:
                rates = self.rates_of(len(members), work, view)
                own_price = max(price, rates.top_price) if lacks_time else price
                best = everywhere[coarsening, lacks_time, level] = rates.best_strides(level, own_price)
            wished.append(min(best[work.at], most))
        return wished

    def _mix_of(self, bounds: dict[tuple[int, int], int], mixing: Mixing, rates: Rates) -> Mix:
        """The last one, as long as the crowd has the same bounds: that saves 4 % of a decision (2026-12-02)."""
        if self._mix is None or not self._mix.is_of(bounds, mixing, rates):
            self._mix = Mix(bounds, mixing, rates)
        return self._mix

    def _weight(self, works: Sequence[Work]) -> float:
        """What a level is worth at the next steps of these, 1 in the mean of a picture's steps: late ones weigh more,
        so seconds are better spent on them."""
        if self._quality.late == 1:
            return 1.0
        weights = self._quality.weights
        return sum([weights[work.num_steps][work.at] for work in works]) / len(works)

    def _stretch(self, order: Sequence[Work], urgent: Urgent, view: View) -> float:
        """How many times as long as alone at the lowest level each step may take, for all to be in time.

        Urgent work is expected to come as it lately has, besides what is there, but no more than the device can take at
        the level with the most quality per millisecond: more is refused. Of whoever comes before a request must have
        ended, as much is due by then as that is a share of his own target; the rest can run afterwards.
        """
        now_s, correction = view.start_s, view.costs.correction
        taken = self.rates_of(view.max_batch, order[0], view).throughput / correction
        coming, target_s = min(urgent.rate, taken), urgent.target_s
        densest = work_s = 0.0  # seconds of work that are due, per second until then
        for work in order:
            solo_s = work.solo_s
            work_s += solo_s + work.decode_s
            left_s, least_s = work.latest_s - now_s, correction * solo_s
            if left_s < least_s:
                left_s = least_s
            density = work_s / left_s + (coming if left_s >= target_s else coming * left_s / target_s)
            if density > densest:
                densest = density
        return 1 / (correction * densest)


def _alike(order: Sequence[Work], price: float, rates: Rates, view: View) -> Cohort:
    """All who may run at the level that is best for the first."""
    head = order[0]
    ladder = head.ladder
    level = rates.best_level(view.costs.levels_within(head.lowest, head.highest), price)
    members = [
        work
        for work in order
        if (work.ladder is ladder or work.ladder == ladder) and work.lowest <= level <= work.highest
    ]
    del members[view.max_batch :]
    return Cohort(members, level, ladder, rates, view.costs)
