"""`elit-serve generate`: a picture from a model here, or from a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from elit_serve.cli.options import (
    ApiKeyOption,
    DeviceOption,
    DtypeOption,
    ModelArgument,
    QuantizeOption,
    SizeOption,
    ThreadsOption,
    integers,
    open_console,
)
from elit_serve.errors import InvalidInput
from elit_serve.pictures import format_of, write_file
from elit_serve.plans.levels import check_level
from elit_serve.plans.skips import SkipRule
from elit_serve.text.command_line import readable

if TYPE_CHECKING:
    from elit_serve.client import GenerateOptions, Generation, GuidanceOptions
    from elit_serve.engine.conditions import Condition, Conditions


@dataclass(frozen=True)
class Subject:
    """What pictures are of, as it was said: labels or prompts. negative: beside prompts."""

    labels: tuple[str, ...]
    prompts: tuple[str, ...]
    negative: str | None

    @classmethod
    def given(
        cls, labels: Sequence[str] | None, prompts: Sequence[str] | None, negative: str | None, *, is_one: bool
    ) -> Subject:
        """Raises `InvalidInput` for both, for none, and for several where there may be one."""
        said = {"label": tuple(map(readable, labels or ())), "prompt": tuple(map(readable, prompts or ()))}
        if said["label"] and said["prompt"]:
            raise InvalidInput("prompt", said["prompt"][0], "--label is given; leave one of them out")
        if not said["label"] and not said["prompt"]:
            raise InvalidInput("label", None, "--label CLASS, or of a model of prompts --prompt TEXT")
        if said["label"] and negative is not None:
            raise InvalidInput("negative_prompt", negative, "--prompt beside it")
        for field, texts in said.items():
            if is_one and len(texts) > 1:
                raise InvalidInput(field, ", ".join(texts), f"one {field}, or several with --grid")
        return cls(said["label"], said["prompt"], None if negative is None else readable(negative))

    @property
    def asked(self) -> GenerateOptions:
        """Of a server, for the first."""
        if self.labels:
            return {"label": self.labels[0]}
        return {"prompt": self.prompts[0], "negative_prompt": self.negative}

    def conditions(self, known: Conditions) -> list[Condition]:
        """Of a model."""
        labelled = [known.named(label) for label in self.labels]
        return labelled or [known.prompted(prompt, self.negative) for prompt in self.prompts]


def generate(
    output: Annotated[Path, typer.Option("--output", "-o", help="A .png, .jpg or .webp file.")],
    model: ModelArgument = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="CLASS", help="Class name or id; with --grid it may be repeated.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What the picture shows, of a model of prompts; repeated as --label."),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What it should not show, where the model knows that.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Fraction of the latents to use, in (0, 1]. Default: 1; a server chooses.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Noise seed.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. Default: the model's.")] = None,
    guidance: Annotated[str | None, typer.Option(help="none, cfg, ag or ccfg. Default: the model's.")] = None,
    scale: Annotated[float | None, typer.Option(help="Guidance scale; 1 is off. Default: the model's.")] = None,
    weak_budget: Annotated[float | None, typer.Option(help="Budget of the weak pass of ag and ccfg.")] = None,
    skips: Annotated[
        str | None,
        typer.Option(help="What steps skip: a threshold for cores as 0.15, weak, or both as 0.15+weak. Default: none."),
    ] = None,
    size: SizeOption = None,
    grid: Annotated[bool, typer.Option("--grid", help="A row per level and a column per --label or --prompt.")] = False,
    levels: Annotated[
        str | None, typer.Option(help="With --grid: its levels, as 1,4,16. Default: five, from the lowest to all.")
    ] = None,
    attention: Annotated[
        Path | None,
        typer.Option(help="A folder for what the latents read at several steps, at --budget or at several levels."),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    threads: ThreadsOption = None,
    server: Annotated[str | None, typer.Option(help="Ask this server, as http://localhost:8000, instead.")] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="With --server: when the picture must be there: promised, or refused at once.")
    ] = None,
    best_effort: Annotated[
        bool, typer.Option("--best-effort", help="With --server: --latency-ms is a wish, and never refused.")
    ] = False,
    api_key: ApiKeyOption = None,
) -> None:
    """Generate a picture, or a grid of levels by classes or prompts.

    With a model of this machine, or with --server.
    """
    subject = Subject.given(label, prompt, negative_prompt, is_one=not grid)
    if levels is not None and not grid:
        raise InvalidInput("levels", levels, "--grid beside them; one picture has --budget")
    runtime = {"device": device, "dtype": dtype, "quantize": quantize, "threads": threads}
    chosen = {"method": guidance, "scale": scale, "weak_budget": weak_budget}
    if server is None:
        _refuse_given({"latency_ms": latency_ms, "best_effort": best_effort}, "--server beside it")
        _draw_here(
            subject,
            output,
            model,
            budget=budget,
            seed=seed,
            steps=steps,
            guidance=chosen,
            skips=SkipRule() if skips is None else SkipRule.read(skips),
            size=size,
            levels=integers("levels", levels) if levels else None,
            grid=grid,
            attention=attention,
            runtime=runtime,
        )
    else:
        of_here = {"model": model, "grid": grid, "attention": attention, "skips": skips, **runtime}
        _refuse_given(of_here, "a server has its own, and draws one picture; leave it or --server out")
        options: GenerateOptions = {
            **subject.asked,
            "seed": seed,
            "budget": budget,
            "latency_ms": latency_ms,
            "best_effort": best_effort or None,
            "steps": steps,
            "size": size,
            "guidance": cast("GuidanceOptions", {name: value for name, value in chosen.items() if value is not None}),
            "output_format": format_of(output),
        }
        _ask_server(server, api_key, output, options)
    typer.echo(f"{output}")


def _refuse_given(options: Mapping[str, object], allowed: str) -> None:
    for name, value in options.items():
        if value not in (None, False):
            raise InvalidInput(name, value if isinstance(value, float | bool) else str(value), allowed)


def _draw_here(
    subject: Subject,
    output: Path,
    model: str | None,
    *,
    budget: float | None,
    seed: int,
    steps: int | None,
    guidance: Mapping[str, Any],
    skips: SkipRule,
    size: str | None,
    levels: list[int] | None,
    grid: bool,
    attention: Path | None,
    runtime: Mapping[str, Any],
) -> None:
    from elit_serve.engine.pipeline import Pipeline, save_image

    if grid and budget is not None:
        raise InvalidInput("budget", budget, "--grid shows several budgets; leave it out, or choose with --levels")
    if grid and attention is not None:
        raise InvalidInput("attention", str(attention), "--grid makes many pictures, attention is that of one")
    pipeline = Pipeline.load(model, **runtime, sizes=[] if size is None else [size])
    is_open = all(value is None for value in guidance.values())
    chosen_guidance = None if is_open else pipeline.guidance(**guidance)
    plan = pipeline.plan(budget=budget, steps=steps, guidance=chosen_guidance, skips=skips)
    conditions = subject.conditions(pipeline.conditions)
    plan.guidance.check_negative(subject.negative)
    if grid:
        from elit_serve.evaluation.report.sheets import budget_sheet, shown_levels

        trained = pipeline.config.levels
        chosen = [check_level(level, trained) for level in levels or shown_levels(plan.guidance, trained)]
        rows = [
            pipeline.plan(levels=[level] * plan.num_steps, guidance=chosen_guidance, skips=skips) for level in chosen
        ]
        save_image(budget_sheet(pipeline, rows, conditions=conditions, seed=seed), output)
    elif attention is not None:
        from elit_serve.evaluation.report.attention_maps import figures_table, halved_levels, write_attention

        read_at = halved_levels(pipeline.config.levels) if budget is None else [plan.levels[0]]
        records = write_attention(pipeline, plan, condition=conditions[0], seed=seed, levels=read_at, folder=attention)
        records[0].picture.save(output)
        open_console(stderr=True).print(figures_table(records))
    else:
        pipeline.run(conditions, [seed], plan)[0].save(output)


def _ask_server(url: str, api_key: str | None, output: Path, options: GenerateOptions) -> None:
    """Comes back for as long as a minute to a server that is busy, and says on stderr what it did."""
    from elit_serve.client import Client, Retries

    with Client(url, api_key=api_key, retries=Retries()) as client:
        generation = client.generate(**options)
    write_file(output, generation.images[0].data)
    typer.echo(_summary(generation), err=True)


def _summary(generation: Generation) -> str:
    took = "" if generation.total_ms is None else f", {generation.total_ms:.0f} ms"
    target = "" if generation.deadline_met is None else f", target {'met' if generation.deadline_met else 'missed'}"
    spent = "" if generation.device_ms is None else f", {generation.device_ms:.0f} ms of the device"
    return f"budget {generation.images[0].budget:.3g}, {generation.steps} steps{took}{spent}{target}"
