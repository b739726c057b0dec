"""`elit-serve evaluate` and `elit-serve report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from elit_serve.cli.options import (
    DeviceOption,
    DtypeOption,
    ModelArgument,
    QuantizeOption,
    SizeOption,
    ThreadsOption,
    integers,
)
from elit_serve.text.command_line import readable


def evaluate(
    reference: Annotated[Path, typer.Option(help="The training photographs: a folder or tar; or a saved reference.")],
    features: Annotated[str, typer.Option(help="torchscript:PATH (run as code), inception[:PATH] or dinov2[:PATH].")],
    out: Annotated[Path, typer.Option(help="The folder for evaluation.json, table.md, budgets.png and nearest.png.")],
    model: ModelArgument = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Photographs the model never saw; they set n and the class mix. Default: every 10th."),
    ] = None,
    save_reference: Annotated[
        Path | None, typer.Option(help="Keep the photographs' features in this .safetensors, for --reference.")
    ] = None,
    levels: Annotated[str | None, typer.Option(help="Levels, as 1,2,4,8,16. Default: all trained ones.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Sets of samples, each with its own seeds.")] = 5,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most pictures in a step. Default: a server's largest batch.")
    ] = None,
    show: Annotated[
        list[str] | None, typer.Option(metavar="WORDS", help="A class or prompt for budgets.png; may be repeated.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. Default: the model's.")] = None,
    guidance: Annotated[str | None, typer.Option(help="none, cfg, ag or ccfg. Default: the model's.")] = None,
    scale: Annotated[float | None, typer.Option(help="Guidance scale; 1 is off. Default: the model's.")] = None,
    interval_start: Annotated[float | None, typer.Option(help="Guide from this time on. Default: the model's.")] = None,
    interval_end: Annotated[float | None, typer.Option(help="Guide up to this time. Default: the model's.")] = None,
    weak_budget: Annotated[float | None, typer.Option(help="Budget of the weak pass of ag and ccfg.")] = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure a model's pictures at each level.

    Their distance to photographs, and to the nearest training photograph.
    """
    from dataclasses import replace
    from functools import partial

    from elit_serve.engine.pipeline import Pipeline
    from elit_serve.evaluation.features import open_features
    from elit_serve.evaluation.runs.evaluate import EvaluateOptions, run_evaluation
    from elit_serve.evaluation.runs.opening import ReferenceOptions

    sizes = [] if size is None else [size]
    pipeline = Pipeline.load(model, device=device, dtype=dtype, quantize=quantize, threads=threads, sizes=sizes)
    known = pipeline.conditions
    shown = partial(known.named if pipeline.config.classes else known.prompted, field="show")
    chosen = pipeline.guidance(method=guidance, scale=scale, weak_budget=weak_budget)
    start = chosen.interval[0] if interval_start is None else interval_start
    end = chosen.interval[1] if interval_end is None else interval_end
    options = EvaluateOptions(
        against=ReferenceOptions(
            reference=reference, held_out=held_out, save_reference=save_reference, batch_size=batch_size
        ),
        out=out,
        levels=integers("levels", levels) if levels else list(pipeline.config.levels),
        repeats=seeds,
        shown_conditions=[shown(readable(words)) for words in show or []],
    )
    plan = pipeline.plan(steps=steps, guidance=replace(chosen, interval=(start, end)))
    extractor = open_features(features, pipeline.device)
    typer.echo(run_evaluation(pipeline, plan, extractor, options, Console(stderr=True)))


def report(
    folder: Annotated[Path, typer.Argument(help="A folder of evaluate or sweep.")],
) -> None:
    """Make one HTML page of what is measured: FOLDER/report.html.

    From the evaluation.json and quality.json there, with pictures and a latency file beside them; measures nothing.
    """
    from elit_serve.evaluation.report.page import write_page

    typer.echo(f"{write_page(folder)}")
