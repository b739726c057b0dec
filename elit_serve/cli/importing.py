"""`elit-serve import`: a published checkpoint becomes a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elit_serve.cli.options import integers
from elit_serve.errors import InvalidInput


def import_(
    file: Annotated[Path, typer.Argument(help="A .pt file of ELIT-SiT or SiT weights.")],
    destination: Annotated[Path, typer.Argument(help="The model directory to write, as models/NAME.")],
    source: Annotated[str, typer.Option(help="Where the weights come from; kept in the model.")],
    license_text: Annotated[str, typer.Option("--license", help="Their licence; kept in the model.")],
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
    head: Annotated[int | None, typer.Option(min=0, help="Blocks before Read. Default: what the file says.")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="Blocks after Write. Default: half as many.")] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads. Default: those of DiT's sizes S, B, L and XL.")
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="Rows and columns of a group, as 4,4. Default: it is square.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the weights of an existing model.")] = False,
    max_shard_mb: Annotated[int, typer.Option(min=1, help="Largest weight file, and most weights in memory.")] = 4096,
) -> None:
    """Write a published ELIT-SiT or SiT checkpoint as a model to serve.

    Its averaged weights are taken. Files that hold code are refused: nothing in them is run.
    """
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
