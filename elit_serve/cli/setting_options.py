"""The options of `serve`, made from its settings: names, help and defaults stand there and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from elit_serve.server.settings import Settings

Command = Callable[..., None]


def takes_settings(command: Command) -> Command:
    """Gives a command that takes keyword arguments an option for every setting, and `--config`.

    Values arrive as text, to be checked with those from elsewhere; None was not given.
    """
    config = typer.Option(help="A TOML file of settings, which flags and ELIT_SERVE_ variables override.")
    options = [_parameter(name, field) for name, field in Settings.model_fields.items()]
    options.append(Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, config]))
    command.__signature__ = Signature(options)  # type: ignore[attr-defined]
    return command


def _parameter(name: str, field: FieldInfo) -> Parameter:
    text = field.description or ""
    if name == "model":
        return Parameter(
            name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, typer.Argument(help=text)]
        )
    is_list = isinstance(field.default, tuple)
    if field.default is not None and not is_list:
        text += f" Default: {field.default}."
    kind = list[str] | None if is_list else str | None
    option = typer.Option(f"--{name.replace('_', '-')}", help=text, metavar=_metavar(field.annotation))
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _metavar(annotation: Any) -> str:
    """What help shows for a value of this type."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    named = {int: "INTEGER", float: "NUMBER"}
    inner = [_metavar(part) for part in get_args(annotation)]
    return next((name for name in inner if name != "TEXT"), named.get(annotation, "TEXT"))
