"""Ranks: one process per device under torchrun, or a single one without it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from elit_serve.errors import InvalidInput
from elit_serve.text.digits import whole_number

TIMEOUT = timedelta(hours=2)  # ranks read large models in turn, and the others wait; torch gives up after 10 minutes


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among its peers."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all ranks."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def any(self, claim: bool) -> bool:
        """Whether it is so on any rank; every rank must ask, and all get the same answer. The devices wait for nobody:
        it is told between processors."""
        if self.size == 1:
            return claim
        told = torch.tensor(claim, dtype=torch.uint8)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)

    def gathered(self, told: bytes) -> list[bytes]:
        """What each rank tells, in their order; all tell equally much."""
        if self.size == 1:
            return [told]
        mine = torch.frombuffer(bytearray(told), dtype=torch.uint8)
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyone, mine)
        return [part.numpy().tobytes() for part in everyone]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """One rank after another does what is inside."""
        for _ in range(self.rank):
            self.barrier()
        yield
        for _ in range(self.size - self.rank):
            self.barrier()

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


ALONE = World(device=torch.device("cpu"))


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """The world that torchrun describes in the environment; a single process without it."""
    size = _variable("WORLD_SIZE", "1")
    if size == 1:
        yield World(device=device)
        return
    rank, local_rank = _variable("RANK"), _variable("LOCAL_RANK", "0")
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise InvalidInput("--nproc-per-node", local_rank + 1, f"this machine has {torch.cuda.device_count()} GPUs")
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield World(device=device, rank=rank, size=size)
    finally:
        dist.destroy_process_group()


def end_rank() -> None:
    """Ends a rank that has done its work, with status 0 and without Python's own end; nothing without torchrun.

    DTensor's caches keep the process group of sharded weights past `destroy_process_group`, and with it Gloo's threads.
    One of them that frees its last tensor while Python ends aborts the process (pytorch/pytorch#179291)."""
    if _variable("WORLD_SIZE", "1") > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def check_alone() -> None:
    """Raises `InvalidInput` where torchrun has started several processes."""
    size = _variable("WORLD_SIZE", "1")
    if size != 1:
        raise InvalidInput("--nproc-per-node", size, "1: one device is measured")


def _variable(name: str, default: str | None = None) -> int:
    """A number that torchrun sets. Raises `InvalidInput`."""
    text = os.environ.get(name, default)
    number = None if text is None else whole_number(text)
    if number is None:
        raise InvalidInput(name, text, "a whole number, as torchrun sets it")
    return number
