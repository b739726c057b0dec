"""What a run tells: a progress bar, a log file and TensorBoard scalars. Only the main rank speaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from elit_serve.clock import Clock
from elit_serve.errors import RunError
from elit_serve.nn.latents import LatentFigures
from elit_serve.trainer.run import RunDirectory

NEARLY_ALIKE = 0.95  # garden64's latents have 0.98 to 0.995, and differ in four directions of 15


class Reporter:
    """Progress bar on a terminal, plain lines elsewhere; always log.jsonl and TensorBoard."""

    def __init__(
        self, run: RunDirectory, console: Console, clock: Clock, *, batch: int, steps: int, first_step: int
    ) -> None:
        self._run, self._console, self._clock, self._batch = run, console, clock, batch
        with self._writing():
            self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=first_step + 1)
        self._last = (clock.now(), first_step)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, completed=first_step, figures="")
        self._steps = steps

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        try:
            with self._writing():
                self._writer.close()
        except RunError:
            if error is None:  # what ended the run says more
                raise

    def begin(self, device: torch.device, ranks: int, precision: str, *, is_compiled: bool) -> None:
        """One line before the first step, which may take long."""
        where = f"{device} (threads: {torch.get_num_threads()})" if device.type == "cpu" else str(device)
        where += f", {ranks} ranks" if ranks > 1 else ""
        how = "compiled while its first steps run, in a minute or more" if is_compiled else "not compiled"
        first = self._last[1] + 1
        self.say(
            f"training on {where} in {precision}, {how}: steps {first:,} to {self._steps:,} of {self._batch:,} pictures"
        )

    def step(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def training(
        self, step: int, *, loss: float, parts: Mapping[str, float], learning_rate: float, grad_norm: float
    ) -> None:
        """The mean loss since the last log line, and what it consists of where it has parts."""
        now = self._clock.now()
        then, last_step = self._last
        self._last = (now, step)
        rate = (step - last_step) * self._batch / max(now - then, 1e-9)
        left_s = (self._steps - step) * self._batch / max(rate, 1e-9)
        self._run.log({"step": step, "loss": loss, **parts, "grad_norm": grad_norm, "learning_rate": learning_rate})
        self._scalars(
            step,
            {
                "train/loss": loss,
                **{f"train/{name}": value for name, value in parts.items()},
                "train/grad_norm": grad_norm,
                "train/lr": learning_rate,
                "train/images_per_s": rate,
            },
        )
        figures = f"loss {loss:.4f}  {''.join(f'{name} {value:.4f}  ' for name, value in parts.items())}"
        figures += f"{rate:,.0f} images/s"
        self._bar.update(self._task, completed=step, figures=figures)
        if not self._console.is_terminal:
            self._console.print(f"step {step}/{self._steps}  {figures}  {left_s:,.0f} s left", highlight=False)

    def validation(self, step: int, losses: Mapping[int, float], latents: Mapping[int, LatentFigures]) -> None:
        """The validation loss of each level, and what its latents do in a model that has some."""
        record: dict[str, object] = {"validation": {str(level): loss for level, loss in losses.items()}}
        scalars = {f"validation/level_{level}": loss for level, loss in losses.items()}
        if latents:
            record["latents"] = {str(level): figures.present() for level, figures in latents.items()}
        for level, figures in latents.items():
            scalars |= {f"latents/{name}/level_{level}": value for name, value in figures.present().items()}
        self._run.log({"step": step, **record})
        self._scalars(step, scalars)
        shown = "  ".join(f"{level}: {loss:.4f}" for level, loss in losses.items())
        self.say(f"step {step}  validation loss by level  {shown}")
        if latents:
            self._tell_latents(max(latents), latents[max(latents)])

    def _tell_latents(self, level: int, figures: LatentFigures) -> None:
        """One line on the highest level, and a warning if its latents might as well be fewer."""
        self.say(f"latents at level {level}: {in_words(figures)}")
        if figures.cosine_after_core is not None and figures.cosine_after_core > NEARLY_ALIKE:
            self.say(
                f"warning: the latents of a group are nearly alike (cosine {figures.cosine_after_core:.3f} after the "
                "core), so the core does the work of a few of them; backbone.interface.start decides whether they "
                "start apart"
            )

    def samples(self, step: int, sheet: Image.Image) -> None:
        """A grid of samples: a row per level, a column per class."""
        folder = self._run.path / "samples"
        with self._writing():
            folder.mkdir(exist_ok=True)
            sheet.save(folder / f"step-{step:08d}.png")

    def say(self, text: str) -> None:
        say(self._console, text)

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        with self._writing():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"{self._run.path} cannot be written: {error.strerror or error}") from None


def in_words(figures: LatentFigures) -> str:
    """The figures in one line; of one latent, what it has."""
    read, core = figures.cosine_after_read, figures.cosine_after_core
    rank_read, rank_core = figures.rank_after_read, figures.rank_after_core
    parts = []
    if read is not None and core is not None:
        parts += [f"cosine {read:.2f} after Read, {core:.2f} after the core"]
    tokens, latents = figures.tokens_per_latent, figures.latents_per_token
    parts += [f"{tokens:.1f} tokens read per latent, {latents:.1f} latents per token"]
    if rank_read is not None and rank_core is not None:
        parts += [f"differences of rank {rank_read:.1f} after Read, {rank_core:.1f} after the core"]
    return "; ".join(parts)


def say(console: Console, text: str) -> None:
    """One line, as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
