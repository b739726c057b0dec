"""A model that learns, a step at a time: its weights, their average, the optimiser.

It knows neither where samples come from nor where anything is written. Letters: B samples of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from elit_serve.errors import RunError
from elit_serve.files.config import ConditionsConfig
from elit_serve.nn import build
from elit_serve.nn.compiling import compile_if_possible, is_wanted
from elit_serve.plans.shape import Shape
from elit_serve.sampling import expand_like
from elit_serve.trainer.distributed import World
from elit_serve.trainer.draws import draw_levels, draw_permutation, draw_step
from elit_serve.trainer.ema import Ema
from elit_serve.trainer.gradients import AddGradient, GraphedGradient, MicroBatch
from elit_serve.trainer.loss import distilled_loss, rectified_flow_loss, taught_loss
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.sharding import recompute_inside, spread, whole
from elit_serve.trainer.starts import NONE, Models

ToSamples = Callable[[MicroBatch], Tensor]  # what the model works on: -> [B', C, h, w] of a micro-batch


class Learner:
    """On one rank. `begin` comes before the first step; `step` counts finished ones."""

    def __init__(
        self,
        recipe: Recipe,
        conditions: ConditionsConfig,
        world: World,
        to_samples: ToSamples,
        models: Models = NONE,
        no_condition: Tensor | None = None,
    ) -> None:
        """no_condition: what stands for none, of one sample; without it that is what the model says or learns."""
        self.recipe, self.world = recipe, world
        self._no_condition = no_condition
        self._to_samples = to_samples
        torch.manual_seed(recipe.training.seed)  # the initial weights, the same on every rank
        self.model = build(recipe.backbone.spec(conditions))
        if models.weights is not None:
            self.model.load_state_dict(models.weights, strict=False)
        self._taken, self._teacher = models.taken, models.teacher
        self.ema = Ema(self.model, recipe.optimizer.ema)
        self.is_sharded = recipe.training.sharded and world.size > 1
        if recipe.training.recompute:
            recompute_inside(self.model.compilable())
        for each in (self.model, self.ema.model, *([self._teacher.model] if self._teacher else [])):
            if self.is_sharded:
                spread(each, world)
            else:
                each.to(world.device)
        self.optimizer = self._make_optimizer()
        self.step = 0

    def _make_optimizer(self) -> torch.optim.AdamW:
        """Of two groups: what an upcycled model has taken over, and what is new in it or, without one, all."""
        options, parameters = self.recipe.optimizer, trained_parameters(self.model)
        taken = [parameter for name, parameter in parameters.items() if name in self._taken]
        new = [parameter for name, parameter in parameters.items() if name not in self._taken]
        return torch.optim.AdamW(
            [{"params": group} for group in (taken, new)],
            lr=options.learning_rate,
            betas=options.betas,
            weight_decay=options.weight_decay,
            fused=self.world.device.type == "cuda",
        )

    def begin(self, tell: Callable[[str], None]) -> bool:
        """Compiles the model's blocks if that is wanted and possible. -> whether it did"""
        blocks = [*self.model.compilable(), *self.ema.model.compilable()]
        device, compile_ = self.world.device, self.recipe.training.compile
        if self.is_sharded and compile_ is None:
            compile_ = False  # whether it gains anything there has not been measured
        is_compiled = is_wanted(compile_, device) and compile_if_possible(blocks, device, tell)
        self._network = self._distributed()
        self._add_gradient = self._make_add_gradient()
        return is_compiled

    def _distributed(self) -> nn.Module:
        if self.world.size == 1 or self.is_sharded:
            return self.model
        return DistributedDataParallel(self.model, broadcast_buffers=False)

    @property
    def replays_graphs(self) -> bool:
        """Whether gradients are replayed as CUDA graphs."""
        return self.recipe.training.graphs and self.world.size == 1 and self.world.device.type == "cuda"

    def _make_add_gradient(self) -> AddGradient:
        def add_gradient(micro: MicroBatch, levels: tuple[int, ...]) -> Tensor:
            data = self._to_samples(micro)
            dropped = expand_like(micro.draws.dropped, micro.condition)
            condition = torch.where(dropped, self._null_like(micro.condition), micro.condition)
            samples = (data, micro.draws.noise, micro.draws.t, condition)
            with self.precision():
                loss, to_teacher = self._losses(samples, levels, micro.permutation)
                torch.autograd.backward(loss / self.recipe.training.accumulation)
            return torch.stack([loss.detach(), to_teacher.detach()])

        if not self.replays_graphs:
            return add_gradient
        return GraphedGradient(add_gradient, [*trained_parameters(self.model).values()])

    def _null_like(self, condition: Tensor) -> Tensor:
        """In place of each of these [B', ...]."""
        return self.model.null_like(condition) if self._no_condition is None else self._no_condition

    def _losses(
        self, samples: tuple[Tensor, Tensor, Tensor, Tensor], levels: tuple[int, ...], permutation: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The whole loss, and of it the distance to the teacher, before it is scaled; without one that is 0."""
        if self.recipe.budget.distilled and len(levels) == 2:
            loss = distilled_loss(self._network, *samples, levels, permutation)
            return loss, torch.zeros_like(loss)
        level = levels[0] if len(levels) == 1 else levels
        teacher = self._teacher
        if teacher is None:
            loss = rectified_flow_loss(self._network, *samples, level, permutation)
            return loss, torch.zeros_like(loss)
        of_data, to_teacher = taught_loss(self._network, *samples, level, permutation, teacher=teacher)
        return of_data + teacher.scale * to_teacher, to_teacher

    def take_step(self, images: Tensor, condition: Tensor, shape: Shape | None = None) -> Tensor:
        """images [B / ranks, ...] as `to_samples` takes them, condition [B / ranks, ...] -> losses [2].

        losses: the whole loss, and of it the distance to the teacher, before it is scaled; without one that is 0.
        shape: of the samples that the images become; None is the one of the backbone.
        """
        losses = self.add_gradients(self.draw(images, condition, shape), self.levels())
        self.optimise()
        self.average()
        return losses

    def levels(self) -> tuple[int, ...]:
        """At which the present step runs."""
        return draw_levels(self.step, self.recipe.budget, self.recipe.levels, self.recipe.training)

    def draw(self, images: Tensor, condition: Tensor, shape: Shape | None = None) -> list[MicroBatch]:
        """The present step's batch of this rank with all that is random in it, in as many parts as are accumulated."""
        training, device = self.recipe.training, self.world.device
        sample_shape = (shape or self.model.spec.shape).size
        draws = draw_step(self.step, sample_shape, training, self.recipe.data, device)
        mine, count = draws.part(self.world.rank, self.world.size), training.accumulation
        permutation = self._permutation()
        return [
            MicroBatch(images=pictures, condition=shown, draws=mine.part(index, count), permutation=permutation)
            for index, (pictures, shown) in enumerate(zip(images.chunk(count), condition.chunk(count), strict=True))
        ]

    def _permutation(self) -> Tensor | None:
        """This step's order of the learned latents under random drop; otherwise None."""
        if self.recipe.budget.drawing != "random-drop":
            return None
        count = self.model.spec.droppable_latents
        permutation = draw_permutation(self.step, count, self.recipe.training.seed)
        return permutation.to(self.world.device)

    def add_gradients(self, parts: Sequence[MicroBatch], levels: tuple[int, ...]) -> Tensor:
        """The gradient of all parts in place of the one before. -> their mean losses [2], as `take_step` has them"""
        self.optimizer.zero_grad(set_to_none=False)  # graphs add to the very memory that they were captured with
        total = torch.zeros(2, device=self.world.device)
        for index, micro in enumerate(parts):
            with self._synchronising(index == len(parts) - 1):
                total += self._add_gradient(micro, levels) / len(parts)
        return total

    def _synchronising(self, now: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients with the last micro-batch only; where weights are spread they do with each, since a
        whole gradient would not fit."""
        if now or not isinstance(self._network, DistributedDataParallel):
            return nullcontext()
        context: AbstractContextManager[None] = self._network.no_sync()
        return context

    def precision(self) -> torch.autocast:
        enabled = self.recipe.training.precision == "bfloat16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=enabled)

    def optimise(self) -> None:
        """Clips the gradient and moves the weights; the step is finished then."""
        learning_rate = self.recipe.learning_rate(self.step)
        upcycle = self.recipe.upcycle
        taken, new = self.optimizer.param_groups
        taken["lr"] = 0.0 if upcycle is not None and self.step < upcycle.new_only_steps else learning_rate
        new["lr"] = learning_rate
        self.grad_norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip))
        self.optimizer.step()
        self.step += 1

    def average(self) -> None:
        """Lets the averaged weights follow."""
        self.ema.update(self.model, self.step)

    def stop_unless_finite(self, losses: Tensor) -> None:
        """losses [2]. Raises `RunError`, also for the gradient: with a finite loss it may have ruined the weights."""
        for name, value in (("loss", losses[0]), ("gradient's norm", self.grad_norm)):
            if not torch.isfinite(value):
                raise RunError(f"the {name} is {float(value)} at step {self.step}; lower the learning rate")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Those that have a gradient, and so a state of the optimiser, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
