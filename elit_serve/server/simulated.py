"""From settings to a model that only takes the time of a device: `--simulate`."""

from __future__ import annotations

from pathlib import Path
from random import Random

from elit_serve.clock import MonotonicClock
from elit_serve.engine.random_weights import RANDOM_RESOLUTION
from elit_serve.engine.simulated.executor import SimulatedExecutor
from elit_serve.engine.simulated.model import (
    Described,
    SimulatedModel,
    described_model,
    described_preset,
    read_costs,
)
from elit_serve.errors import InvalidInput
from elit_serve.scheduler.noisy_costs import NoisyCosts
from elit_serve.server.engines import LoadedModel, num_slots
from elit_serve.server.settings import Settings

OF_A_DEVICE = ("device", "dtype", "quantize", "threads", "preview_autoencoder")
OF_SIMULATION = ("simulate_noise", "simulate_bias", "simulate_failures")


def check_simulation(settings: Settings) -> None:
    """Raises `InvalidInput` for settings that say nothing beside `simulate`, or nothing without it."""
    if settings.simulate is None:
        for name in OF_SIMULATION:
            if value := getattr(settings, name):
                raise InvalidInput(name, value, "it goes with simulate")
        return
    for name in OF_A_DEVICE:
        if (value := getattr(settings, name)) is not None:
            raise InvalidInput(name, value, "left out, because nothing is computed with simulate")


def simulated_model(settings: Settings) -> LoadedModel:
    """The model of these settings, with `simulate`, and a device on paper with room for its pictures."""
    assert settings.simulate is not None
    autoencoder = None if settings.autoencoder is None else Path(settings.autoencoder)
    described = _described(settings)
    latency = read_costs(settings.simulate, described)
    model = SimulatedModel(described, latency, autoencoder=autoencoder, sizes=settings.sizes)
    cost, rng = model.costs(latency, settings.simulate), Random()
    device = NoisyCosts(cost, noise=settings.simulate_noise, bias=settings.simulate_bias, rng=rng)
    executor = SimulatedExecutor(
        device,
        model.placeholders(),
        num_texts=model.conditions.num_unknown,
        num_slots=num_slots(settings),
        clock=MonotonicClock(),
        failures=settings.simulate_failures,
        rng=rng,
    )
    return LoadedModel(pipeline=model, executor=executor, cost=cost)


def _described(settings: Settings) -> Described:
    if settings.random_weights is None:
        return described_model(settings.model)
    autoencoder = None if settings.autoencoder is None else Path(settings.autoencoder)
    resolution = settings.resolution or RANDOM_RESOLUTION
    return described_preset(settings.random_weights, resolution, sizes=settings.sizes, autoencoder=autoencoder)
