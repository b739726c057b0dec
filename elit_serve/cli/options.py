"""Options that several commands share, and lists of numbers as options hold them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console

from elit_serve.errors import InvalidInput

ModelArgument = Annotated[
    str | None, typer.Argument(help="A model directory, or a bundled model by name. Default: the bundled garden64.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16. Default: bfloat16 on a GPU, float32 on a CPU.")
]
QuantizeOption = Annotated[
    str | None, typer.Option(help="fp8: large matrix products in float8, on GPUs that have it. Default: none are.")
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(envvar="ELIT_SERVE_API_KEY", help="For a server with keys. As a variable, it stays out of `ps`."),
]
SizeOption = Annotated[
    str | None, typer.Option(help="Of the pictures, as 640x384, one that the model has. Default: its first.")
]
RecipeArgument = Annotated[str, typer.Argument(help="A recipe: a TOML file, or a bundled one by name, as garden64.")]
ChangesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value of the recipe, as training.steps=100; may be repeated."
    ),
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads for torch. Default: torch's own choice.")]


PIPED_COLUMNS = 400


def open_console(*, stderr: bool = False) -> Console:
    """For people. Where nobody's terminal says how wide it is, no figure of a table is cut off."""
    console = Console(stderr=stderr)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=stderr, width=PIPED_COLUMNS)


def refuse_given(context: typer.Context, options: Iterable[str], allowed: str) -> None:
    """Raises `InvalidInput` for the first of these options that was given, since it would be ignored."""
    for name in options:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            value = context.params[name]
            raise InvalidInput(name.replace("_", "-"), value if isinstance(value, int | float) else str(value), allowed)


def integers(field: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidInput(field, text, "whole numbers with commas between them, as 1,2,4") from None


def numbers(field: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidInput(field, text, "numbers with commas between them, as 0.7,1") from None


def replica_range(text: str) -> tuple[int, int]:
    """The fewest and the most replicas.

    >>> replica_range("4"), replica_range("2-8")
    ((4, 4), (2, 8))
    """
    fewest, _, most = text.partition("-")
    try:
        found = int(fewest), int(most or fewest)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise InvalidInput("replicas", text, "a number of at least 1, or two as 2-8")
    return found
