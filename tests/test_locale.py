"""A locale that has no letter of `Löwenzahn` stops nothing: files are UTF-8 whatever it is, and names are printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

RECIPE = """
name = "meadow"
[backbone]
channels = 3
height = 16
width = 16
patch = 4
dim = 32
depth = 3
num_heads = 2
interface = { window = [2, 2], head = 1, core = 1, tail = 1 }
[data]
holdout = 0.25
max_corrupt = 0.1
[provenance]
place = "Löwenzahnwiese"
[training]
steps = 1
batch = 4
precision = "float32"
compile = false
[sampling]
steps = 2
"""
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

CLASSES = ("Gänseblümchen", "Löwenzahn")
ASCII_ONLY = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
COMMANDS = """
import sys
from elit_serve.cli import main
for line in sys.stdin.buffer.read().split(b"\\n"):
    sys.argv = ["elit-serve", *(word.decode("ascii", "surrogateescape") for word in line.split(b"|"))]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


@pytest.fixture
def meadow(tmp_path: Path) -> Path:
    """A folder with photographs, a recipe that begins with a byte order mark, and a feature extractor."""
    draw = np.random.default_rng(0)
    for part, name in product(("photographs", "reference", "held-out"), CLASSES):
        folder = tmp_path / part / name
        folder.mkdir(parents=True)
        for index in range(20):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    (tmp_path / "photographs" / "Löwenzahn" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8-sig")
    features = torch.jit.script(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()))
    torch.jit.save(features, tmp_path / "features.ts")
    return tmp_path


def test_a_class_is_trained_exported_measured_and_drawn(meadow: Path) -> None:
    commands = [
        "train|recipe.toml|--data|photographs|--out|run|--device|cpu|--threads|1",
        "export|run|model",
        "generate|model|--label|Löwenzahn|-o|one.png|--device|cpu",
        "evaluate|model|--reference|reference|--held-out|held-out|--features|torchscript:features.ts"
        "|--levels|1|--steps|1|--seeds|2|--show|Löwenzahn|--out|report|--device|cpu",
        "describe|model",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMMANDS],
        cwd=meadow,
        input="\n".join(commands).encode(),
        capture_output=True,
        timeout=300,
        env={**os.environ, **ASCII_ONLY},
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"L\\xf6wenzahn/broken.png" in done.stdout
    run, model = (
        json.loads((meadow / name).read_text(encoding="utf-8")) for name in ("run/run.json", "model/config.json")
    )
    assert run["classes"] == model["conditions"]["names"] == list(CLASSES)
    assert "Löwenzahnwiese" in (meadow / "model" / "config.json").read_text(encoding="utf-8")
    with Image.open(meadow / "one.png") as picture:
        assert json.loads(picture.info["elit-serve"])["label"] == "Löwenzahn"


def test_what_the_locale_cannot_say_is_printed_all_the_same(meadow: Path) -> None:
    (meadow / "keys.toml").write_text('["Löwenzahn"]\n', encoding="utf-8")
    for arguments, said in (
        (["describe", "Löwenzahn"], b"L\\udcc3\\udcb6wenzahn"),
        (
            ["serve", "--keys-file", "keys.toml", "--port", "0"],
            b"error: name in keys.toml: 'L\\xf6wenzahn' is not allowed",
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "elit_serve.cli", *arguments],
            cwd=meadow,
            capture_output=True,
            timeout=60,
            env={**os.environ, **ASCII_ONLY},
        )
        assert done.returncode == 2
        assert said in done.stderr
