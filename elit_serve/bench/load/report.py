"""What a load run measured: the field's usual figures, from recorded answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import numpy as np
from rich.table import Table

from elit_serve.files.records import RequestEnding, RequestRecord

UNITS = {
    "_ms": "ms",
    "_s": "s",
    "throughput": "requests/s",
    "goodput": "requests/s",
    "rate": "of 1",
    "attainment": "of 1",
    "budget": "of 1",
}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean, median and 99th percentile; None of nothing."""

    mean: float | None
    median: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not values:
            return cls(mean=None, median=None, p99=None)
        median, p99 = (float(np.percentile(values, share)) for share in (50, 99))
        return cls(mean=fmean(values), median=median, p99=p99)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Figures of a run. Rates are per second of `duration_s`, times are milliseconds, shares are fractions.

    slo_attainment_rate: on time, of all that were offered: a refusal is a miss. None if nothing had a target.
    accepted_attainment: on time, of all that were taken.
    e2el_ms: of answered requests, from the planned arrival to the whole answer.
    overhead_ms: what the client saw beyond what the server counted. send_delay_ms: this client's own lateness.
    added_ms: what the client saw beyond queue, compute and encode_ms.
    budget, queue_ms, compute_ms, encode_ms: means of what the server reports.
    """

    offered: int
    completed: int
    refused: Mapping[str, int]
    expired: int
    failed: Mapping[str, int]
    duration_s: float
    request_throughput: float
    request_goodput: float
    slo_attainment_rate: float | None
    accepted_attainment: float | None
    e2el_ms: Spread
    overhead_ms: Spread
    added_ms: Spread
    send_delay_ms: Spread
    budget: float | None
    queue_ms: float | None
    compute_ms: float | None
    encode_ms: float | None

    def as_dict(self) -> dict[str, object]:
        """Flat, with the names that other benchmarks use, as `p99_e2el_ms`."""
        fields = {name: value for name, value in asdict(self).items() if not isinstance(getattr(self, name), Spread)}
        for name in ("budget", "queue_ms", "compute_ms", "encode_ms"):
            fields[f"mean_{name}"] = fields.pop(name)
        for name in ("e2el_ms", "overhead_ms", "added_ms", "send_delay_ms"):
            fields |= {f"{which}_{name}": value for which, value in asdict(getattr(self, name)).items()}
        return fields


def open_summary(records: Sequence[RequestRecord]) -> Summary:
    """Of an open loop: it lasts from the first planned arrival to the last end."""
    began_s = min(record.planned_s for record in records)
    return summarise(records, duration_s=max(record.ended_s for record in records) - began_s)


def closed_summary(records: Sequence[RequestRecord], *, warm_up: int) -> Summary:
    """Of a closed loop, without the first `warm_up` ends (at least one), from the last of which it lasts."""
    assert 0 < warm_up < len(records), (warm_up, len(records))
    began_s = records[warm_up - 1].ended_s
    return summarise(records[warm_up:], duration_s=records[-1].ended_s - began_s)


def summarise(records: Sequence[RequestRecord], *, duration_s: float) -> Summary:
    done = [record for record in records if record.is_done]
    on_time = sum(record.is_on_time for record in records)
    num_refused = sum(record.ending is RequestEnding.REFUSED for record in records)
    has_targets = any(record.latency_ms is not None for record in records)
    return Summary(
        offered=len(records),
        completed=len(done),
        refused=_reasons(records, RequestEnding.REFUSED),
        expired=sum(record.ending is RequestEnding.EXPIRED for record in records),
        failed=_reasons(records, RequestEnding.FAILED),
        duration_s=duration_s,
        request_throughput=len(done) / duration_s,
        request_goodput=on_time / duration_s,
        slo_attainment_rate=_share(on_time, len(records)) if has_targets else None,
        accepted_attainment=_share(on_time, len(records) - num_refused) if has_targets else None,
        e2el_ms=Spread.of([record.e2el_ms for record in done]),
        overhead_ms=Spread.of(_known(record.overhead_ms for record in done)),
        added_ms=Spread.of(_known(record.added_ms for record in done)),
        send_delay_ms=Spread.of([1000 * (record.sent_s - record.planned_s) for record in records]),
        budget=_mean(_known(record.budget for record in done)),
        queue_ms=_mean(_known(record.queue_ms for record in done)),
        compute_ms=_mean(_known(record.compute_ms for record in done)),
        encode_ms=_mean(_known(record.encode_ms for record in done)),
    )


def summary_table(title: str, summary: Summary) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("unit")
    for name, value in summary.as_dict().items():
        table.add_row(name, shown(value), unit_of(name))
    return table


def unit_of(figure: str) -> str:
    """What a figure of a summary is measured in; its name is that of other benchmarks.

    >>> unit_of("p99_e2el_ms"), unit_of("request_goodput"), unit_of("mean_budget"), unit_of("offered")
    ('ms', 'requests/s', 'of 1', 'requests')
    """
    for ending, unit in UNITS.items():
        if figure.endswith(ending):
            return unit
    return "requests"


def shown(value: object) -> str:
    """A figure in a cell of a table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "0"
    return f"{value:.3f}" if isinstance(value, float) else "-" if value is None else str(value)


def _reasons(records: Iterable[RequestRecord], ending: RequestEnding) -> dict[str, int]:
    """How often which reason was given, the commonest first."""
    reasons = Counter(record.reason or "unknown" for record in records if record.ending is ending)
    return dict(reasons.most_common())


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
