"""What a backbone costs, as a table: parameters, and FLOPs at every level in both conventions of `flops`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from elit_serve.nn.backbones.backbone import BackboneSpec
from elit_serve.nn.backbones.table import count_parameters
from elit_serve.nn.flops import Flops, flops_iteration, flops_multi_budget


@dataclass(frozen=True, kw_only=True)
class LevelCost:
    """gflops_forward: one sample, one pass. tflops_iteration: training at this level alone, 3 x forward x batch."""

    level: int
    tokens: int
    gflops_forward: Flops
    tflops_iteration: Flops


@dataclass(frozen=True, kw_only=True)
class IterationCost:
    """TFLOPs of one training iteration at full budget, and averaged over levels drawn uniformly from 1..J."""

    full: Flops
    multi_budget: Flops


@dataclass(frozen=True, kw_only=True)
class Description:
    """Everything that `elit-serve describe` tells."""

    name: str
    params: int
    num_tokens: int
    num_groups: int
    latents_per_group: int
    batch: int
    tflops_iteration: IterationCost
    levels: tuple[LevelCost, ...]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def describe(name: str, spec: BackboneSpec, levels: Sequence[int], batch: int) -> Description:
    """Counts `spec` without allocating a weight."""
    full = spec.flops(spec.latents_per_group)
    return Description(
        name=name,
        params=count_parameters(spec),
        num_tokens=spec.num_tokens,
        num_groups=spec.num_groups,
        latents_per_group=spec.latents_per_group,
        batch=batch,
        tflops_iteration=IterationCost(
            full=flops_iteration(full, batch).scaled(1e-12),
            multi_budget=flops_iteration(flops_multi_budget(spec), batch).scaled(1e-12),
        ),
        levels=tuple(_level_cost(spec, level, batch) for level in levels),
    )


def _level_cost(spec: BackboneSpec, level: int, batch: int) -> LevelCost:
    forward = spec.flops(level)
    return LevelCost(
        level=level,
        tokens=spec.num_groups * level,
        gflops_forward=forward.scaled(1e-9),
        tflops_iteration=flops_iteration(forward, batch).scaled(1e-12),
    )
