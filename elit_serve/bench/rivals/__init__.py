"""Published ways to serve with and without a budget, behind the server's `Scheduler` interface; never in the server."""

from elit_serve.bench.rivals.admission import BudgetAtAdmission
from elit_serve.bench.rivals.ewma import EwmaBudget
from elit_serve.bench.rivals.fixed import BatchedFifo, StepFifo
from elit_serve.bench.rivals.slackfit import SlackFit, StepSlackFit

__all__ = ["BatchedFifo", "BudgetAtAdmission", "EwmaBudget", "SlackFit", "StepFifo", "StepSlackFit"]
