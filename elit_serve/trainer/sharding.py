"""Weights that are spread over ranks: each has some rows of every tensor, and blocks are whole only while they run.

This is torch's FSDP2. Letters: R rows of a tensor (its first dimension).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from elit_serve.nn import Backbone
from elit_serve.trainer.distributed import World


def spread(model: Backbone, world: World) -> None:
    """Leaves this rank's rows of a model's weights, on its device."""
    # Blocks return views of their modulation, which nothing changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    everyone = dist.group.WORLD
    assert everyone is not None
    # Of the group that is there: making another would wait for all ranks, and they come here one after another.
    mesh = DeviceMesh.from_group(everyone, world.device.type)
    for part in (*model.gathered(), model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def recompute_inside(blocks: Sequence[nn.Module]) -> None:
    """Lets blocks keep their inputs alone, and compute the rest again when their gradient is computed."""
    for block in blocks:
        recomputed = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = recomputed


def own_rows(tensor: Tensor) -> Tensor:
    """Of a tensor that is spread, those of this rank; otherwise all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the rows of all ranks, which must all ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rows_of(tensor: Tensor, parameter: Tensor, world: World) -> Tensor:
    """Those that this rank has of a parameter, from a whole tensor [R, ...]."""
    if not isinstance(parameter, DTensor):
        return tensor
    chunks = tensor.chunk(world.size)
    return chunks[world.rank] if world.rank < len(chunks) else tensor[:0]


def spread_as(rows: Tensor, parameter: Tensor) -> Tensor:
    """This rank's rows as a tensor that is spread as a parameter is."""
    if not isinstance(parameter, DTensor):
        return rows
    return DTensor.from_local(
        rows, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


@torch.no_grad()
def take_rows(model: nn.Module, tensors: Mapping[str, Tensor], world: World) -> None:
    """Puts whole tensors, or this rank's rows of them, in the place of a model's. Raises `RuntimeError` for those of
    another model."""
    own = model.state_dict()
    if strange := sorted(own.keys() ^ tensors.keys()):
        raise RuntimeError(f"{', '.join(strange[:5])}: in the model or in the checkpoint only")
    for name, parameter in own.items():
        tensor = tensors[name]
        if tensor.shape != parameter.shape:
            raise RuntimeError(f"{name} is {tuple(tensor.shape)} here and {tuple(parameter.shape)} in the model")
        own_rows(parameter).copy_(rows_of(tensor, parameter, world))
