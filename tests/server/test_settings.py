"""Settings from flags, variables and a file: who wins, and what is said of what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from elit_serve.errors import InvalidInput
from elit_serve.server.setting_sources import read_settings
from elit_serve.server.settings import Settings


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "serve.toml"
    path.write_text('port = 1\nmax_queue = 2\nmax_images = 3\ncors_origin = ["https://a.example", "http://b:8080"]\n')
    return str(path)


def test_nothing_said_is_the_defaults() -> None:
    assert read_settings({}, {"PATH": "/bin", "ELIT_SERVE_PORT": ""}) == Settings()


def test_flags_win_over_variables_and_these_over_the_file(config: str) -> None:
    variables = {"ELIT_SERVE_CONFIG": config, "ELIT_SERVE_PORT": "10", "ELIT_SERVE_MAX_QUEUE": "20"}
    settings = read_settings({"port": "100", "max_queue": None}, variables)
    assert (settings.port, settings.max_queue, settings.max_images, settings.threads) == (100, 20, 3, None)
    assert settings.cors_origin == ("https://a.example", "http://b:8080")


def test_an_editor_may_have_put_a_mark_in_front_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("port = 7\n", encoding="utf-8-sig")
    assert read_settings({}, config=str(file)).port == 7


def test_the_file_of_the_flag_wins_over_that_of_the_variable(config: str) -> None:
    assert read_settings({}, {"ELIT_SERVE_CONFIG": "/nowhere.toml"}, config).port == 1


def test_lists_have_commas_in_variables_and_are_repeated_as_flags() -> None:
    origins = ("https://a.example", "https://b.example")
    assert read_settings({}, {"ELIT_SERVE_CORS_ORIGIN": ",".join(origins)}).cors_origin == origins
    assert read_settings({"cors_origin": list(origins)}).cors_origin == origins


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("port", "70000"),
        ("port", "http"),
        ("dtype", "int8"),
        ("max_queue", "0"),
        ("log_level", "loud"),
        ("policy", "magic"),
        ("response_ms", "nan"),
        ("cors_origin", "https://a.example/"),
        ("otlp_endpoint", "localhost:4318"),
    ],
)
def test_a_bad_value_is_named_as_it_was_spelled(setting: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(f'{setting} = "{text}"\n')
    variable = f"ELIT_SERVE_{setting.upper()}"
    spellings = {setting: ({setting: text}, {}), variable: ({}, {variable: text})}
    spellings[f"{setting} in {file}"] = ({}, {"ELIT_SERVE_CONFIG": str(file)})
    for name, (flags, variables) in spellings.items():
        with pytest.raises(InvalidInput) as refusal:
            read_settings(flags, variables)
        assert (refusal.value.field, refusal.value.value) in ((name, text), (name, (text,)))


def test_an_unknown_key_is_named_with_its_neighbour_and_without_its_value(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('api_keys = ["sk-secret-secret"]\n')
    for flags, variables, name, nearest in (
        ({"prot": 80}, {}, "'prot'", "port"),
        ({}, {"ELIT_SERVE_API_KEYS": "sk-secret-secret"}, "'ELIT_SERVE_API_KEYS'", "ELIT_SERVE_API_KEY"),
        ({}, {"ELIT_SERVE_CONFIG": str(file)}, "'api_keys'", "api_key"),
    ):
        with pytest.raises(InvalidInput) as refusal:
            read_settings(flags, variables)
        said = str(refusal.value)
        assert name in said
        assert f"did you mean {nearest}? " in said
        assert "sk-secret" not in said


def test_a_refused_key_is_not_shown_and_settings_hide_it() -> None:
    with pytest.raises(InvalidInput) as refusal:
        read_settings({}, {"ELIT_SERVE_API_KEY": "good-and-long,b@d key"})
    assert "b@d" not in str(refusal.value)
    assert "good" not in repr(read_settings({"api_key": ["good-and-long"]}))


@pytest.mark.parametrize("content", [None, "port = ", b"\xff"])
def test_a_file_that_cannot_be_read_is_named(content: str | bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInput) as refusal:
        read_settings({}, {"ELIT_SERVE_CONFIG": str(file)})
    assert (refusal.value.field, refusal.value.value) == ("config", str(file))


def test_the_command_reads_all_three_and_fails_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("port = 99999\n")
    serve = [sys.executable, "-m", "elit_serve.cli", "serve"]

    def start(*flags: str, **variables: str) -> str:
        done = subprocess.run([*serve, *flags], capture_output=True, text=True, env={**os.environ, **variables})
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert f"error: port in {file}: 99999" in start("--config", str(file))
    assert "error: ELIT_SERVE_PORT: '88888'" in start("--config", str(file), ELIT_SERVE_PORT="88888")
    assert "error: port: '77777'" in start("--config", str(file), "--port", "77777", ELIT_SERVE_PORT="88888")


def test_help_has_every_setting_with_its_default() -> None:
    command = [sys.executable, "-m", "elit_serve.cli", "serve", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}).stdout
    for setting in set(Settings.model_fields) - {"model"}:
        assert f"--{setting.replace('_', '-')} " in shown
    assert "Default: 8000." in shown
    assert "elastic|fixed" in shown


def test_a_connection_is_kept_for_longer_than_proxies_keep_it() -> None:
    """Nginx, and load balancers of clouds, reuse one for 60 s: it must not be closed as they send the next request."""
    assert Settings().idle_seconds > 60
