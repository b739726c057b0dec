"""Which request gets how much compute, decided on values; standard library only."""

from elit_serve.scheduler.core import Counters, RequestScheduler
from elit_serve.scheduler.costs import CostTable
from elit_serve.scheduler.menu import Option, PlanMenu
from elit_serve.scheduler.policy.elastic import ElasticPolicy, ElasticSettings
from elit_serve.scheduler.policy.fixed import FixedPolicy
from elit_serve.scheduler.quality import MeasuredPlan, QualityTable

__all__ = [
    "CostTable",
    "Counters",
    "ElasticPolicy",
    "ElasticSettings",
    "FixedPolicy",
    "MeasuredPlan",
    "Option",
    "PlanMenu",
    "QualityTable",
    "RequestScheduler",
]
