"""Prompts from a command line to a picture, here and on a server, and on a device that exists on paper."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from text_models import EXAMPLES, save_text_model
from typer.testing import CliRunner, Result

from elit_serve.cli import app
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.files.records import RequestEnding, read_records
from elit_serve.nn.backbones.elit_mmdit import KIND as MMDIT
from elit_serve.pictures import read_facts
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.server.run import load_and_measure
from elit_serve.server.settings import Settings
from tests.serving import running_models
from tests.simulating import DEVICE, latency

COST = CostTable(
    steps_ms={
        (StepKind("16x16", level, weak), batch): 1.0 * level * batch
        for level in MMDIT.tiny.levels
        for weak in (None, 1, level)
        for batch in (1, 2)
    },
    overhead_ms=1000,
)
ASKED = ["--prompt", "a rose", "--negative-prompt", "thorns", "--budget", "1", "--seed", "7"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MM-DiT with latents."""
    return save_text_model(tmp_path_factory.mktemp("models") / "painter", spec=MMDIT.tiny)


def generate(*options: str | Path) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, options)])


def test_generate_takes_a_prompt_here_and_of_a_server(model: Path, start_server: Any, tmp_path: Path) -> None:
    server = start_server(Pipeline.load(model, device="cpu"), cost=COST)
    here, there = tmp_path / "here.png", tmp_path / "there.png"
    for options in ([model, "-o", here], ["--server", server.url, "-o", there]):
        done = generate(*options, *ASKED)
        assert done.exit_code == 0, done.output
    pixels = [Image.open(file).convert("RGB").tobytes() for file in (here, there)]
    assert max(abs(one - other) for one, other in zip(*pixels, strict=True)) <= 1
    facts = read_facts(there.read_bytes())
    assert facts is not None
    assert (facts["prompt"], facts["negative_prompt"], facts["seed"]) == ("a rose", "thorns", 7)


def test_a_pipeline_takes_a_prompt(model: Path) -> None:
    pipeline = Pipeline.load(model, device="cpu")
    facts = pipeline.generate(prompt="a rose", negative_prompt="thorns", steps=1).facts
    assert (facts["prompt"], facts["negative_prompt"]) == ("a rose", "thorns")
    with pytest.raises(InvalidInput, match="prompt is missing"):
        pipeline.generate()
    with pytest.raises(InvalidInput, match="leave one of them out"):
        pipeline.generate("rose", prompt="rose")


def test_a_grid_has_a_column_for_each_prompt(model: Path, tmp_path: Path) -> None:
    prompts = ["--prompt", "a rose", "--prompt", "a tulip"]
    done = generate(model, "--grid", *prompts, "--steps", "1", "-o", tmp_path / "sheet.png")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--label", "rose"], "knows no classes"),
        (["--label", "rose", "--prompt", "rose"], "leave one of them out"),
        (["--label", "rose", "--negative-prompt", "thorns"], "--prompt beside it"),
        ([], "--prompt TEXT"),
        (["--prompt", "a", "--prompt", "b"], "--grid"),
        (["--prompt", "a", "--negative-prompt", "b", "--guidance", "none"], "these pictures are not guided"),
        (["--prompt", "a", "--negative-prompt", "b", "--scale", "1"], "these pictures are not guided"),
        (["--prompt", "a", "--negative-prompt", "b", "--guidance", "ag"], "autoguidance, which keeps the prompt"),
    ],
)
def test_what_cannot_be_asked_is_refused(model: Path, options: list[str], words: str) -> None:
    refused = generate(model, "-o", "a.png", *options).exception
    assert isinstance(refused, InvalidInput)
    assert words in str(refused)


def test_a_bench_asks_for_prompts_those_of_a_file_or_those_that_the_model_shows(
    model: Path, start_server: Any, tmp_path: Path
) -> None:
    server = start_server(Pipeline.load(model, device="cpu"), cost=COST)
    file, records = tmp_path / "prompts.txt", tmp_path / "records.jsonl"
    file.write_text("a rose\ntwo lemons\n", encoding="utf-8")
    options = ["bench", server.url, "--requests", "6", "--rate", "100", "--no-target", "--steps", "1"]
    for said, prompts in ((["--prompts", str(file)], {"a rose", "two lemons"}), ([], set(EXAMPLES))):
        done = CliRunner().invoke(app, [*options, *said, "--records", str(records), "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.output)["config"]["num_subjects"] == len(prompts)
        found = read_records(records)
        assert [record.ending for record in found] == [RequestEnding.DONE] * 6
        assert {record.prompt for record in found} == prompts
        assert {record.label for record in found} == {None}


def test_a_simulated_device_takes_the_time_of_prompts(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "painter"))
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    (folder / "model.safetensors").unlink()
    told = latency().model_copy(update={"text_ms": {1: 500.0}})
    (folder / "cost.json").write_text(told.model_dump_json(), encoding="utf-8")
    settings = Settings(model=str(folder), simulate=str(folder / "cost.json"), response_ms=2000)
    with running_models([load_and_measure(settings)], settings) as server:
        answer = server.generate({"prompt": EXAMPLES[0], "negative_prompt": "thorns", "seed": 1}).json()
    assert (answer["simulated"], answer["prompt"]) == (DEVICE, EXAMPLES[0])
    assert answer["compute_ms"] >= 1000


def test_a_preset_with_random_weights_has_words_of_a_package() -> None:
    pipeline = Pipeline.random("elit-mmdit-s/8", 256, device="cpu")
    rose, tulip = (pipeline.conditions.prompted(words) for words in ("a rose", "a tulip"))
    one, other = pipeline.sample([rose, tulip], [1, 1], pipeline.plan(budget=0.1, steps=1))
    assert not one.equal(other)
