from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import COST, AsPredicted

from elit_serve.clock import MonotonicClock
from elit_serve.engine.pipeline import Pipeline
from elit_serve.fleet.replica import Replica
from elit_serve.server.engines import LoadedModel, num_slots
from elit_serve.server.settings import Settings


@pytest.fixture
def replica(tiny_pipeline: Pipeline) -> Iterator[Replica]:
    """Of the tiny model, named first."""
    settings = Settings(response_ms=0)
    slots = AsPredicted(tiny_pipeline, num_slots=num_slots(settings))
    slots.cost = COST
    model = LoadedModel(pipeline=tiny_pipeline, executor=slots, cost=COST)
    replica = Replica("first", model, settings, MonotonicClock(), transit_ms=0)
    replica.start()
    yield replica
    replica.drain(0)
