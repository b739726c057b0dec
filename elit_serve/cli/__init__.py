"""The command line: `elit-serve COMMAND`. Errors are one line and exit code 2; torch is imported only when needed."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

import elit_serve
from elit_serve.cli.benchmarks import bench, simulate, soak
from elit_serve.cli.captioning import caption
from elit_serve.cli.encoding import encode
from elit_serve.cli.evaluation import evaluate, report
from elit_serve.cli.first_process import end_when_told
from elit_serve.cli.generation import generate
from elit_serve.cli.importing import import_
from elit_serve.cli.keys import key
from elit_serve.cli.options import (
    ChangesOption,
    DeviceOption,
    DtypeOption,
    ModelArgument,
    QuantizeOption,
    RecipeArgument,
    ThreadsOption,
    integers,
    open_console,
    refuse_given,
)
from elit_serve.cli.setting_options import takes_settings
from elit_serve.cli.sweeps import calibrate, grids, precision, served, sweep
from elit_serve.cli.tournament import tournament
from elit_serve.cli.training_speed import profile_training
from elit_serve.errors import ElitError, EngineStopped, InvalidInput
from elit_serve.server.setting_sources import read_settings
from elit_serve.text.command_line import command_line

if TYPE_CHECKING:
    from elit_serve.nn import BackboneSpec
    from elit_serve.nn.describe import Description

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no fault of ours, wherever it is met, as by standard output

app = typer.Typer(
    help="Serve and train elastic diffusion transformers: one checkpoint, every latency.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # markup would take the brackets of METHOD:SCALE[/WEAK_LEVEL] for tags
)


def main() -> None:
    """Runs the command line. Every expected error becomes one line on stderr and exit code 2, or 1 if the engine of a
    server stopped: trying again helps then, and otherwise not."""
    end_when_told()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # in a locale that has not all letters of a class's name
            stream.reconfigure(errors="backslashreplace")
    try:
        app(standalone_mode=True)
    except ElitError as error:
        _say_error(error)
        sys.exit(1 if isinstance(error, EngineStopped) else 2)
    except OSError as error:
        if error.errno not in FULL:
            raise
        _say_error(f"{error.filename or 'what the command prints or writes'} cannot be written: {error.strerror}")
        sys.exit(2)


def _say_error(error: ElitError | str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {error}", markup=False)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(elit_serve.__version__)
        raise typer.Exit


@app.command()
def describe(
    model: Annotated[str, typer.Argument(help="A preset such as elit-dit-xl/2 or dit-b/2, or a model directory.")],
    resolution: Annotated[int | None, typer.Option(help="Pixels per side, for presets. Default: 256.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples per training iteration.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters and FLOPs of a model at every level.

    No weight is allocated. Each count is given twice: `prefix`, with Read and Write over the latents that are kept, and
    `all_latents`, with both over all, as the paper counts. `reads_all` says which of them this model is.
    """
    from elit_serve.nn.describe import describe as describe_spec

    name, spec, levels = _spec_of(model, resolution)
    description = describe_spec(name, spec, levels, batch)
    if as_json:
        typer.echo(json.dumps(description.as_dict(), indent=2))
    else:
        open_console().print(_description_table(description))


@app.command()
@takes_settings
def serve(*, config: str | None, **flags: object) -> None:
    """Serve a model over HTTP.

    Every option is also a variable, as ELIT_SERVE_PORT, and a key of the TOML file that --config names.
    """
    settings = read_settings(flags, os.environ, config)
    from elit_serve.guests import GUESTS

    if settings.replicas is not None:
        from elit_serve.fleet.run import serve as run_server
    else:
        from elit_serve.server.run import serve as run_server
    run_server(settings, announce=typer.echo, guests=GUESTS)


@app.command()
def profile(
    context: typer.Context,
    model: ModelArgument = None,
    random_weights: Annotated[
        str | None, typer.Option(help="A preset such as elit-dit-xl/2, with random weights, instead of a model.")
    ] = None,
    resolution: Annotated[int, typer.Option(help="Pixels per side, with --random-weights.")] = 256,
    autoencoder: Annotated[
        Path | None, typer.Option(help="A folder in diffusers' format, instead of the model's own autoencoder.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="With --random-weights: its sizes, as 512x512,640x384. Default: --resolution's.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="With --random-weights: of a prompt. Default: all that the preset takes.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Default: latency/<device>[-fp8].json of MODEL.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Steps behind each figure. Default: 10, CPU 2.")] = None,
    levels: Annotated[str, typer.Option(help="Only these of a server's levels, as 64,16.")] = "",
    batches: Annotated[str, typer.Option(help="Only these of a server's batch sizes, as 1,8.")] = "",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure what a denoising step costs on this device.

    At every level and batch size that a server uses, or at some: a server takes no file that lacks what it uses.
    """
    import torch

    from elit_serve.engine.pipeline import Pipeline
    from elit_serve.engine.profile.profiler import profile_to_file

    if random_weights is None:
        refuse_given(context, ("resolution",), "a model has its own sizes; leave it out")
        if sizes is not None:
            raise InvalidInput("sizes", sizes, "all sizes of a model are measured; leave it out")
        if max_tokens is not None:
            raise InvalidInput("max_tokens", max_tokens, "a model has its own; leave it out")
        pipeline = Pipeline.load(
            model, device=device, dtype=dtype, quantize=quantize, threads=threads, autoencoder=autoencoder
        )
    elif model is not None:
        raise InvalidInput("random_weights", random_weights, "a model is given; leave one of them out")
    elif out is None:
        raise InvalidInput("out", None, "random weights have no directory of their own; name a file")
    else:
        if threads is not None:
            torch.set_num_threads(threads)
        pipeline = Pipeline.random(
            random_weights,
            resolution,
            device=device,
            dtype=dtype,
            quantize=quantize,
            autoencoder=autoencoder,
            sizes=sizes.split(",") if sizes else (),
            max_tokens=max_tokens,
        )
    file = profile_to_file(
        pipeline,
        out,
        repeats=repeats,
        command=command_line(),
        console=open_console(stderr=True),
        levels=integers("levels", levels) if levels else (),
        batches=integers("batches", batches) if batches else (),
    )
    typer.echo(f"{file}")


@app.command()
def train(
    recipe: RecipeArgument,
    data: Annotated[
        Path,
        typer.Option(
            help="A folder or an uncompressed tar of class/name.jpg, or of name.jpg and name.txt; or latents of encode."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The run's folder.")],
    val: Annotated[Path | None, typer.Option(help="Validation pictures. Default: some of --data are held out.")] = None,
    autoencoder: Annotated[
        Path | None, typer.Option(help="A folder in diffusers' format, if the recipe needs it.")
    ] = None,
    changes: ChangesOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Train a model from a recipe; data-parallel under torchrun."""
    import torch

    from elit_serve.engine.pipeline import choose_device
    from elit_serve.trainer.distributed import end_rank
    from elit_serve.trainer.loop import train as run_training
    from elit_serve.trainer.recipe import find_recipe, read_recipe

    if threads is not None:
        torch.set_num_threads(threads)
    run_training(
        read_recipe(find_recipe(recipe), changes or ()),
        data,
        out,
        validation=val,
        autoencoder=autoencoder,
        resume=resume,
        device=choose_device(device),
        console=Console(),
    )
    end_rank()


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    destination: Annotated[Path, typer.Argument(help="The model directory to write, as models/NAME.")],
    step: Annotated[int | None, typer.Option(help="The checkpoint to take. Default: the newest.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    autoencoder: Annotated[
        Path | None, typer.Option(help="A folder in diffusers' format, copied into the model.")
    ] = None,
    preview_autoencoder: Annotated[
        Path | None, typer.Option(help="A smaller one for previews, as TAESD, copied into the model.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the weights of an existing model.")] = False,
    max_shard_mb: Annotated[int, typer.Option(min=1, help="Largest weight file.")] = 4096,
) -> None:
    """Write a run's averaged weights as a model to serve."""
    from elit_serve.engine.checkpoint import weight_dtype
    from elit_serve.trainer.export import export as write_model

    config = write_model(
        run,
        destination,
        step=step,
        dtype=weight_dtype(dtype),
        autoencoder=autoencoder,
        preview_autoencoder=preview_autoencoder,
        replace=replace,
        max_shard_bytes=max_shard_mb << 20,
    )
    typer.echo(f"{destination}: {', '.join(config.weights.files)}")


for command in (
    caption,
    encode,
    profile_training,
    generate,
    evaluate,
    report,
    sweep,
    grids,
    calibrate,
    precision,
    served,
    bench,
    soak,
    simulate,
    tournament,
    key,
):
    app.command()(command)


app.command("import")(import_)


def _spec_of(model: str, resolution: int | None) -> tuple[str, BackboneSpec, Sequence[int]]:
    """(name, spec, levels) of a model directory or a preset."""
    from elit_serve.catalogue import resolve_model
    from elit_serve.engine.checkpoint import read_spec
    from elit_serve.nn import preset, preset_names

    if model in preset_names():
        spec = preset(model, 256 if resolution is None else resolution)
        return model, spec, spec.levels
    try:
        path = resolve_model(model)
    except InvalidInput:
        raise InvalidInput("model", model, f"a model directory, or one of {', '.join(preset_names())}") from None
    if resolution is not None:
        raise InvalidInput("resolution", resolution, "a model directory has its own; leave it out")
    config, spec = read_spec(path)
    return config.name, spec, config.levels


def _description_table(description: Description) -> Table:
    table = Table(
        title=f"{description.name}: {description.params / 1e6:,.1f} M parameters, {description.num_tokens} tokens, "
        f"{description.num_groups} groups",
        caption=f"TFLOP per training iteration at batch {description.batch}: full "
        f"{description.tflops_iteration.full.executed:,.1f}, multi-budget "
        f"{description.tflops_iteration.multi_budget.executed:,.1f} "
        f"({description.tflops_iteration.multi_budget.all_latents:,.1f} as the paper counts)",
    )
    for column in ("level", "latents", "GFLOP per forward", "as the paper counts", "share of full"):
        table.add_column(column, justify="right")
    full = description.levels[-1].gflops_forward.executed
    for cost in description.levels:
        executed, paper = cost.gflops_forward.executed, cost.gflops_forward.all_latents
        table.add_row(str(cost.level), str(cost.tokens), f"{executed:,.2f}", f"{paper:,.2f}", f"{executed / full:.3f}")
    return table
