"""The gradient of one micro-batch: kernel by kernel, or replayed as a CUDA graph.

Launching the kernels of a small model one by one takes longer than running them. Letters: B samples of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elit_serve.trainer.draws import StepDraws

WARM_UPS = 3  # runs before a capture: they compile, and pick their kernels


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """images [B, 3, H, W] uint8 or stored latents [B, 1 or 2, C, h, w], condition [B, ...]; permutation [J] int64 of
    latents under random drop, or None."""

    images: Tensor
    condition: Tensor
    draws: StepDraws
    permutation: Tensor | None

    def tensors(self) -> list[Tensor]:
        extra = [] if self.permutation is None else [self.permutation]
        return [self.images, self.condition, *vars(self.draws).values(), *extra]

    def clone(self) -> MicroBatch:
        """A copy in memory of its own."""
        return MicroBatch(
            images=self.images.clone(),
            condition=self.condition.clone(),
            draws=StepDraws(**{name: value.clone() for name, value in vars(self.draws).items()}),
            permutation=None if self.permutation is None else self.permutation.clone(),
        )


# Adds the gradient of a micro-batch's loss at a level, or of its equal parts at several, to that of the parameters;
# -> what of the loss is told, see `Learner`, [2]
AddGradient = Callable[[MicroBatch, tuple[int, ...]], Tensor]


class GraphedGradient:
    """An `AddGradient` that captures another one as a CUDA graph when a size and levels first come, and replays it from
    then on. The loss that is returned is overwritten by the next call.
    """

    def __init__(self, add_gradient: AddGradient, parameters: Sequence[nn.Parameter]) -> None:
        self._add_gradient = add_gradient
        self._gradients = [_gradient_of(parameter) for parameter in parameters]
        self._inputs: dict[torch.Size, MicroBatch] = {}  # by the shape of the images
        self._graphs: dict[tuple[torch.Size, tuple[int, ...]], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()  # one for all: graphs run one after another, so they share memory

    def __call__(self, micro: MicroBatch, levels: tuple[int, ...]) -> Tensor:
        inputs = self._fill(micro)
        key = (micro.images.shape, levels)
        if key not in self._graphs:
            self._graphs[key] = self._captured(inputs, levels)
        graph, loss = self._graphs[key]
        graph.replay()
        return loss

    def _fill(self, micro: MicroBatch) -> MicroBatch:
        """Copies a micro-batch to where the graphs read it."""
        inputs = self._inputs.get(micro.images.shape)
        if inputs is None:
            inputs = self._inputs[micro.images.shape] = micro.clone()
        for mine, given in zip(inputs.tensors(), micro.tensors(), strict=True):
            mine.copy_(given)
        return inputs

    def _captured(self, inputs: MicroBatch, levels: tuple[int, ...]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        before = [gradient.clone() for gradient in self._gradients]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._add_gradient(inputs, levels)
        torch.cuda.current_stream().wait_stream(side)
        torch._foreach_copy_(self._gradients, before)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss = self._add_gradient(inputs, levels)
        return graph, loss


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    """The parameter's gradient, made if there is none; graphs add to this very memory."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
