"""A server under many callers of many kinds at once: is everybody told, and does it stay fast, small and responsive?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from elit_serve.bench.load.subjects import subjects_of
from elit_serve.bench.soak.callers import LEFT, Callers, Tally
from elit_serve.bench.soak.ledger import Samples, increase, quantile, read_samples, unaccounted
from elit_serve.client import AsyncClient
from elit_serve.clock import Clock
from elit_serve.files.records import RequestEnding

MIX: Mapping[str, float] = {
    "promised": 0.3,
    "best_effort": 0.2,
    "pinned": 0.2,
    "leaving": 0.1,
    "stream": 0.1,
    "job": 0.1,
}
SAME: Mapping[str, float] = {"same": 1.0}
FEW = 2  # callers who keep a device busy: one is computed while the other is answered
MIN_THROUGHPUT = 0.9
MAX_GROWTH = 1.1
MAX_LAG_S = 0.05
RESIDENT = "process_resident_memory_bytes"
IDLE_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class SoakOptions:
    """seconds: of the mixed load; each of the four phases around it takes half of that. prompts: one is drawn for each
    request; empty for the classes of the model, or the prompts that it shows. api_key: with the scopes generate and
    metrics."""

    url: str
    callers: int = 200
    seconds: float = 60.0
    seed: int = 0
    prompts: tuple[str, ...] = ()
    timeout_s: float = 600.0
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Check:
    """A figure and what it must be, in words."""

    name: str
    value: float | int
    limit: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class SoakReport:
    """mix: many callers of all kinds. few_mix: two of these. few_same, same: steps per second, each picture's on its
    own, of two and of many callers with always the same work.

    discrepancies: between what the mix was told and what the server counted. resident: bytes after the warm-up and
    after the mix, at rest. lag_s: of the event loop while all callers asked, 99th percentile, up to the edge of
    a bucket.
    """

    mix: Tally
    few_mix: Tally
    few_same: float
    same: float
    discrepancies: tuple[str, ...]
    resident: tuple[float, float]
    lag_s: float

    @property
    def checks(self) -> tuple[Check, ...]:
        failed = self.mix.of(RequestEnding.FAILED)
        of_mix = _ratio(self.mix.images_per_s, self.few_mix.images_per_s)
        of_same = _ratio(self.same, self.few_same)
        growth = self.resident[1] / self.resident[0]
        count = len(self.discrepancies)
        return (
            Check(name="requests failed", value=failed, limit="0", holds=failed == 0),
            Check(name="counts that do not agree", value=count, limit="0", holds=count == 0),
            _at_least("images per second over two callers'", of_mix, MIN_THROUGHPUT),
            _at_least("steps per second of the same work over two callers'", of_same, MIN_THROUGHPUT),
            _at_most("memory over that after the warm-up", growth, MAX_GROWTH),
            _at_most("event loop lag, 99th percentile, seconds", self.lag_s, MAX_LAG_S),
        )

    def as_dict(self) -> dict[str, object]:
        return {
            "checks": {check.name: {"value": check.value, "holds": check.holds} for check in self.checks},
            "discrepancies": list(self.discrepancies),
            "resident_bytes": list(self.resident),
            "mix": _told(self.mix),
            "few_mix": _told(self.few_mix),
            "steps_per_s": {"few_same": self.few_same, "same": self.same},
        }


def run_soak(options: SoakOptions, *, clock: Clock) -> SoakReport:
    """Takes about twice `seconds`, and what it takes until everybody is answered."""
    return asyncio.run(_soak(options, clock))


async def _soak(options: SoakOptions, clock: Clock) -> SoakReport:
    async with AsyncClient(options.url, api_key=options.api_key, timeout_s=options.timeout_s) as client:
        model = (await client.models())[0]
        solo_ms = max(level.latency_ms or 0.0 for level in model.levels)
        subjects = subjects_of(model, options.prompts)
        callers = Callers(client, subjects=subjects, solo_ms=solo_ms, seed=options.seed, clock=clock)
        many, short_s = options.callers, options.seconds / 2
        await callers.ask(MIX, callers=many, seconds=short_s)
        warm = await _at_rest(client)
        few_mix = await callers.ask(MIX, callers=FEW, seconds=short_s, wait=True)
        few_same = await _steps_per_s(client, callers, FEW, short_s, clock)
        before = await _at_rest(client)
        mixing = asyncio.create_task(callers.ask(MIX, callers=many, seconds=options.seconds, wait=True))
        await asyncio.sleep(options.seconds)
        loaded = read_samples(await client.metrics())
        mix, after = await mixing, await _at_rest(client)
        same = await _steps_per_s(client, callers, many, short_s, clock)
    return SoakReport(
        mix=mix,
        few_mix=few_mix,
        few_same=few_same,
        same=same,
        discrepancies=tuple(unaccounted(mix, increase(before, after))),
        resident=(warm[RESIDENT], after[RESIDENT]),
        lag_s=quantile(increase(before, loaded), "elit_event_loop_lag_seconds", 0.99),
    )


async def _steps_per_s(client: AsyncClient, callers: Callers, count: int, seconds: float, clock: Clock) -> float:
    """By the server's count, which needs no picture to be finished."""
    before, began_s = await _at_rest(client), clock.now()
    await callers.ask(SAME, callers=count, seconds=seconds)
    took_s, after = clock.now() - began_s, read_samples(await client.metrics())
    return (after["elit_cohort_size_sum"] - before["elit_cohort_size_sum"]) / took_s


async def _at_rest(client: AsyncClient) -> Samples:
    """The server's metrics once nothing is in flight any more: those who left, too, are forgotten."""
    while True:
        samples = read_samples(await client.metrics())
        if samples["elit_queue_length"] == samples["elit_running"] == samples["elit_jobs_in_engine"] == 0:
            return samples
        await asyncio.sleep(IDLE_POLL_S)


def _ratio(many: float, few: float) -> float:
    """NaN, which keeps no limit, if the phase was too short for a single picture."""
    return many / few if few else float("nan")


def _at_least(name: str, value: float, least: float) -> Check:
    return Check(name=name, value=value, limit=f"at least {least:g}", holds=value >= least)


def _at_most(name: str, value: float, most: float) -> Check:
    return Check(name=name, value=value, limit=f"at most {most:g}", holds=value <= most)


def _told(tally: Tally) -> dict[str, object]:
    endings = {ending: tally.of(ending) for ending in (*RequestEnding, LEFT)}
    return {
        "seconds": tally.seconds,
        "requests": tally.sent(),
        "endings": endings,
        "reasons": dict(tally.reasons.most_common()),
        "images": tally.images,
        "images_per_s": tally.images_per_s,
    }
