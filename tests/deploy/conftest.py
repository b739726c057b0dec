"""The files of `deploy/`, and a fleet to watch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import COST, AsPredicted, as_a_fleet, running_models

from elit_serve.engine.pipeline import Pipeline
from elit_serve.server.engines import LoadedModel, num_slots
from elit_serve.server.settings import Settings


@pytest.fixture(scope="session")
def deploy_dir() -> Path:
    return Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def fleet_url(measured_model_dir: Path) -> Iterator[str]:
    """A server in front of a replica, with measured quality: it has every series that there is."""
    settings = Settings(response_ms=0)
    pipeline = Pipeline.load(measured_model_dir, device="cpu")
    executor = AsPredicted(pipeline, num_slots=num_slots(settings))
    executor.cost = COST
    model = LoadedModel(pipeline=pipeline, executor=executor, cost=COST)
    with as_a_fleet(model, settings) as fleet, running_models([model], settings, [fleet]) as server:
        yield server.url
