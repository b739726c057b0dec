"""`elit-serve import`: a published checkpoint becomes a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elit_serve.cli.options import integers, refuse_given
from elit_serve.errors import InvalidInput

OF_A_FOLDER = ("sizes", "max_tokens", "steps", "guidance_scale")
OF_A_FILE = ("classes", "levels", "heads", "dtype", "autoencoder", "preview_autoencoder", "max_shard_mb")


def import_(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="A .pt file of ELIT-SiT or SiT weights, or a folder with a pipeline of diffusers.")
    ],
    destination: Annotated[
        Path | None,
        typer.Argument(help="The model directory to write, as models/NAME. A folder of diffusers becomes one itself."),
    ] = None,
    source: Annotated[str | None, typer.Option(help="Where the weights come from; kept in the model.")] = None,
    license_text: Annotated[str | None, typer.Option("--license", help="Their licence; kept in the model.")] = None,
    autoencoder: Annotated[
        Path | None,
        typer.Option(help="A folder in diffusers' format, copied into the model. Default: the model answers latents."),
    ] = None,
    preview_autoencoder: Annotated[
        Path | None, typer.Option(help="A smaller one for previews, as TAESD, copied into the model.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Class names, one per line. Default: ImageNet's for 1,000 classes, else numbers."),
    ] = None,
    levels: Annotated[str | None, typer.Option(help="Those it was trained at, as 1,4,16. Default: all.")] = None,
    head: Annotated[
        int | None,
        typer.Option(min=0, help="Blocks before Read. Default: what the file says; of a folder a share of its depth."),
    ] = None,
    tail: Annotated[
        int | None,
        typer.Option(min=0, help="Blocks after Write. Default: half as many; of a folder a share of its depth."),
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads. Default: those of DiT's sizes S, B, L and XL.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="Rows and columns of a group, as 4,4. Default: it is square. Of a folder: puts ELIT inside the model."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Overwrite an existing model's weights; of a folder its config.json alone."),
    ] = False,
    max_shard_mb: Annotated[int, typer.Option(min=1, help="Largest weight file, and most weights in memory.")] = 4096,
    sizes: Annotated[
        str | None,
        typer.Option(help="Of pictures, of a folder: as 512x512,640x384, the default first. Default: what it says."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Of a prompt, of a folder. Default: what its tokenizer says.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of a folder. Default: those of its pipeline.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=1, help="Of a folder; 1 is off. Default: that of its pipeline.")
    ] = None,
) -> None:
    """Write a published ELIT-SiT or SiT checkpoint as a model to serve, or make a folder of diffusers one.

    Of a checkpoint the averaged weights are taken. Files that hold code are refused: nothing in them is run. Into a
    folder of diffusers with a text-to-image pipeline a config.json is written; its own files stay as they are.
    """
    if file.is_dir():
        from elit_serve.importing.diffusers_folder import import_folder
        from elit_serve.importing.sit import Split

        if destination is not None:
            raise InvalidInput(
                "destination", str(destination), "left out: a folder of diffusers becomes a model itself"
            )
        refuse_given(context, OF_A_FILE, "left out: a folder of diffusers has its own, and stays as it is")
        if window is None:
            refuse_given(context, ("head", "tail"), "--window beside it, which puts ELIT inside the folder's model")
        written = import_folder(
            file.resolve(),
            sizes=() if sizes is None else sizes.split(","),
            max_tokens=max_tokens,
            steps=steps,
            scale=guidance_scale,
            split=None if window is None else Split(head=head, tail=tail, window=_window(window)),
            source=source,
            license_text=license_text,
            replace_ours=replace,
        )
        typer.echo(f"{file}: {', '.join(written.weights.files)}")
        return
    if file.exists():
        refuse_given(context, OF_A_FOLDER, "left out: it is of a folder of diffusers, and this is a file")
    if destination is None or source is None or license_text is None:
        raise InvalidInput("destination, --source, --license", None, "all three beside a file of weights")
    from elit_serve.engine.checkpoint import weight_dtype
    from elit_serve.importing.command import import_model
    from elit_serve.importing.sit import Split

    config = import_model(
        file,
        destination,
        source=source,
        license_text=license_text,
        split=Split(head=head, tail=tail, num_heads=heads, window=None if window is None else _window(window)),
        levels=None if levels is None else integers("--levels", levels),
        classes=classes,
        autoencoder=autoencoder,
        preview_autoencoder=preview_autoencoder,
        dtype=weight_dtype(dtype),
        replace=replace,
        max_shard_bytes=max_shard_mb << 20,
    )
    typer.echo(f"{destination}: {', '.join(config.weights.files)}")


def _window(text: str) -> tuple[int, int]:
    sides = integers("--window", text)
    if len(sides) != 2:
        raise InvalidInput("--window", text, "rows and columns, as 4,4")
    return sides[0], sides[1]
