"""Every policy that can be compared, by name: the server's two and their rivals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from elit_serve.bench.rivals import BatchedFifo, BudgetAtAdmission, EwmaBudget, SlackFit, StepFifo, StepSlackFit
from elit_serve.bench.simulate.workload import Setting
from elit_serve.errors import InvalidInput
from elit_serve.scheduler import ElasticPolicy, FixedPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.drive import Scheduler


@dataclass(frozen=True, kw_only=True)
class Contender:
    """reads_quality: whether the curve changes what it does; otherwise one run is judged by every curve.

    takes_strides: whether its requests may be finished in longer steps; otherwise the level alone is elastic.
    serves_all: whether it serves pins, several kinds of guidance and priorities.
    """

    make: Callable[[Setting, QualityTable], Scheduler]
    reads_quality: bool = False
    takes_strides: bool = False
    serves_all: bool = False


def _elastic(setting: Setting, quality: QualityTable) -> Scheduler:
    return RequestScheduler(setting.table, ElasticPolicy(quality))


CONTENDERS: Mapping[str, Contender] = {
    "elastic": Contender(make=_elastic, reads_quality=True, serves_all=True),
    "elastic-strides": Contender(make=_elastic, reads_quality=True, takes_strides=True, serves_all=True),
    "fixed": Contender(make=lambda setting, _: RequestScheduler(setting.table, FixedPolicy()), serves_all=True),
    "fifo-batch": Contender(make=lambda setting, _: BatchedFifo(setting)),
    "fifo-step": Contender(make=lambda setting, _: StepFifo(setting)),
    "slackfit": Contender(make=lambda setting, _: SlackFit(setting)),
    "slackfit-step": Contender(make=lambda setting, _: StepSlackFit(setting)),
    "admission": Contender(make=lambda setting, _: BudgetAtAdmission(setting)),
    "ewma": Contender(make=lambda setting, _: EwmaBudget(setting)),
}


def contender(name: str) -> Contender:
    if name not in CONTENDERS:
        raise InvalidInput("policy", name, f"one of {', '.join(CONTENDERS)}")
    return CONTENDERS[name]
