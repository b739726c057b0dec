"""How fast a recipe trains on this device: the very steps of a run, on random samples in the place of photographs.

Reading and encoding pictures, validating, drawing samples and saving are not in the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

import elit_serve
from elit_serve.clock import Clock, MonotonicClock
from elit_serve.engine.autoencoders import kind_of, open_autoencoder
from elit_serve.engine.profile.profiler import device_name
from elit_serve.errors import InvalidInput
from elit_serve.files.config import ClassesConfig
from elit_serve.files.measured import Measured
from elit_serve.files.writing import check_file, write_whole
from elit_serve.nn import BackboneSpec
from elit_serve.nn.flops import flops_iteration
from elit_serve.nn.text import packed
from elit_serve.trainer.distributed import World, check_alone
from elit_serve.trainer.draws import drawable_levels, seed_of
from elit_serve.trainer.gradients import MicroBatch
from elit_serve.trainer.learner import Learner, ToSamples
from elit_serve.trainer.loop import source_commit
from elit_serve.trainer.progress import say
from elit_serve.trainer.recipe import MAX_STEPS, Recipe
from elit_serve.trainer.sources import encoded_by, picture_sizes

NUM_CLASSES = 1000  # as in ImageNet; the data would decide, and only one embedding depends on it
_CLASSES = ClassesConfig(names=tuple(map(str, range(NUM_CLASSES))))
SPLIT_STEPS = 8  # of which each part is timed
CEILING_SIDE = {"cpu": 1024, "cuda": 8192}  # of square matrices, so large that larger ones are no faster
CEILING_PRODUCTS = {"cpu": 5, "cuda": 40}  # of which the first half only warms up


class StepParts(Measured):
    """Mean seconds of what a step consists of.

    drawing: noise, times and all else that is random. gradient: forward and backward pass of all micro-batches.
    optimizer: clipping and AdamW. average: the moving average of the weights.
    """

    drawing: float
    gradient: float
    optimizer: float
    average: float


class TrainingSpeed(Measured):
    """What was measured, and everything that it was measured with.

    recipe: with the `changes` in it. samples: what they stand in for; behind an autoencoder, encoded pictures.
    ready_s: until each level that may be drawn had run once, compiled and captured where that is done.
    tflop_per_step: mean over the levels that were drawn, 3 forward passes of the blocks per sample (`nn.flops`).
    ceiling_tflops: TFLOP/s of a large square matrix product in the recipe's precision, on this device.
    peak_memory_gb: largest memory in tensors, in 10^9 bytes; None on a CPU.
    loss: mean over the timed steps.
    """

    recipe: dict[str, Any]
    changes: tuple[str, ...]
    samples: Literal["pictures", "latents"]
    device: str
    threads: int | None
    is_compiled: bool
    graphs: bool
    torch_version: str
    elit_serve_version: str
    commit: str
    date: datetime
    command: str
    warm_up: int
    steps: int
    ready_s: float
    step_s_median: float
    step_s_mean: float
    images_per_second: float
    tflop_per_step: float
    tflops: float
    ceiling_tflops: float
    share_of_ceiling: float
    peak_memory_gb: float | None
    parts_s: StepParts
    loss: float


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """A batch that is made up. images [B, ...] as `to_samples` takes them, condition [B, ...]."""

    kind: Literal["pictures", "latents"]
    images: Tensor
    condition: Tensor
    to_samples: ToSamples


def speed_to_file(
    recipe: Recipe,
    out: Path | None,
    *,
    changes: Sequence[str] = (),
    steps: int,
    warm_up: int,
    device: torch.device,
    command: str,
    console: Console,
) -> TrainingSpeed:
    """What `elit-serve profile-training` does but for its table: measures, shows progress, writes `out` if given."""
    if out is not None:
        check_file(out)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        speed = measure(
            recipe,
            changes=changes,
            steps=steps,
            warm_up=warm_up,
            device=device,
            clock=MonotonicClock(),
            command=command,
            tell=lambda line: say(console, line),
            bar=bar,
        )
    if out is not None:
        write_whole(out, speed.model_dump_json(indent=2) + "\n")
    return speed


def measure(
    recipe: Recipe,
    *,
    changes: Sequence[str] = (),
    steps: int,
    warm_up: int,
    device: torch.device,
    clock: Clock,
    command: str = "",
    tell: Callable[[str], None],
    bar: Progress,
) -> TrainingSpeed:
    """Times `steps` steps on an otherwise idle device, after every level has run once and `warm_up` steps.

    Raises `InvalidInput` for a batch that does not fit into memory, and `RunError` for a loss that is not finite.
    """
    check_alone()
    if recipe.distillation is not None:
        raise InvalidInput("distillation", recipe.name, "a recipe without a teacher, whose steps are not measured yet")
    with _current(device), _batch_named(recipe, device):
        ceiling = _ceiling_flops(recipe, device, clock)
        _forget_peak(device)
        samples = _made_up(recipe, device)
        learner = Learner(_endless(recipe), recipe.text or _CLASSES, World(device=device), samples.to_samples)
        is_compiled = learner.begin(tell)
        ready_s = _get_ready(learner, samples, clock, tell, bar)
        for _ in bar.track(range(warm_up), description="warming up"):
            learner.take_step(samples.images, samples.condition)
        took_s, drawn, loss = _timed_steps(learner, samples, bar.track(range(steps), description="measuring"), clock)
        peak = _peak_gb(device)
        parts = _parts(learner, samples, drawn, clock)
    spec, batch = learner.model.spec, recipe.training.batch
    flop = sum(step_flops(spec, levels, batch) for levels in drawn)
    return TrainingSpeed(
        recipe=recipe.model_dump(mode="json", exclude={"provenance"}),
        changes=tuple(changes),
        samples=samples.kind,
        device=device_name(device),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        is_compiled=is_compiled,
        graphs=learner.replays_graphs,
        torch_version=torch.__version__,
        elit_serve_version=elit_serve.__version__,
        commit=source_commit(),
        date=datetime.now(UTC).replace(microsecond=0),
        command=command,
        warm_up=warm_up,
        steps=steps,
        ready_s=ready_s,
        step_s_median=median(took_s),
        step_s_mean=fmean(took_s),
        images_per_second=batch / fmean(took_s),
        tflop_per_step=flop / steps / 1e12,
        tflops=flop / sum(took_s) / 1e12,
        ceiling_tflops=ceiling / 1e12,
        share_of_ceiling=flop / sum(took_s) / ceiling,
        peak_memory_gb=peak,
        parts_s=parts,
        loss=loss,
    )


def _endless(recipe: Recipe) -> Recipe:
    """The same steps, whatever their number: no last one, and lower levels from the first one on."""
    training = recipe.training.model_copy(update={"steps": MAX_STEPS})
    budget = recipe.budget.model_copy(update={"elastic_from": 0.0})
    return recipe.model_copy(update={"training": training, "budget": budget})


def _made_up(recipe: Recipe, device: torch.device) -> _Samples:
    """Random pictures where the model works on pixels, and otherwise random samples, without an autoencoder."""
    generator = torch.Generator(device).manual_seed(seed_of(recipe.training.seed, "made up"))
    batch, sample_shape = recipe.training.batch, recipe.backbone.sketch.sample_shape
    condition = _made_up_conditions(recipe, generator)
    if kind_of(recipe.autoencoder).channels is None:
        latents = torch.randn(batch, *sample_shape, generator=generator, device=device)
        return _Samples(kind="latents", images=latents, condition=condition, to_samples=_as_they_are)
    pixels = open_autoencoder(recipe.autoencoder, Path(), device)
    width, height = picture_sizes(recipe, pixels)[recipe.backbone.sketch.shape]
    shape = (batch, 3, height, width)
    pictures = torch.randint(256, shape, generator=generator, device=device, dtype=torch.uint8)
    return _Samples(kind="pictures", images=pictures, condition=condition, to_samples=encoded_by(pixels))


def _made_up_conditions(recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Random classes [B], or texts of random tokens that fill all places [B, T, D + 1]."""
    batch, text, device = recipe.training.batch, recipe.text, generator.device
    if text is None:
        return torch.randint(NUM_CLASSES, (batch,), generator=generator, device=device)
    states = torch.randn(batch, text.max_tokens, text.dim, generator=generator, device=device)
    return packed(states, torch.ones_like(states[..., 0]), text.max_tokens)


def _as_they_are(micro: MicroBatch) -> Tensor:
    return micro.images


def _get_ready(learner: Learner, samples: _Samples, clock: Clock, tell: Callable[[str], None], bar: Progress) -> float:
    """Seconds of one gradient at each choice of levels, the largest first, so that later graphs fit into its memory."""
    recipe = learner.recipe
    choices = drawable_levels(recipe.budget, recipe.levels)[::-1]
    tell(f"running each choice of levels once ({len(choices)})")
    micro = learner.draw(samples.images, samples.condition)
    actions = (
        lambda levels=levels: learner.add_gradients(micro, levels)
        for levels in bar.track(choices, description="running each choice of levels once")
    )
    return sum(_seconds_of(actions, learner.world.device, clock))


def _timed_steps(
    learner: Learner, samples: _Samples, steps: Iterable[int], clock: Clock
) -> tuple[list[float], list[tuple[int, ...]], float]:
    """(seconds, levels) of each step, and the mean loss."""
    drawn: list[tuple[int, ...]] = []
    losses: list[Tensor] = []  # [2] each

    def step() -> None:
        drawn.append(learner.levels())
        losses.append(learner.take_step(samples.images, samples.condition))

    took_s = _seconds_of((step for _ in steps), learner.world.device, clock)
    mean = torch.stack(losses).mean(dim=0)
    learner.stop_unless_finite(mean)
    return took_s, drawn, float(mean[0])


def _parts(learner: Learner, samples: _Samples, drawn: Sequence[tuple[int, ...]], clock: Clock) -> StepParts:
    """Of a few more steps, at levels that are spread as those that were drawn."""
    by_cost = sorted(drawn, key=lambda levels: step_flops(learner.model.spec, levels, 1))
    chosen = [by_cost[(2 * index + 1) * len(by_cost) // (2 * SPLIT_STEPS)] for index in range(SPLIT_STEPS)]
    rows = [_split_step(learner, samples, levels, clock) for levels in chosen]
    drawing, gradient, optimizer, average = map(fmean, zip(*rows, strict=True))
    return StepParts(drawing=drawing, gradient=gradient, optimizer=optimizer, average=average)


def _split_step(learner: Learner, samples: _Samples, levels: tuple[int, ...], clock: Clock) -> list[float]:
    """Seconds of each part of one step."""
    micro: list[MicroBatch] = []
    parts = (
        lambda: micro.extend(learner.draw(samples.images, samples.condition)),
        lambda: learner.add_gradients(micro, levels),
        learner.optimise,
        learner.average,
    )
    return _seconds_of(parts, learner.world.device, clock)


def step_flops(spec: BackboneSpec, levels: Sequence[int], batch: int) -> float:
    """Of a training step whose batch is equal parts at these levels."""
    return fmean(flops_iteration(spec.flops(level), batch).executed for level in levels)


def _ceiling_flops(recipe: Recipe, device: torch.device, clock: Clock) -> float:
    """FLOP/s of a matrix product of random numbers: on zeros a GPU draws less power and runs faster."""
    dtype = torch.bfloat16 if recipe.training.precision == "bfloat16" else torch.float32
    side, count = CEILING_SIDE[device.type], CEILING_PRODUCTS[device.type]
    generator = torch.Generator(device).manual_seed(0)
    left, right = torch.randn(2, side, side, generator=generator, device=device).to(dtype)
    product = torch.empty_like(left)
    took_s = _seconds_of((lambda: torch.mm(left, right, out=product) for _ in range(count)), device, clock)
    return 2 * side**3 / median(took_s[count // 2 :])


def _seconds_of(actions: Iterable[Callable[[], object]], device: torch.device, clock: Clock) -> list[float]:
    """What each takes, one right behind another; a GPU, whose events tell the time, is waited for at the end only."""
    if device.type == "cpu":
        moments = [clock.now()]
        for act in actions:
            act()
            moments.append(clock.now())
        return [later - earlier for earlier, later in pairwise(moments)]
    torch.cuda.synchronize(device)
    events = [_recorded()]
    for act in actions:
        act()
        events.append(_recorded())
    torch.cuda.synchronize(device)
    return [earlier.elapsed_time(later) / 1000 for earlier, later in pairwise(events)]


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _current(device: torch.device) -> AbstractContextManager[object]:
    """While open, streams and events are this device's."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gb(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


@contextmanager
def _batch_named(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Too little memory is the batch's fault, and says so."""
    try:
        yield
    except torch.OutOfMemoryError:
        training = recipe.training
        allowed = (
            f"micro-batches of {training.batch // training.accumulation} do not fit into the memory of "
            f"{device_name(device)}; raise training.accumulation or lower the batch"
        )
        raise InvalidInput("training.batch", training.batch, allowed) from None


def speed_table(speed: TrainingSpeed) -> Table:
    """What a terminal shows."""
    batch, parts = speed.recipe["training"]["batch"], speed.parts_s.model_dump()
    left_out = "Reading" if speed.samples == "pictures" else "Reading and encoding"
    table = Table(
        title=f"{speed.recipe['name']} on {speed.device}: {speed.steps} steps of {batch} random {speed.samples}",
        caption=f"{left_out} photographs is not in these figures. Parts are of {SPLIT_STEPS} more steps.",
    )
    table.add_column("figure")
    table.add_column("value", justify="right")
    peak = "-" if speed.peak_memory_gb is None else f"{speed.peak_memory_gb:.1f}"
    rows = {
        "images per second": f"{speed.images_per_second:,.1f}",
        "milliseconds per step, median and mean": f"{1e3 * speed.step_s_median:,.1f}, {1e3 * speed.step_s_mean:,.1f}",
        "TFLOP per step": f"{speed.tflop_per_step:,.3g}",
        "TFLOP/s": f"{speed.tflops:,.3g}",
        "TFLOP/s of a large matrix product": f"{speed.ceiling_tflops:,.3g}",
        "share of that": f"{speed.share_of_ceiling:.1%}",
        "GB of memory at most": peak,
        "seconds until each level had run once": f"{speed.ready_s:,.1f}",
        "mean loss": f"{speed.loss:.4f}",
        **{f"{name}, share of a step": f"{seconds / sum(parts.values()):.1%}" for name, seconds in parts.items()},
    }
    for row in rows.items():
        table.add_row(*row)
    return table
