"""How fast pictures were sampled, against what the measured cost of a step says of an engine that never waits."""

from __future__ import annotations

from dataclasses import dataclass

from elit_serve.catalogue import cost_table
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.profiler import known_latency
from elit_serve.evaluation.runs.sampler import even_batch
from elit_serve.files.latency import Latency
from elit_serve.plans.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Measured pictures per second, what a saturated engine is predicted to make, and one over the other."""

    images_per_second: float
    saturated_images_per_second: float | None
    share_of_saturated: float | None


@dataclass(frozen=True, kw_only=True)
class SaturatedEngine:
    """An engine that does nothing but steps of full batches. latency: None where this device has not been measured."""

    latency: Latency | None
    batch: int

    @classmethod
    def of(
        cls, pipeline: Pipeline, *, num_samples: int, batch_size: int, latency: Latency | None = None
    ) -> SaturatedEngine:
        """In the batches that `Sampler` makes. latency: by default what the model says of this device."""
        return cls(latency=latency or known_latency(pipeline), batch=even_batch(num_samples, batch_size))

    def images_per_second(self, plan: Plan) -> float | None:
        """Beyond the largest measured batch its rate counts."""
        if self.latency is None:
            return None
        costs = cost_table(self.latency)
        batch = min(self.batch, costs.max_batch)
        return 1000 * batch / sum(costs.step_ms(kind, batch) for kind in plan.step_kinds(costs.shapes[0]))

    def compared(self, plan: Plan, images_per_second: float) -> Throughput:
        """What was measured of this plan, beside what could be."""
        predicted = self.images_per_second(plan)
        return Throughput(
            images_per_second=images_per_second,
            saturated_images_per_second=predicted,
            share_of_saturated=None if predicted is None else images_per_second / predicted,
        )
