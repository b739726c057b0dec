"""The model of a fleet, as the HTTP server opens an engine for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elit_serve.clock import Clock
from elit_serve.engine.observer import Observer
from elit_serve.engine.served_model import ServedModel
from elit_serve.fleet.fleet import Fleet
from elit_serve.fleet.link import Link
from elit_serve.fleet.loop_thread import LoopThread
from elit_serve.fleet.messages import ReplicaFacts
from elit_serve.server.engines import Engine, open_plans_of
from elit_serve.server.fairness import FairShares
from elit_serve.server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class FleetModel:
    """What replicas that are there say of it: a `Servable` without weights.

    facts: of each replica. Where their devices differ, sizes of orders and forecasts go by the first one's costs.
    """

    link: Link
    thread: LoopThread
    facts: Sequence[ReplicaFacts]
    keeps_account: bool = True

    @property
    def served(self) -> ServedModel:
        return self.facts[0].model

    @property
    def where(self) -> str:
        kinds = sorted({each.device for each in self.facts})
        count = "1 replica" if len(self.facts) == 1 else f"{len(self.facts)} replicas"
        return f"{count} ({'; '.join(kinds)})"

    def open(self, settings: Settings, *, shares: FairShares | None, observer: Observer, clock: Clock) -> Engine:
        first = self.facts[0]
        return Engine(
            model=first.model,
            settings=settings,
            cost=first.cost,
            open_plans=open_plans_of(first.model, first.cost, settings),
            worker=Fleet(
                self.link,
                self.thread,
                self.facts,
                clock=clock,
                observer=observer,
                keeps_account=self.keeps_account,
            ),
            file_times=first.file_times,
            shares=shares,
            keeps_account=self.keeps_account,
        )
