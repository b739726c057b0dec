"""`elit-serve sweep`, `grids`, `calibrate`, `precision` and `served`: measured quality of plans, by longer steps, in
other precisions and as served, and which steps may skip something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from elit_serve.cli.options import (
    DeviceOption,
    DtypeOption,
    ModelArgument,
    QuantizeOption,
    SizeOption,
    ThreadsOption,
    integers,
    open_console,
)
from elit_serve.plans.levels import check_level

ReferenceOption = Annotated[
    Path | None,
    typer.Option(help="The training photographs: a folder or tar, with classes or captions; or a saved reference."),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        help="Without photographs: prompts, one a line, or captions. Plans are compared with the model's full plan."
    ),
]
SamplesOption = Annotated[
    int | None, typer.Option(min=1, help="With --prompts: pictures in a set, of these in turn. Default: one of each.")
]
FeaturesOption = Annotated[str, typer.Option(help="torchscript:PATH (run as code), inception[:PATH] or dinov2[:PATH].")]
HeldOutOption = Annotated[
    Path | None,
    typer.Option(help="Photographs the model never saw; they set n and the class mix. Default: every 10th."),
]
BatchOption = Annotated[
    int | None, typer.Option(min=1, help="Most pictures in a step. Default: a server's largest batch.")
]


def sweep(
    features: FeaturesOption,
    out: Annotated[Path, typer.Option(help="The folder for quality.json, front.png and the features of all pictures.")],
    model: ModelArgument = None,
    reference: ReferenceOption = None,
    prompts: PromptsOption = None,
    samples: SamplesOption = None,
    held_out: HeldOutOption = None,
    save_reference: Annotated[
        Path | None, typer.Option(help="Keep the photographs' features in this .safetensors, for --reference.")
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(help="Levels, each throughout. Default: those of 1,2,4,8,16 that are trained, and the highest."),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(help="Numbers of denoising steps. Default: 10,20,40,80; of one level, quarters of the model's."),
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(
            help="Settings: none, or METHOD:SCALE[/WEAK_LEVEL][@START-END] as ccfg:4.5/1@0.1-1. "
            "Default: none,ccfg:3/1,ccfg:4.5/1@0.1-1; of one level, the model's."
        ),
    ] = None,
    schedules: Annotated[
        str | None,
        typer.Option(help="Pairs of levels, half of the steps at each, both ways round, as 1-16; '' for none."),
    ] = None,
    skips: Annotated[
        str, typer.Option(help="What plans skip: none, a threshold for cores as 0.15, weak, or both as 0.15+weak.")
    ] = "none",
    max_repeats: Annotated[int, typer.Option(min=1, help="Most sets of pictures of one plan.")] = 5,
    max_measurements: Annotated[
        int | None, typer.Option(min=1, help="Sets of pictures in all. Default: twice the number of plans.")
    ] = None,
    first_repeat: Annotated[int, typer.Option(min=0, help="Seeds start there; another one is a rerun.")] = 0,
    part: Annotated[str, typer.Option(help="1/2 measures every second plan into the folder, no more.")] = "1/1",
    latency: Annotated[Path | None, typer.Option(help="A latency/<device>.json: front.png also shows time.")] = None,
    write_defaults: Annotated[
        bool, typer.Option("--write-defaults", help="Put quality.json and the recommended sampling into the model.")
    ] = False,
    batch_size: BatchOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure which plans are worth their cost.

    Most is measured where that is uncertain. It may be stopped, and goes on when it is started again.
    """
    from elit_serve.engine.pipeline import Pipeline
    from elit_serve.evaluation.features import open_features
    from elit_serve.evaluation.runs.opening import ReferenceOptions
    from elit_serve.evaluation.runs.sweep.command import SweepWords, run_sweep_command

    against = ReferenceOptions(
        reference=reference,
        held_out=held_out,
        save_reference=save_reference,
        prompts=prompts,
        samples=samples,
        batch_size=batch_size,
    ).with_prompts_read()
    sizes = [] if size is None else [size]
    pipeline = Pipeline.load(model, device=device, dtype=dtype, quantize=quantize, threads=threads, sizes=sizes)
    words = SweepWords(
        levels=None if levels is None else integers("levels", levels),
        steps=None if steps is None else integers("steps", steps),
        guidance=guidance,
        schedules=schedules,
        skips=skips,
        part=part,
        latency=latency,
        out=out,
        max_repeats=max_repeats,
        max_measurements=max_measurements,
        first_repeat=first_repeat,
        writes_defaults=write_defaults,
        threads=threads,
    )
    run_sweep_command(pipeline, open_features(features, pipeline.device), against, words, open_console())


def grids(
    features: FeaturesOption,
    out: Annotated[Path, typer.Option(help="The folder for quality.json and the features of all pictures.")],
    model: ModelArgument = None,
    reference: ReferenceOption = None,
    prompts: PromptsOption = None,
    samples: SamplesOption = None,
    held_out: HeldOutOption = None,
    levels: Annotated[str | None, typer.Option(help="Levels, each throughout. Default: the highest.")] = None,
    steps: Annotated[str | None, typer.Option(help="Steps of the whole grid. Default: the model's own.")] = None,
    guidance: Annotated[
        str | None, typer.Option(help="Settings as of sweep, as ccfg:4.5/1@0.1-1. Default: the model's own.")
    ] = None,
    changes: Annotated[
        str,
        typer.Option(
            "--grids", help="Changed grids: STRIDE throughout, or STRIDE@START-END for steps that start then."
        ),
    ] = "2,4,2@0.25-1,2@0.5-1,2@0.75-1,4@0.25-1,4@0.5-1,4@0.75-1,2@0-0.25,2@0-0.5,2@0-0.75,4@0-0.5",
    repeats: Annotated[int, typer.Option(min=1, help="Sets of pictures of each grid.")] = 5,
    write: Annotated[bool, typer.Option("--write", help="Put the result into the model's quality.json.")] = False,
    batch_size: BatchOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure what longer steps make of a model's quality.

    Pictures on changed time grids are compared with the same seeds on the whole grid. A server then knows what it costs
    to finish a picture in fewer steps than planned.
    """
    from elit_serve.engine.pipeline import Pipeline
    from elit_serve.evaluation.features import open_features
    from elit_serve.evaluation.runs.grids import GridOptions, changed_grid, run_grids_command
    from elit_serve.evaluation.runs.opening import ReferenceOptions
    from elit_serve.evaluation.runs.sweep.command import guidance_of

    against = ReferenceOptions(
        reference=reference, held_out=held_out, prompts=prompts, samples=samples, batch_size=batch_size
    ).with_prompts_read()
    pipeline = Pipeline.load(model, device=device, dtype=dtype, quantize=quantize, threads=threads)
    sampling = pipeline.config.sampling
    options = GridOptions(
        against=against,
        out=out,
        levels=[pipeline.budgets.full_level] if levels is None else integers("levels", levels),
        steps=[sampling.steps] if steps is None else integers("steps", steps),
        guidances=[sampling.guidance] if guidance is None else [guidance_of(word) for word in guidance.split(",")],
        changes=[changed_grid(word) for word in changes.split(",")],
        repeats=repeats,
        writes=write,
    )
    run_grids_command(pipeline, open_features(features, pipeline.device), options, open_console())


def calibrate(
    model: ModelArgument = None,
    steps: Annotated[str, typer.Option(help="Numbers of denoising steps to look at.")] = "10,20,40",
    levels: Annotated[
        str | None, typer.Option(help="Levels to look at. Default: the highest, and a quarter of it if trained.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Pictures of each, their classes or prompts in turn.")] = 16,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts, one a line, or captions. Default: classes, or the model's examples.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write. Default: skips.json of MODEL.")] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Fit which steps may skip a model's core.

    How much its output changes from step to step, against how much the timestep embedding does, on pictures of its own.
    Thresholds of --skips are then shares of that output.
    """
    from elit_serve.engine.pipeline import Pipeline
    from elit_serve.evaluation.runs.calibrate import calibrate as fit
    from elit_serve.files.skips import write_skips
    from elit_serve.photographs import read_prompts

    asked = () if prompts is None else read_prompts(prompts)
    pipeline = Pipeline.load(model, device=device, dtype=dtype, threads=threads)
    trained, full = pipeline.config.levels, pipeline.budgets.full_level
    chosen = integers("levels", levels) if levels else sorted({full, pipeline.budgets.level_of(0.25)})
    calibration = fit(
        pipeline,
        steps=integers("steps", steps),
        levels=[check_level(level, trained) for level in chosen],
        num_samples=samples,
        prompts=asked,
        console=open_console(stderr=True),
    )
    file = out or pipeline.path / "skips.json"
    write_skips(calibration, file)
    typer.echo(f"{file}: off by {calibration.error:.3f} where the output changes by {calibration.mean:.3f} in the mean")


def precision(
    features: FeaturesOption,
    out: Annotated[Path, typer.Option(help="The folder for the result and the features; a sweep's has half of them.")],
    model: ModelArgument = None,
    reference: ReferenceOption = None,
    prompts: PromptsOption = None,
    samples: SamplesOption = None,
    held_out: HeldOutOption = None,
    plan: Annotated[
        list[str] | None, typer.Option(help="A plan of quality.json by its name; may be repeated. Default: its front.")
    ] = None,
    max_repeats: Annotated[
        int, typer.Option(min=1, help="Most sets of pictures of one plan, of those that it was measured with.")
    ] = 5,
    write: Annotated[bool, typer.Option("--write", help="Put the result into the model's quality.json.")] = False,
    batch_size: BatchOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure what another precision makes of a model's quality.

    The plans of its quality.json are drawn with the same seeds in the precision that they were measured in and in this
    one. A server then tells the quality of the precision that it runs in.
    """
    from elit_serve.engine.pipeline import Pipeline
    from elit_serve.evaluation.features import open_features
    from elit_serve.evaluation.runs.opening import ReferenceOptions
    from elit_serve.evaluation.runs.precision import PrecisionOptions, run_precision_command

    against = ReferenceOptions(
        reference=reference, held_out=held_out, prompts=prompts, samples=samples, batch_size=batch_size
    ).with_prompts_read()
    pipeline = Pipeline.load(model, device=device, dtype=dtype, quantize=quantize, threads=threads)
    options = PrecisionOptions(against=against, out=out, plans=plan or (), max_repeats=max_repeats, writes=write)
    run_precision_command(pipeline, open_features(features, pipeline.device), options, open_console())


def served(
    records: Annotated[Path, typer.Argument(help="A file of elit-serve bench --records.")],
    features: FeaturesOption,
    out: Annotated[Path, typer.Option(help="The folder for served.json.")],
    model: ModelArgument = None,
    reference: ReferenceOption = None,
    prompts: PromptsOption = None,
    samples: SamplesOption = None,
    held_out: HeldOutOption = None,
    batch_size: BatchOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure pictures as a server made them under load.

    Against the quality that the scheduler read off for them.
    """
    from elit_serve.engine.pipeline import Pipeline
    from elit_serve.evaluation.features import open_features
    from elit_serve.evaluation.runs.comparable import open_on_scale
    from elit_serve.evaluation.runs.opening import ReferenceOptions
    from elit_serve.evaluation.runs.served import measure_served, read_served
    from elit_serve.files.writing import check_folder, write_whole

    against = ReferenceOptions(
        reference=reference, held_out=held_out, prompts=prompts, samples=samples, batch_size=batch_size
    ).with_prompts_read()
    pipeline = Pipeline.load(model, device=device, dtype=dtype, quantize=quantize, threads=threads)
    plans = read_served(records, pipeline)
    check_folder(out)
    extractor = open_features(features, pipeline.device)
    found = measure_served(pipeline, open_on_scale(pipeline, extractor, against, out), extractor, plans)
    text = json.dumps(found.as_dict(), indent=2)
    write_whole(out / "served.json", text + "\n")
    typer.echo(text)
