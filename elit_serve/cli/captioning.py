"""`elit-serve caption`: photographs of classes get captions, to train a model of prompts on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def caption(
    data: Annotated[Path, typer.Argument(help="A folder or an uncompressed tar of class/name.jpg.")],
    out: Annotated[Path, typer.Argument(help="A new tar: the photographs as they are, a text beside each.")],
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Of a data set with val/ or test/, that part instead of train/.")
    ] = False,
) -> None:
    """Caption photographs by class, number, colour and framing, from their pixels.

    A small grammar, as "several yellow lemons" or "a close-up of a red tulip". The same photograph always gets the same
    caption, which is sometimes wrong.
    """
    from elit_serve.trainer.captioning import write_captioned

    count, damaged = write_captioned(data, out, part="held out" if held_out else "training")
    for name in damaged:
        typer.echo(f"left out a damaged picture: {name}", err=True)
    typer.echo(f"{out}: {count:,} photographs with captions")
