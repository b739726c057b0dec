"""The command line as a shell sees it: output, exit codes, and one line for every error."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.table import Table
from typer.testing import CliRunner

from elit_serve.cli import app
from elit_serve.cli.options import open_console
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.report.sheets import shown_levels
from elit_serve.pictures import read_facts
from elit_serve.plans.guidance import Guidance


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "elit_serve.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_version_is_printed() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout[0].isdigit()


@pytest.mark.parametrize(
    "command",
    sorted(str(command.name or command.callback.__name__).replace("_", "-") for command in app.registered_commands),
)
def test_every_command_explains_itself(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0, shown.exception
    assert f"{command} [OPTIONS]" in shown.output
    assert "--help" in shown.output


def test_describe_gives_parameters_and_flops_of_a_preset_as_json() -> None:
    described = json.loads(run("describe", "elit-dit-xl/2", "--resolution", "512", "--batch", "384", "--json").stdout)
    assert described["params"] == pytest.approx(698e6, rel=0.01)
    assert described["tflops_iteration"]["multi_budget"]["prefix"] == pytest.approx(793.4, rel=0.005)
    assert described["tflops_iteration"]["multi_budget"]["all_latents"] == pytest.approx(803.0, rel=0.005)
    assert [level["level"] for level in described["levels"]] == list(range(1, 65))
    assert all(set(level["gflops_forward"]) == {"prefix", "all_latents", "reads_all"} for level in described["levels"])


def test_describe_reads_a_model_directory(tiny_model_dir: Path) -> None:
    described = json.loads(run("describe", tiny_model_dir, "--json").stdout)
    assert described["name"] == "tiny"
    assert described["latents_per_group"] == 4
    table = run("describe", tiny_model_dir)
    assert "tiny" in table.stdout


def test_generate_writes_a_picture_that_says_how_it_was_made(tiny_model_dir: Path, tmp_path: Path) -> None:
    picture = tmp_path / "tulip.png"
    done = run("generate", tiny_model_dir, "--label", "tulip", "--budget", "0.5", "--seed", "7", "-o", picture)
    assert done.returncode == 0, done.stderr
    facts = read_facts(picture.read_bytes())
    assert facts is not None
    assert (facts["label"], facts["seed"], facts["levels"]) == ("tulip", 7, [2, 2, 2, 2])


def test_the_same_command_gives_the_same_bytes(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name in ("first.png", "second.png"):
        assert run("generate", tiny_model_dir, "--label", "rose", "-o", tmp_path / name).returncode == 0
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_a_server_is_asked_with_the_same_options(tiny_server_url: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    options = ["--label", "tulip", "--budget", "0.5", "--seed", "7", "--steps", "3", "--scale", "3"]
    asked = run("generate", "--server", tiny_server_url, *options, "-o", tmp_path / "there.png")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip() == str(tmp_path / "there.png")
    assert re.fullmatch(r"budget 0.5, 3 steps, \d+ ms, \d+ ms of the device\n", asked.stderr)
    assert run("generate", tiny_model_dir, *options, "-o", tmp_path / "here.png").returncode == 0
    there, here = (read_facts((tmp_path / name).read_bytes()) for name in ("there.png", "here.png"))
    assert there is not None
    assert here is not None
    shared = there.keys() & here.keys()
    assert {"label", "seed", "levels", "guidance", "steps"} <= shared
    assert {name: there[name] for name in shared} == {name: here[name] for name in shared}


def test_a_server_is_held_to_a_target(tiny_server_url: str, tmp_path: Path) -> None:
    ask = ["generate", "--server", tiny_server_url, "--label", "rose", "-o", tmp_path / "rose.webp", "--latency-ms"]
    kept = run(*ask, "60000")
    assert kept.returncode == 0, kept.stderr
    assert kept.stderr.endswith(", target met\n")
    refused = run(*ask, "0.01")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "infeasible" in refused.stderr
    assert run(*ask, "0.01", "--best-effort").stderr.endswith(", target missed\n")
    with Image.open(tmp_path / "rose.webp") as picture:
        assert picture.format == "WEBP"


def test_a_key_comes_from_the_environment(start_http: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = start_http(lambda _path, _body: (401, {}, b""))
    monkeypatch.setenv("ELIT_SERVE_API_KEY", "not\nfit for HTTP")
    refused = run("generate", "--server", url, "--label", "rose", "-o", tmp_path / "a.png")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: api_key: ")


def test_grid_has_a_row_for_every_level_and_a_column_for_every_label(tiny_model_dir: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "grid.png"
    done = run("generate", tiny_model_dir, "--grid", "--label", "rose", "--label", "tulip", "-o", sheet)
    assert done.returncode == 0, done.stderr
    with Image.open(sheet) as image:
        width, height = image.size
    cell = 128
    assert 2 * cell < width < 3 * cell
    assert 4 * cell < height < 5 * cell


def test_a_grid_has_five_levels_or_those_that_are_asked_for(tmp_path: Path) -> None:
    def rows(*options: str) -> int:
        sheet = tmp_path / "grid.png"
        done = run("generate", "garden64", "--grid", "--label", "tulip", "--steps", "1", *options, "-o", sheet)
        assert done.returncode == 0, done.stderr
        with Image.open(sheet) as image:
            assert image.width > 128 + 60  # the labels
            return image.height // 128

    assert rows() == 5
    assert rows("--levels", "1,16") == 2


@pytest.mark.parametrize(
    ("levels", "shown"),
    [
        (range(1, 17), [1, 2, 4, 8, 16]),
        ((1, 2, 4), [1, 2, 4]),
        (range(1, 65), [1, 3, 8, 23, 64]),
        ((4, 16, 17, 18, 19, 20, 64), [4, 16, 17, 20, 64]),
    ],
)
def test_five_levels_are_spread_over_all(levels: Sequence[int], shown: list[int]) -> None:
    assert shown_levels(Guidance(), levels) == shown


def test_autoguidance_is_shown_at_levels_that_it_can_use() -> None:
    assert shown_levels(Guidance(method="ag", scale=2.0, weak_level=4), range(1, 17)) == [5, 7, 9, 12, 16]


@pytest.mark.parametrize("command", [["generate", "--label", "rose", "-o", "a.png", "--server"], ["bench"], ["soak"]])
def test_a_server_that_is_not_there_is_told_in_the_system_s_words(command: list[str], tmp_path: Path) -> None:
    """By each of the libraries that ask servers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # a port that nobody else gets
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    done = run(*command, url, cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: {url}/\S*: Connection refused\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "out is missing; a folder"),
        (True, "out: true is not allowed; a folder"),
        (b"abc", "out: 'abc' is not allowed; a folder"),
        (Path("a/b"), "out: 'a/b' is not allowed; a folder"),
        ((1, None, [False]), "out: [1, nothing, [false]] is not allowed; a folder"),
        ({"scale": None}, "out: {'scale': nothing} is not allowed; a folder"),
        pytest.param(10**9000, "out: a number of about 9000 digits is not allowed; a folder", id="a long number"),
        ("x" * 200, f"out: 'x{'x' * 77}… is not allowed; a folder"),
    ],
)
def test_values_are_written_as_people_write_them(value: object, said: str) -> None:
    assert str(InvalidInput("out", value, "a folder")) == said


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate", "MODEL", "--label", "tulp", "-o", "a.png"], ["tulp", "tulip"]),
        (["generate", "MODEL", "--label", "tulip", "--budget", "2", "-o", "a.png"], ["budget", "2"]),
        (["generate", "MODEL", "--label", "tulip", "-o", "a.gif"], ["a.gif", ".png"]),
        (["generate", "MODEL", "--label", "tulip", "-o", "missing/a.png"], ["missing/a.png"]),
        (["generate", "MODEL", "--label", "rose", "--label", "tulip", "-o", "a.png"], ["label", "--grid"]),
        (["generate", "MODEL", "--label", "tulip", "--levels", "1,2", "-o", "a.png"], ["levels", "--grid"]),
        (["generate", "MODEL", "--grid", "--label", "tulip", "--levels", "1,9", "-o", "a.png"], ["levels", "9", "1-4"]),
        (["profile", "--random-weights", "dit-b/2"], ["out is missing", "name a file"]),
        (["train", "no-such-recipe", "--data", "d", "--out", "r"], ["recipe", "no-such-recipe", "garden64"]),
        (["train", "garden64", "--data", "no-photos", "--out", "r"], ["no-photos does not exist"]),
        (["generate", "no-such-model", "--label", "tulip", "-o", "a.png"], ["no-such-model"]),
        (["generate", "MODEL", "--label", "tulip", "--device", "tpu", "-o", "a.png"], ["device", "tpu"]),
        (["generate", "MODEL", "--label", "tulip", "--dtype", "int8", "-o", "a.png"], ["dtype", "int8", "bfloat16"]),
        (["generate", "MODEL", "--label", "tulip", "--guidance", "magic", "-o", "a.png"], ["magic", "ccfg"]),
        (["generate", "MODEL", "--label", "tulip", "--latency-ms", "300", "-o", "a.png"], ["latency_ms", "--server"]),
        (["generate", "MODEL", "--server", "http://a", "--label", "tulip", "-o", "a.png"], ["model", "--server"]),
        (["generate", "--grid", "--server", "http://a", "--label", "tulip", "-o", "a.png"], ["grid", "--server"]),
        (["generate", "--server", "nowhere", "--label", "tulip", "-o", "a.png"], ["url", "nowhere"]),
        (["generate", "--server", "http://a", "--label", "tulip", "-o", "a.gif"], ["a.gif", ".png"]),
        (["describe", "elit-dit-xxl/2"], ["elit-dit-xxl/2", "elit-dit-xl/2"]),
        (["describe", "elit-dit-xl/2", "--resolution", "500"], ["resolution", "500"]),
        (["describe", "elit-dit-xl/2", "--resolution", "0"], ["resolution", "0"]),
        (["describe", "MODEL", "--resolution", "64"], ["resolution", "64"]),
        (["serve", "no-such-model"], ["no-such-model"]),
        (["serve", "MODEL", "--port", "99999"], ["port", "99999"]),
    ],
)
def test_an_error_is_one_line_that_names_the_value(
    arguments: list[str], named: list[str], tiny_model_dir: Path, tmp_path: Path
) -> None:
    done = run(*(str(tiny_model_dir) if part == "MODEL" else part for part in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in named:
        assert part in done.stderr
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("bench http://a --rate 5 --load 2", "load: 2.0 .*--rate"),
        ("bench http://a --warm-up 3", "warm-up: 3 .*--closed-loop"),
        ("bench http://a --closed-loop 2 --trace poisson", "trace: 'poisson' .*--closed-loop"),
        ("bench http://a --no-target --slo-scale 9", "slo-scale: '9' .*--no-target"),
        ("bench http://a --bias 0", "bias: 0.0 .*--compare"),
        ("simulate --cost a.json --router random", "router: 'random' .*--replicas"),
        ("simulate --cost a.json --replicas 2 --load-s 3", "load-s: 3.0 .*--replicas MIN-MAX"),
        ("simulate --cost a.json --replicas 2-3 --ingress 2", "ingress: 2 .*--replicas of one number"),
        ("simulate --cost a.json --replicas 2 --policy fixed", "policy: 'fixed' .*elastic"),
        ("simulate --cost a.json --replicas 2 --plot a.png", "plot: 'a.png' .*MIN-MAX"),
        ("import FOLDER --dtype float32", "dtype: 'float32' .*a folder of diffusers"),
        ("import FOLDER --head 2", "head: 2 .*--window"),
        ("import FOLDER/config.json b --source x --license y --steps 4", "steps: 4 .*this is a file"),
        ("profile FOLDER --resolution 64", "resolution: 64 .*sizes"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(arguments: str, named: str, tiny_model_dir: Path) -> None:
    refused = CliRunner().invoke(app, arguments.replace("FOLDER", str(tiny_model_dir)).split()).exception
    assert isinstance(refused, InvalidInput)
    assert re.match(named, str(refused)), refused


@pytest.mark.parametrize(("columns", "is_whole"), [(None, True), ("40", False)])
def test_where_output_is_piped_a_table_is_as_wide_as_what_it_says(
    columns: str | None, is_whole: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    table = Table("plan", "on the whole grid")
    table.add_row("8 steps at 4, unguided, and steps that are longer", "2 of 1, 1 of 4, 1 of 2")
    open_console().print(table)
    assert ("8 steps at 4, unguided, and steps that are longer" in capsys.readouterr().out) == is_whole


def test_a_damaged_model_is_one_line(tiny_model_dir: Path) -> None:
    weights = tiny_model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = run("generate", tiny_model_dir, "--label", "tulip", "-o", tiny_model_dir / "a.png")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "model.safetensors" in done.stderr


def test_output_that_has_no_room_is_one_line() -> None:
    command = [sys.executable, "-m", "elit_serve.cli", "describe", "dit-b/2"]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "error: what the command prints or writes cannot be written: No space left on device\n"


def test_attention_that_cannot_be_written_is_one_line(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "maps.safetensors").mkdir()
    done = run("generate", tiny_model_dir, "--label", "tulip", "--attention", tmp_path, "-o", tmp_path / "a.png")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "attention" in done.stderr
    assert "Is a directory" in done.stderr
