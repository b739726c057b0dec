"""`elit-serve profile-training`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elit_serve.cli.options import ChangesOption, DeviceOption, RecipeArgument, ThreadsOption, open_console
from elit_serve.text.command_line import command_line


def profile_training(
    recipe: RecipeArgument,
    changes: ChangesOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time.")] = 100,
    warm_up: Annotated[
        int, typer.Option(min=1, help="Steps before them, after each level that may be drawn has run once.")
    ] = 20,
    out: Annotated[Path | None, typer.Option(help="Write all figures there, as JSON.")] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure how fast a recipe trains on this device.

    On random pictures, or random latents where the recipe has an autoencoder: it needs no photographs, writes no run,
    and reading and encoding are not in the figures.
    """
    import torch

    from elit_serve.engine.pipeline import choose_device
    from elit_serve.trainer.recipe import find_recipe, read_recipe
    from elit_serve.trainer.speed import speed_table, speed_to_file

    if threads is not None:
        torch.set_num_threads(threads)
    speed = speed_to_file(
        read_recipe(find_recipe(recipe), changes or ()),
        out,
        changes=changes or (),
        steps=steps,
        warm_up=warm_up,
        device=choose_device(device),
        command=command_line(),
        console=open_console(stderr=True),
    )
    open_console().print(speed_table(speed))
