"""Several processes are one server to those who ask for metrics."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from elit_serve.server.watching.shared_metrics import STALE_S, SharedMetrics


def counted(amount: int) -> bytes:
    registry = CollectorRegistry()
    Counter("elit_things", "Things.", ["kind"], registry=registry).labels("small").inc(amount)
    Histogram("elit_seconds", "Seconds.", buckets=[1.0], registry=registry).observe(amount)
    return generate_latest(registry)


def test_every_sample_says_whose_it_is_and_every_family_is_there_once(tmp_path: Path) -> None:
    (tmp_path / "1.metrics").write_bytes(counted(5))
    text = SharedMetrics(tmp_path, "0", lambda: counted(2)).render().decode()
    assert 'elit_things_total{ingress="0",kind="small"} 2.0' in text
    assert 'elit_things_total{ingress="1",kind="small"} 5.0' in text
    assert 'elit_seconds_bucket{ingress="1",le="1.0"} 0.0' in text
    assert text.count("# TYPE elit_things_total counter") == 1


def test_a_process_that_has_ended_is_not_told_of(tmp_path: Path) -> None:
    gone = tmp_path / "1.metrics"
    gone.write_bytes(counted(5))
    long_ago_s = gone.stat().st_mtime - 2 * STALE_S
    os.utime(gone, (long_ago_s, long_ago_s))
    assert 'ingress="1"' not in SharedMetrics(tmp_path, "0", lambda: counted(2)).render().decode()


def test_others_are_told_while_it_runs(tmp_path: Path, eventually: object) -> None:
    assert callable(eventually)
    first, second = (SharedMetrics(tmp_path, name, lambda: counted(1)) for name in ("0", "1"))
    with first.written():
        eventually(lambda: 'ingress="0"' in second.render().decode())
    assert 'ingress="0"' not in second.render().decode()
