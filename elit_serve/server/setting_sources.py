"""Where settings come from: flags, before ELIT_SERVE_ variables, before a TOML file. What is wrong is named there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from elit_serve.errors import InvalidInput
from elit_serve.files.opening import read_toml
from elit_serve.server.settings import Settings
from elit_serve.text.spelling import Names

PREFIX = "ELIT_SERVE_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
SECRETS = frozenset({"api_key", "database"})  # never shown, not even when they are refused


@dataclass(frozen=True, kw_only=True)
class Source:
    """Some values by setting, and what the user calls each of these settings there."""

    values: Mapping[str, object]
    names: Mapping[str, str]


def read_settings(
    flags: Mapping[str, object], environment: Mapping[str, str] | None = None, config: str | None = None
) -> Settings:
    """The settings; flags that are None are not given. Raises `InvalidInput` for the first that is wrong.

    config: a TOML file; by default the one that `ELIT_SERVE_CONFIG` names, if it does.
    """
    variables = from_environment(environment or {})
    path = config or (environment or {}).get(CONFIG_VARIABLE)
    sources = [from_file(Path(path))] if path else []
    sources += [variables, from_flags(flags)]
    values = {setting: value for source in sources for setting, value in source.values.items()}
    names = {setting: source.names[setting] for source in sources for setting in source.values}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        setting = str(first["loc"][0])
        value = "***" if setting in SECRETS else first["input"]
        raise InvalidInput(names[setting], value, _reason(first["msg"])) from None


def from_flags(flags: Mapping[str, object]) -> Source:
    """What was given on the command line."""
    given = {setting: value for setting, value in flags.items() if value is not None and value != []}
    _refuse_unknown(given, Settings.model_fields, "settings")
    return Source(values=given, names={setting: setting for setting in given})


def from_environment(environment: Mapping[str, str]) -> Source:
    """One variable per setting, as ELIT_SERVE_PORT; an empty one counts as absent."""
    variables = {f"{PREFIX}{setting.upper()}": setting for setting in Settings.model_fields}
    given = {name: text for name, text in environment.items() if name.startswith(PREFIX) and name != CONFIG_VARIABLE}
    _refuse_unknown(given, [*variables, CONFIG_VARIABLE], "variables")
    set_ones = {variables[name]: text for name, text in given.items() if text}
    return Source(values=set_ones, names={variables[name]: name for name in given})


def from_file(path: Path) -> Source:
    """A TOML file with settings by name, as `port = 8000`."""
    content = read_named_toml(path, "config")
    _refuse_unknown(content, Settings.model_fields, f"settings in {path}")
    return Source(values=content, names={setting: f"{setting} in {path}" for setting in content})


def read_named_toml(path: Path, setting: str) -> dict[str, object]:
    """The content of a file that a setting names; raises `InvalidInput` with this setting."""
    try:
        return read_toml(path)
    except OSError as error:
        raise InvalidInput(setting, str(path), f"a TOML file ({error.strerror})") from None
    except ValueError as error:
        raise InvalidInput(setting, str(path), f"a TOML file ({error})") from None


def _refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Names the first one that is not known, without its value, which may be a secret."""
    known = list(known)
    for name in given:
        if name not in known:
            nearest = Names(known).like(name)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise InvalidInput("setting", name, f"{hint}{what} are {', '.join(known)}")


def _reason(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
