"""Engines, held by the names of their models: what a server has of each, and how it starts one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import elit_serve
from elit_serve.catalogue import ModelQuality
from elit_serve.clock import Clock
from elit_serve.engine.encoders import EncoderOptions
from elit_serve.engine.executor.slots import AnyExecutor
from elit_serve.engine.file_times import FileTimes
from elit_serve.engine.maker import Maker
from elit_serve.engine.observer import Observer
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.engine.profile.profiler import device_name
from elit_serve.engine.served_model import ServedModel
from elit_serve.engine.worker import Worker
from elit_serve.errors import InvalidInput, ModelNotFound
from elit_serve.scheduler import CostTable, ElasticPolicy, ElasticSettings, FixedPolicy, RequestScheduler
from elit_serve.scheduler.quality import placeholder_quality
from elit_serve.server.fairness import FairShares
from elit_serve.server.settings import Settings

STARTED_SLOTS = 256  # beside those that wait: more pictures than a device runs at a time


def num_slots(settings: Settings) -> int:
    """Pictures that an executor must have room for."""
    return settings.max_queue + STARTED_SLOTS


class Servable(Protocol):
    """A model that an engine can be opened for: a `LoadedModel`, or one that others make the pictures of."""

    @property
    def served(self) -> ServedModel:
        """What is offered of it."""

    @property
    def where(self) -> str:
        """On what its pictures are made, for people."""

    def open(self, settings: Settings, *, shares: FairShares | None, observer: Observer, clock: Clock) -> Engine:
        """Its engine, whose worker has not been started."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model on its device, and what its steps cost there, before anything drives it. Both may be simulated."""

    pipeline: ServedModel
    executor: AnyExecutor
    cost: CostTable

    @property
    def served(self) -> ServedModel:
        return self.pipeline

    @property
    def where(self) -> str:
        simulated, precision = self.pipeline.simulated, self.pipeline.precision
        return (
            f"{simulated}, {precision}, simulated" if simulated else f"{device_name(self.pipeline.device)}, {precision}"
        )

    def open(self, settings: Settings, *, shares: FairShares | None, observer: Observer, clock: Clock) -> Engine:
        """With a `Worker`, which drives the device from a thread of this process."""
        pipeline = self.pipeline
        cost = replace(self.cost, overhead_ms=self.cost.overhead_ms + settings.response_ms)
        scheduler = open_scheduler(settings, cost, pipeline.quality)
        encoders = EncoderOptions(
            num_threads=settings.encoder_threads,
            compression=settings.png_compression,
            tells_prompts=settings.prompts_in_files == "on",
        )
        return Engine(
            model=pipeline,
            settings=settings,
            cost=cost,
            open_plans=open_plans_of(pipeline, cost, settings),
            worker=Worker(
                pipeline,
                self.executor,
                scheduler,
                clock=clock,
                observer=observer,
                encoders=encoders,
                text_ms=cost.text_ms,
            ),
            file_times=FileTimes.measured(pipeline, encoders, clock),
            shares=shares,
        )


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One model with the worker that makes its pictures.

    cost: with what HTTP adds. open_plans: by shape, for requests that leave it open how they are made. file_times: what
    files of other formats take beyond the costs. shares: of the keys in its queue; None where no keys are set.
    keeps_account: whether what its worker does is counted in this process.
    """

    model: ServedModel
    settings: Settings
    cost: CostTable
    open_plans: Mapping[str, OpenPlans]
    worker: Maker
    file_times: FileTimes
    shares: FairShares | None
    keeps_account: bool = True

    @property
    def name(self) -> str:
        return self.model.config.name

    @property
    def facts(self) -> dict[str, str]:
        """What is served, beside its name."""
        return {
            "hash": self.model.model_hash,
            "dtype": self.model.precision,
            "device": self.model.device_name,
            "version": elit_serve.__version__,
        }


class Engines(Mapping[str, Engine]):
    """All engines of a server, in the order in which they were given; the first is the default."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = {engine.name: engine for engine in engines}

    def __getitem__(self, name: str) -> Engine:
        return self._engines[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._engines)

    def __len__(self) -> int:
        return len(self._engines)

    @property
    def default(self) -> Engine:
        return next(iter(self._engines.values()))

    def of(self, model: str | None) -> Engine:
        """The engine that a request names, or the default one. Raises `ModelNotFound`."""
        if model is None:
            return self.default
        if model not in self._engines:
            raise ModelNotFound(model, ", ".join(self._engines))
        return self._engines[model]

    @property
    def num_waiting(self) -> int:
        """Pictures of which no step has run."""
        return sum(engine.worker.num_waiting for engine in self.values())

    @property
    def num_running(self) -> int:
        """Pictures between their first and their last step."""
        return sum(engine.worker.num_running for engine in self.values())

    @property
    def are_alive(self) -> bool:
        """Whether every one is: a server with a dead engine is to be started again."""
        return all(engine.worker.is_alive for engine in self.values())

    @property
    def are_ready(self) -> bool:
        """Whether every one takes requests and runs them without delay."""
        return all(engine.worker.is_ready for engine in self.values())

    @property
    def have_died(self) -> bool:
        """Whether one has ended by an error."""
        return any(engine.worker.has_died for engine in self.values())

    @property
    def are_draining(self) -> bool:
        """Whether no more requests are taken."""
        return any(engine.worker.is_draining for engine in self.values())

    def drain(self, seconds: float) -> None:
        """Takes no more requests, and waits until all that were accepted have ended, at most for so long."""
        with ThreadPoolExecutor(len(self)) as pool:
            for engine in self.values():
                pool.submit(engine.worker.drain, seconds)

    def stop(self) -> None:
        """Ends what is being made; from any thread."""
        for engine in self.values():
            engine.worker.stop()


def check_names(names: Sequence[str]) -> None:
    """Raises `InvalidInput` for models that cannot be told apart."""
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput("model", name, "models of different names, by which requests choose one")


def open_plans_of(model: ServedModel, cost: CostTable, settings: Settings) -> dict[str, OpenPlans]:
    """By shape; there are none without measurements, and under the fixed policy."""
    offered = model.quality if settings.policy == "elastic" else None
    return {} if offered is None else OpenPlans.by_shape(offered, cost, model.shape_names)


def open_scheduler(settings: Settings, cost: CostTable, quality: ModelQuality | None) -> RequestScheduler:
    """The scheduler that the settings ask for; without measured quality it works with a stated guess."""
    policy: ElasticPolicy | FixedPolicy
    if settings.policy == "elastic":
        table = placeholder_quality(cost.levels) if quality is None else quality.table
        policy = ElasticPolicy(table, ElasticSettings(max_waiting=settings.max_queue))
    else:
        policy = FixedPolicy(max_waiting=settings.max_queue)
    scheduler = RequestScheduler(cost, policy)
    if settings.max_batch is not None:
        scheduler.limit_batch(settings.max_batch)
    return scheduler
