"""Whether a server's own counters account for every request that was sent to it."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from elit_serve.bench.soak.callers import LEFT, Tally
from elit_serve.files.records import RequestEnding

Samples = Mapping[str, float]  # by name and labels, as `elit_requests_total{outcome="ok",route="/v1/generate"}`
JOB = "job"
STREAM = "stream"


def read_samples(text: str) -> Samples:
    """Every sample of a scrape, summed over models: what was sent is not counted by model."""
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()) if name != "model")
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            samples[name] = samples.get(name, 0.0) + sample.value
    return samples


def increase(before: Samples, after: Samples) -> Samples:
    """Of counters, from one scrape to the next."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def unaccounted(tally: Tally, counted: Samples) -> list[str]:
    """What does not agree, in words. counted: increases from before the first request until all have ended.

    Whoever left may have been counted under any ending, or not at all if nobody had read what he sent.
    """
    direct = [kind for kind, _ in tally.endings if kind != JOB]
    streams = [STREAM]
    generates = [kind for kind in direct if kind != STREAM]
    left = tally.of(LEFT)
    checks = [
        (f"generations {ending}", counted[f'elit_generations_total{{outcome="{ending}"}}'], tally.of(ending), left)
        for ending in RequestEnding
    ]
    checks += [
        ("generations", _total(counted, "elit_generations_total"), tally.sent() - left, left),
        ("requests for /v1/generate", _requests(counted, "/v1/generate"), *_bounds(tally, generates)),
        ("requests for OpenAI's route", _requests(counted, "/v1/images/generations"), *_bounds(tally, streams)),
        ("requests for /v1/jobs", _requests(counted, "/v1/jobs"), tally.sent(JOB), 0),
    ]
    for state in ("done", "failed", "expired", "cancelled"):
        ending = LEFT if state == "cancelled" else state
        checks.append((f"jobs {state}", counted[f'elit_jobs_ended_total{{state="{state}"}}'], tally.of(ending, JOB), 0))
    return [
        f"{what}: the server counted {count:.0f}, its callers {least}" + (f" to {least + slack}" if slack else "")
        for what, count, least, slack in checks
        if not least <= count <= least + slack
    ]


def _bounds(tally: Tally, kinds: list[str]) -> tuple[int, int]:
    """(Surely counted, possibly counted besides)"""
    if not kinds:
        return 0, 0
    left = tally.of(LEFT, *kinds)
    return tally.sent(*kinds) - left, left


def _requests(counted: Samples, route: str) -> float:
    return sum(n for name, n in counted.items() if name.startswith("elit_requests_total{") and f'"{route}"' in name)


def _total(counted: Samples, metric: str) -> float:
    return sum(n for name, n in counted.items() if name.startswith(f"{metric}{{"))


def quantile(counted: Samples, histogram: str, share: float) -> float:
    """The upper edge of the bucket in which so many of a histogram's values lie; NaN of none."""
    prefix = f'{histogram}_bucket{{le="'
    buckets = [(float(name[len(prefix) : -2]), n) for name, n in counted.items() if name.startswith(prefix)]
    total = max((n for _, n in buckets), default=0.0)
    if not total:
        return float("nan")
    return min(edge for edge, n in buckets if n >= share * total)
