"""`elit-serve encode`: a data set of photographs becomes latents, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from elit_serve.cli.options import DeviceOption, ThreadsOption
from elit_serve.plans.size import Size


def encode(
    data: Annotated[Path, typer.Argument(help="A folder or an uncompressed tar of class/name.jpg.")],
    out: Annotated[Path, typer.Argument(help="The folder of latents to write, or to go on with.")],
    autoencoder: Annotated[Path, typer.Option(help="A folder in diffusers' format.")],
    size: Annotated[str, typer.Option(help="Width and height of the pictures, as 256x256.")],
    mirrored: Annotated[
        bool, typer.Option(help="Encode each picture a second time, mirrored, for recipes that mirror half of them.")
    ] = True,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Of a data set with val/ or test/, that part instead of train/.")
    ] = False,
    captions: Annotated[
        bool, typer.Option("--captions", help="Photographs have captions instead of classes: name.txt beside name.jpg.")
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option(help="A model whose text encoder reads the captions: they are stored encoded, too."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16, in which latents are kept.")] = "float16",
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Pictures on the device at a time.")] = 32,
    per_shard: Annotated[int, typer.Option(min=1, max=1 << 20, help="Photographs in a file.")] = 4096,
    max_corrupt: Annotated[
        float, typer.Option(min=0, max=1, help="The share of damaged pictures above which it stops.")
    ] = 0.01,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Encode a data set of photographs as latents to train on.

    Training then reads these: elit-serve train RECIPE --data OUT --autoencoder DIR. The same command goes on where one
    was interrupted.
    """
    import torch

    from elit_serve.engine.checkpoint import weight_dtype
    from elit_serve.engine.pipeline import choose_device
    from elit_serve.trainer.encode import EncodeOptions, encode_data

    if threads is not None:
        torch.set_num_threads(threads)
    width, height = Size.read(size, field="--size")
    options = EncodeOptions(
        height=height,
        width=width,
        mirrored=mirrored,
        dtype=weight_dtype(dtype),
        batch=batch,
        per_shard=per_shard,
        max_corrupt=max_corrupt,
        part="held out" if held_out else "training",
        captioned=captions,
    )
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("encoding")
        index = encode_data(
            data,
            out,
            autoencoder,
            options,
            device=choose_device(device),
            text_model=text,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for name in index.damaged:
        typer.echo(f"skipped a damaged picture: {name}", err=True)
    names = "captions" if captions else "classes"
    typer.echo(f"{out}: {sum(shard.count for shard in index.shards):,} latents of {len(index.classes):,} {names}")
