"""The training loop: rectified flow at a budget drawn once per iteration (paper, sections 3.1 and 3.4).

A step is a pure function of (recipe, data, step number, weights), so that a run that was killed and resumed
goes on as if nothing had happened.
"""

from __future__ import annotations

import math
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from elit_serve import __version__
from elit_serve.clock import Clock, MonotonicClock
from elit_serve.engine.autoencoders import Autoencoder, open_autoencoder
from elit_serve.engine.autoencoders.folder import check_autoencoder, fingerprint
from elit_serve.engine.executor import offline
from elit_serve.engine.pixels import from_signed, to_images
from elit_serve.errors import DataSetGone, InvalidInput, RunError
from elit_serve.nn.latents import LatentFigures, watch_latents
from elit_serve.pictures import labelled, level_label
from elit_serve.plans.shape import Shape
from elit_serve.sampling import initial_noise
from elit_serve.text.command_line import readable
from elit_serve.trainer.buckets import BucketedData, Buckets
from elit_serve.trainer.data import Batch, DamageReport, HeldBatches, RunOrder
from elit_serve.trainer.distributed import World, join_world
from elit_serve.trainer.learner import Learner, trained_parameters
from elit_serve.trainer.loss import rectified_flow_loss, validation_times
from elit_serve.trainer.progress import Reporter, say
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.resume import opened
from elit_serve.trainer.run import DataFacts, RunDirectory, RunFacts, Snapshot, TrainState
from elit_serve.trainer.sharding import own_rows, rows_of, spread_as, take_rows
from elit_serve.trainer.sources import Source, about, check_folder_given, fits_memory, open_source
from elit_serve.trainer.starts import NONE, Models, model_facts, open_models
from elit_serve.trainer.told import Told

VALIDATION_PICTURES = 512
LATENT_PICTURES, LATENT_TIME = 32, 0.5  # looked at in one pass per level, half way between noise and picture
SHEET_COLUMNS = 8
MAX_REPEATS = 16  # of a photograph in a batch: a few pictures may be learned by heart, but no typing error be started


class Trainer:
    """One run on one rank."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        world: World,
        run: RunDirectory,
        autoencoder: Autoencoder,
        models: Models = NONE,
    ) -> None:
        self.recipe, self.world, self.run = recipe, world, run
        self.autoencoder, self.source = autoencoder, source
        training, validation = source.training, source.validation
        self.damage = DamageReport(total=len(training), max_fraction=recipe.data.max_corrupt)
        self.told = Told(recipe, training.classes, world.device, source.texts)
        self.tell = self.told.of(training.classes)
        is_told_alike = validation.classes == training.classes  # then captions are encoded once for both
        self.tell_held_out = self.tell if is_told_alike else self.told.of(validation.classes)
        batch, seed = recipe.training.batch, recipe.training.seed
        self.order = RunOrder(batch=batch, seed=seed, rank=world.rank, world=world.size, stages=recipe.stages)
        self.data = self._open(training)
        self.held_out_damage = DamageReport(total=len(validation), max_fraction=1.0)
        self.validation = validation.decoded(self.held_out_damage, world.device, limit=VALIDATION_PICTURES)
        self.learner = Learner(recipe, self.told.config, world, source.drawn, models, self.told.no_text)
        self.window_loss = torch.zeros(2, device=world.device)
        self.window_steps = 0

    def _open(self, training: Buckets) -> BucketedData:
        self.is_in_memory = fits_memory(self.recipe, training)
        if self.is_in_memory:
            return training.in_memory(self.damage, self.world.device)
        return training.streamed(self.recipe.data.workers, pin_memory=self.world.device.type == "cuda")

    def train(self, reporter: Reporter | None) -> None:
        """Runs to the recipe's last step, or to the step at which the process is asked to end."""
        if self.step == self.recipe.training.steps:  # a finished run that is resumed
            return
        self._begin(reporter)
        with _ending_gracefully() as asked_to_end:
            for batch in self._batches():
                self._report_damage(batch.damaged, reporter)
                images = batch.images.to(self.world.device)
                condition = self.tell(batch.condition.to(self.world.device))
                self.window_loss += self.learner.take_step(images, condition, batch.shape)
                self.window_steps += 1
                self._after_step(reporter)
                if self.step == self.recipe.training.steps:
                    break
                if self.world.any(asked_to_end()):  # a signal may reach one rank only, or each at another step
                    self._save()
                    raise RunError(f"asked to end; saved at step {self.step}, continue with --resume")

    @property
    def step(self) -> int:
        """How many are finished."""
        return self.learner.step

    def _begin(self, reporter: Reporter | None) -> None:
        """Makes all ready for the first step, and says before it what comes."""
        is_compiled = self.learner.begin(_say_nothing if reporter is None else reporter.say)
        if reporter is not None:
            precision = self.recipe.training.precision
            reporter.begin(self.world.device, self.world.size, precision, is_compiled=is_compiled)

    def _batches(self) -> Iterator[Batch]:
        """This rank's batches from the present step on; when the data set is gone, the run is saved first."""
        try:
            yield from self.data.batches(self.order, self.step)
        except DataSetGone as gone:
            if self.world.size > 1 or self.step == 0:  # saving takes all ranks
                raise
            self._save()
            raise DataSetGone(f"{gone}; saved at step {self.step}, continue with --resume") from None

    def _after_step(self, reporter: Reporter | None) -> None:
        every, last = self.recipe.every, self.step == self.recipe.training.steps
        if self.step % every.log == 0 or last:
            self._log(reporter)
        takes_part = reporter is not None or self.learner.is_sharded  # no rank alone has all weights then
        if takes_part and (self.step % every.validation == 0 or last):
            self._report_validation(reporter)
        if takes_part and (self.step % every.samples == 0 or last):
            sheet = self.sample_sheet()
            if reporter is not None:
                reporter.samples(self.step, sheet)
        if self.step % every.checkpoint == 0 or last:
            self._save()

    def _report_validation(self, reporter: Reporter | None) -> None:
        losses = self.validate()
        is_finite = all(map(math.isfinite, losses.values()))  # of ruined weights there is nothing to look at
        figures = self.look_at_latents() if is_finite else {}
        if reporter is not None:
            reporter.validation(self.step, losses, figures)

    def _log(self, reporter: Reporter | None) -> None:
        losses = self.world.mean(self.window_loss / self.window_steps)
        self.learner.stop_unless_finite(losses)
        if reporter is not None:
            loss, to_teacher = losses.tolist()
            reporter.training(
                self.step,
                loss=loss,
                parts=self._parts_of(loss, to_teacher),
                learning_rate=self.recipe.learning_rate(self.step - 1),
                grad_norm=float(self.learner.grad_norm),
            )
        self.window_loss = torch.zeros_like(self.window_loss)
        self.window_steps = 0

    def _parts_of(self, loss: float, to_teacher: float) -> dict[str, float]:
        """The two losses of a run with a teacher, before they are scaled."""
        distillation = self.recipe.distillation
        if distillation is None:
            return {}
        return {"rectified_flow": loss - distillation.scale * to_teacher, "distillation": to_teacher}

    def _report_damage(self, names: tuple[str, ...], reporter: Reporter | None) -> None:
        for name in self.damage.add(names):
            if reporter is not None:
                reporter.say(f"skipped a damaged picture: {name}")

    @property
    def shown_levels(self) -> list[int]:
        """The levels that validation and sample grids show: powers of two, and the largest."""
        levels = self.recipe.levels
        powers = [level for level in levels if level & (level - 1) == 0]
        return sorted({*powers, levels[-1]})

    @torch.no_grad()
    def validate(self) -> dict[int, float]:
        """The loss of the averaged weights on held-out pictures of all sizes, at fixed noise and times, by level."""
        count = sum(len(held.images) for held in self.validation.values())
        totals = {level: torch.zeros((), device=self.world.device) for level in self.shown_levels}
        for shape, held in self.validation.items():
            for level, total in totals.items():
                total += self._held_out_loss(shape, held, level)
        return {level: float(total / count) for level, total in totals.items()}

    def _held_out_loss(self, shape: Shape, held: HeldBatches, level: int) -> Tensor:
        """Summed over held-out pictures of one size."""
        training, model, device = self.recipe.training, self.learner.ema.model, self.world.device
        images, condition = held.images, held.condition
        times = validation_times(len(images), training.mean_of_shifted_times, training.time_std, device)
        noise = initial_noise(range(len(images)), shape.size).to(device)
        batch = max(1, training.batch // self.world.size // training.accumulation)
        total = torch.zeros((), device=device)
        for part in torch.split(torch.arange(len(images), device=device), batch):
            with self.learner.precision():
                data = self.source.plain(images[part])
                told = self.tell_held_out(condition[part])
                loss = rectified_flow_loss(model, data, noise[part], times[part], told, level)
            total += loss * len(part)
        return total

    @torch.no_grad()
    def look_at_latents(self) -> dict[int, LatentFigures]:
        """What the latents of the averaged weights do on some held-out pictures of the first size, at fixed noise and
        one time, by level.

        Nothing of a model without latents.
        """
        model, device = self.learner.ema.model, self.world.device
        if model.latent_parts() is None:
            return {}
        shape, held = next(iter(self.validation.items()))
        count = min(LATENT_PICTURES, len(held.images))
        chosen = torch.arange(count, device=device) * len(held.images) // count  # they lie class by class
        condition = self.tell_held_out(held.condition[chosen])
        noise = initial_noise(range(count), shape.size).to(device)
        t = torch.full((count,), LATENT_TIME, device=device)
        with self.learner.precision():
            data = self.source.plain(held.images[chosen])
            noisy = (1 - LATENT_TIME) * noise + LATENT_TIME * data
            return {level: watch_latents(model, noisy, t, condition, level).figures() for level in self.shown_levels}

    @torch.no_grad()
    def sample_sheet(self) -> Image.Image:
        """Samples of the averaged weights: a row per level, a column per class or example, the same noise in each
        row."""
        conditions = self.told.shown
        count = min(SHEET_COLUMNS, len(conditions))
        shown = [conditions[index * (len(conditions) // count)] for index in range(count)]
        model = self.learner.ema.model
        drawing = offline.BareModel(
            model=model,
            device=self.world.device,
            conditions=conditions,
            shapes=(model.spec.shape,),
        )
        rows = []
        lowest = self.recipe.sampling.guidance.min_level
        levels = [level for level in reversed(self.shown_levels) if level >= lowest]
        for level in levels:
            with self.learner.precision():
                plan = self.recipe.sampling.plan(level)
                samples = offline.samples_of(drawing, shown, range(count), plan, model.spec.shape)
                rows.append(to_images(from_signed(self.autoencoder.decode(samples))))
        return labelled(
            rows,
            row_labels=[level_label(level, model.spec.budgets.of_level(level)) for level in levels],
            column_labels=[condition.words for condition in shown],
        )

    def _save(self) -> None:
        self.window_loss = self.world.mean(self.window_loss)
        learner = self.learner
        learner.stop_unless_finite(self.window_loss)
        state = TrainState(
            step=self.step,
            window_loss=float(self.window_loss[0]),
            window_distillation=float(self.window_loss[1]),
            window_steps=self.window_steps,
            damaged=tuple(self.damage.names),
            in_memory=self.is_in_memory,
        )
        tensors = {
            "model": learner.model.state_dict(),
            "ema": learner.ema.model.state_dict(),
            "optimizer": _optimizer_tensors(learner.model, learner.optimizer),
        }
        own = {name: {key: own_rows(tensor) for key, tensor in part.items()} for name, part in tensors.items()}
        if learner.is_sharded:
            self.run.save(Snapshot(**own, state=state), keep=self.recipe.every.keep, world=self.world)
        elif self.world.is_main:
            self.run.save(Snapshot(**own, state=state), keep=self.recipe.every.keep)
        self.world.barrier()

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on where a checkpoint stands."""
        learner = self.learner
        try:
            take_rows(learner.model, snapshot.model, self.world)
            take_rows(learner.ema.model, snapshot.ema, self.world)
            _restore_optimizer(learner.model, learner.optimizer, snapshot.optimizer, self.world)
        except (RuntimeError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RunError(f"{self.run.path}: the checkpoint of step {snapshot.state.step}: {reason}") from None
        learner.step = snapshot.state.step
        state = snapshot.state
        self.window_loss.copy_(torch.tensor([state.window_loss, state.window_distillation]))
        self.window_steps = snapshot.state.window_steps
        self.damage.add(snapshot.state.damaged)
        if self.damage.names and snapshot.state.in_memory != self.is_in_memory:
            raise RunError(
                f"{self.run.path}: data.memory_gb: with damaged pictures, those in memory come in another order than "
                "those that are streamed, so the run must go on as it was"
            )


def _say_nothing(_: str) -> None:
    """Of ranks other than the main one."""


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    validation: Path | None = None,
    autoencoder: Path | None = None,
    resume: bool = False,
    device: torch.device,
    console: Console,
    clock: Clock | None = None,
) -> None:
    """Trains `recipe` on the photographs of `data`, or the latents of such, into the run directory `out`.

    Without `validation` the recipe's holdout fraction of the data serves for the validation loss. `autoencoder` is a
    folder in diffusers' format for recipes that need one. Under torchrun each process is a rank.
    """
    check_folder_given(recipe, autoencoder)
    check_autoencoder(autoencoder, recipe.backbone.sketch.sample_shape, recipe.autoencoder.factor)
    with join_world(device) as world:
        check_world(recipe, world)
        run = RunDirectory(out)
        coder = open_autoencoder(recipe.autoencoder, autoencoder or out, world.device)
        source = open_source(recipe, coder, autoencoder, data, validation)
        training, held_out = source.training, source.validation
        training.check_batch(recipe.training.batch, recipe.shapes, MAX_REPEATS)
        conditions = recipe.conditions(training.classes)
        facts = _facts(recipe, source, data, autoencoder) if world.is_main else None
        with opened(run, facts, resume=resume, world=world) as snapshot:
            if world.is_main:
                for line in about(recipe, training, held_out):
                    say(console, line)
            with world.in_turn() if recipe.training.sharded else nullcontext():  # the machine holds one whole model
                models = open_models(recipe, conditions, autoencoder, is_begun=snapshot is not None)
                trainer = Trainer(recipe, source, world, run, coder, models)
                del models
            if snapshot is not None:
                trainer.restore(snapshot)
            if not world.is_main:
                trainer.train(None)
                return
            options, first_step = recipe.training, trainer.step
            with Reporter(
                run, console, clock or MonotonicClock(), batch=options.batch, steps=options.steps, first_step=first_step
            ) as reporter:
                for name in (*trainer.damage.names, *trainer.held_out_damage.names):
                    reporter.say(f"skipped a damaged picture: {name}")
                trainer.train(reporter)


def check_world(recipe: Recipe, world: World) -> None:
    halves = 2 if recipe.budget.has_halves else 1
    parts = world.size * recipe.training.accumulation * halves
    if recipe.training.batch % parts:
        levels = ", times 2 for two levels in a batch" if halves > 1 else ""
        allowed = f"a multiple of {parts}, ranks times accumulated micro-batches{levels}"
        raise InvalidInput("training.batch", recipe.training.batch, allowed)


def _facts(recipe: Recipe, source: Source, data: Path, autoencoder: Path | None) -> RunFacts:
    training, held_out = source.training, source.validation
    return RunFacts(
        recipe=recipe,
        classes=training.classes if recipe.text is None else (),
        data=DataFacts(
            source=readable(data.name),
            sha256=training.whole.digest,
            held_out_sha256=held_out.whole.digest,
            training_pictures=len(training),
            classes=len(training.classes),
        ),
        autoencoder_sha256=None if autoencoder is None else fingerprint(autoencoder),
        encoder_sha256=None if source.texts is None else source.texts.encoder_sha256,
        **model_facts(recipe, recipe.conditions(training.classes), autoencoder),
        versions={"elit-serve": __version__, "commit": source_commit(), "torch": torch.__version__},
    )


def source_commit() -> str:
    """The commit of the source tree that this package runs from; "released" for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "released"
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    except OSError:  # no git here
        return "unknown"
    return done.stdout.strip() or "unknown"


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `parameter/entry` tensors."""
    tensors = {}
    for name, parameter in trained_parameters(model).items():
        for entry, value in optimizer.state[parameter].items():
            tensors[f"{name}/{entry}"] = value
    return tensors


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], world: World
) -> None:
    for name, parameter in trained_parameters(model).items():
        state = optimizer.state[parameter]
        for entry in ("step", "exp_avg", "exp_avg_sq"):
            on_cpu = entry == "step" and not optimizer.defaults["fused"]
            device = torch.device("cpu") if on_cpu else parameter.device
            saved = tensors[f"{name}/{entry}"]
            if entry != "step":
                saved = rows_of(saved, parameter, world)
            moved = saved.to(device, copy=True)  # not the mapped file itself
            state[entry] = moved if entry == "step" else spread_as(moved, parameter)


@contextmanager
def _ending_gracefully() -> Iterator[Callable[[], bool]]:
    """While open, SIGINT and SIGTERM ask the loop to end after its step instead of cutting it off."""
    asked = False

    def ask(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
