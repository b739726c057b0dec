"""What Prometheus sees of replicas: how many there are to be and are, and each by itself for as long as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from elit_serve.engine.maker import Maker, ReplicaState
from elit_serve.plans.levels import Budgets

LABELS = ("model", "replica")

_GAUGES: dict[str, tuple[str, Callable[[ReplicaState], float]]] = {
    "elit_replica_ready": ("1 while this replica takes new requests.", lambda of: of.is_ready),
    "elit_replica_queue_length": ("Pictures that wait for their first step there.", lambda of: of.num_waiting),
    "elit_replica_running": ("Pictures between their first and their last step there.", lambda of: of.num_running),
    "elit_replica_cost_correction": ("Observed over measured step times there, smoothed.", lambda of: of.correction),
}
_COUNTERS: dict[str, tuple[str, Callable[[ReplicaState], float]]] = {
    "elit_replica_promises_kept": ("Promised pictures that were made there in time.", lambda of: of.counters.kept),
    "elit_replica_promises_missed": ("Promised pictures that were not.", lambda of: of.counters.missed),
}


class ReplicaMetrics(Collector):
    """Read off the makers whenever it is asked for. A maker without replicas counts as one, which has no series of its
    own."""

    def __init__(self, makers: Mapping[str, Maker], budgets: Mapping[str, Budgets], bounds: tuple[int, int]) -> None:
        """makers, budgets: by model. bounds: the fewest and the most replicas that there are to be."""
        self._makers = dict(makers)
        self._budgets = dict(budgets)
        self._bounds = bounds

    def collect(self) -> Iterator[Metric]:
        replicas = {model: maker.replicas for model, maker in self._makers.items()}
        yield from self._numbers(replicas)
        for name, (text, read) in _GAUGES.items():
            yield _filled(GaugeMetricFamily(name, text, labels=LABELS), replicas, read)
        for name, (text, read) in _COUNTERS.items():
            yield _filled(CounterMetricFamily(name, text, labels=LABELS), replicas, read)
        yield self._granted(replicas)

    def _numbers(self, replicas: Mapping[str, Mapping[str, ReplicaState]]) -> Iterator[Metric]:
        there = GaugeMetricFamily("elit_replicas", "Engines that take new requests.", labels=["model"])
        fewest = GaugeMetricFamily("elit_replicas_min", "As few there are to be.", labels=["model"])
        most = GaugeMetricFamily("elit_replicas_max", "As many there may be.", labels=["model"])
        for model, maker in self._makers.items():
            states = replicas[model].values()
            there.add_metric([model], sum(each.is_ready for each in states) if states else maker.is_ready)
            for family, bound in zip((fewest, most), self._bounds, strict=True):
                family.add_metric([model], bound)
        yield from (there, fewest, most)

    def _granted(self, replicas: Mapping[str, Mapping[str, ReplicaState]]) -> Metric:
        family = SummaryMetricFamily(
            "elit_replica_granted_budget",
            "Share of the latents of each step there whose level the server chose.",
            labels=LABELS,
        )
        for model, states in replicas.items():
            for replica, state in states.items():
                counted = state.counters
                granted = self._budgets[model].of_level(counted.granted_levels)
                family.add_metric([model, replica], counted.granted_steps, granted)
        return family


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily,
    replicas: Mapping[str, Mapping[str, ReplicaState]],
    read: Callable[[ReplicaState], float],
) -> Metric:
    for model, states in replicas.items():
        for replica, state in states.items():
            family.add_metric([model, replica], read(state))
    return family
