"""Training from captions: what a model is told is what an encoder makes of them; and what prompts mean to it then."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from autoencoders import save_kl
from PIL import Image
from pydantic import ValidationError
from rich.console import Console
from typer.testing import CliRunner

from elit_serve.cli import app
from elit_serve.engine.checkpoint import load_checkpoint
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.text_encoders.cache import CachedEncoder
from elit_serve.errors import InvalidInput, RunError
from elit_serve.trainer.encode import EncodeOptions, encode_data
from elit_serve.trainer.export import export
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory
from elit_serve.trainer.speed import speed_to_file

CPU = torch.device("cpu")
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220)}
GROUNDS = {"black": 0, "white": 255}
BACKBONE = {"kind": "elit-mmdit", "channels": 3, "height": 16, "width": 16, "patch": 4, "dim": 64, "depth": 3}
BACKBONE |= {"num_heads": 2, "interface": {"window": [2, 2], "head": 1, "core": 1, "tail": 1}}
TEXT = {"encoder": {"kind": "wordllama"}, "dim": 256, "max_tokens": 8, "examples": ["a red square on black"]}

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., RunDirectory]
Losses = Callable[[RunDirectory], dict[int, float]]


def square(colour: str, ground: str, number: int) -> Image.Image:
    """In one of several places."""
    pixels = np.full((16, 16, 3), GROUNDS[ground], np.uint8)
    row, column = 1 + number % 3, 1 + number // 3 % 3
    pixels[row : row + 12, column : column + 12] = COLOURS[colour]
    return Image.fromarray(pixels)


def write_squares(folder: Path, colours: Sequence[str], each: int = 6) -> Path:
    folder.mkdir()
    for number, (colour, ground, which) in enumerate(product(colours, GROUNDS, range(each))):
        square(colour, ground, which).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"a {colour} square on {ground}", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six captions with six pictures each; no test may change them."""
    return write_squares(tmp_path_factory.mktemp("captioned") / "squares", list(COLOURS))


@pytest.fixture
def make_text_recipe(make_recipe: MakeRecipe) -> MakeRecipe:
    """The tiny recipe for texts; a keyword per section changes some of its keys, and None leaves a key or all out."""

    def make(**sections: Any) -> Recipe:
        table = make_recipe(data={"flip": False, "shift": 0}).model_dump(mode="json", exclude_none=True)
        table |= {"backbone": BACKBONE, "text": TEXT}
        table["every"] |= {"validation": 1000, "samples": 1000, "checkpoint": 1000}  # and at the end
        for name, values in sections.items():
            kept = {} if values is None else {**table.get(name, {}), **values}
            table[name] = {key: value for key, value in kept.items() if value is not None} or None
        return Recipe.model_validate(table)

    return make


def test_a_model_learns_what_prompts_mean_and_its_directory_is_told_them(
    squares: Path, make_text_recipe: MakeRecipe, train_here: Train, read_losses: Losses, tmp_path: Path
) -> None:
    said = StringIO()
    recipe = make_text_recipe(training={"steps": 100, "batch": 16}, optimizer={"learning_rate": 5e-3})
    run = train_here(recipe, data=squares, output=said)
    assert "27 photographs of 6 captions to train on, read into memory now; 9 to validate with" in said.getvalue()
    losses = list(read_losses(run).values())
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    assert (run.path / "samples" / "step-00000100.png").is_file()

    config = export(run.path, tmp_path / "painter", dtype="float32")
    assert config.conditions == recipe.text
    pipeline = Pipeline.load(tmp_path / "painter", device="cpu")
    prompts = [f"a {colour} square on black" for colour in COLOURS]
    plan = pipeline.plan(steps=8)
    made = pipeline.run([pipeline.conditions.prompted(prompt) for prompt in prompts], [7, 7, 7], plan)
    middles = [np.asarray(picture.image)[6:10, 6:10].mean(axis=(0, 1)) for picture in made]
    assert [int(middle.argmax()) for middle in middles] == [0, 1, 2], middles  # red, green and blue

    out = tmp_path / "blue.png"
    asked = ["--prompt", prompts[2], "--seed", "7", "--steps", "8", "--device", "cpu", "--output", str(out)]
    asked_for = CliRunner().invoke(app, ["generate", str(tmp_path / "painter"), *asked])
    assert asked_for.exit_code == 0, asked_for.output
    assert np.array_equal(np.asarray(Image.open(out).convert("RGB")), np.asarray(made[2].image))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is asked for, as often as it is, whether the encoder remembers it or not."""
    given: list[str] = []
    encode = CachedEncoder.encode

    def noted(encoder: CachedEncoder, prompts: Sequence[str]) -> torch.Tensor:
        given.extend(prompts)
        return encode(encoder, prompts)

    monkeypatch.setattr(CachedEncoder, "encode", noted)
    return given


def test_captions_beyond_the_memory_are_encoded_as_they_come_and_a_run_goes_on_with_them(
    squares: Path, make_text_recipe: MakeRecipe, train_here: Train, read_losses: Losses, encoded: list[str]
) -> None:
    shown = {"examples": ["another"]}
    held = train_here(make_text_recipe(training={"steps": 4}, text=shown), "held", data=squares)
    captions = [f"a {colour} square on {ground}" for colour, ground in product(COLOURS, GROUNDS)]
    assert sorted(text for text in encoded if text not in shown["examples"]) == sorted(captions)  # once, for both parts
    encoded.clear()
    streamed = {"memory_gb": 0, "workers": 0}
    train_here(make_text_recipe(training={"steps": 2}, data=streamed), "streamed", data=squares)
    recipe = make_text_recipe(training={"steps": 4}, data=streamed, text=shown)
    run = train_here(recipe, "streamed", data=squares, resume=True)
    assert read_losses(run) == read_losses(held)
    assert len(encoded) >= 4 * recipe.training.batch

    with pytest.raises(RunError, match=r"text\.max_tokens is 7 here and 8 in the run"):
        train_here(make_text_recipe(text={"max_tokens": 7}), "streamed", data=squares, resume=True)


def test_it_is_validated_on_captions_that_it_has_not_seen(
    squares: Path, make_text_recipe: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    others = write_squares(tmp_path / "others", ["blue", "red"], each=1)
    (others / "000.txt").write_text("something else altogether", encoding="utf-8")
    said = StringIO()
    recipe = make_text_recipe(training={"steps": 1})
    run = train_here(recipe, data=squares, validation=others, output=said)
    assert "36 photographs of 6 captions to train on, read into memory now; 4 to validate with" in said.getvalue()
    facts = run.facts()
    assert (facts.classes, facts.data.classes) == ((), 6)


def test_stored_latents_have_captions(
    squares: Path, make_text_recipe: MakeRecipe, train_here: Train, read_losses: Losses, tmp_path: Path
) -> None:
    folder, latents = save_kl(tmp_path / "vae"), tmp_path / "latents"
    backbone = {"channels": 4, "height": 8, "width": 8, "patch": 2}
    recipe = make_text_recipe(backbone=backbone, autoencoder={"kind": "diffusers"}, training={"steps": 2})
    options = {"height": 32, "width": 32}
    encode_data(squares, latents, folder, EncodeOptions(**options, captioned=True), device=CPU)
    assert json.loads((latents / "index.json").read_text())["classes"][0] == "a blue square on black"
    run = train_here(recipe, data=latents, autoencoder=folder)
    assert len(read_losses(run)) == 2

    classes = tmp_path / "classes"
    for colour in COLOURS:
        (classes / colour).mkdir(parents=True)
        square(colour, "white", 0).save(classes / colour / "0.png")
    encode_data(classes, tmp_path / "other", folder, EncodeOptions(**options), device=CPU)
    for option, paths in (
        ("--data", {"data": tmp_path / "other"}),
        ("--val", {"data": latents, "validation": tmp_path / "other"}),
    ):
        with pytest.raises(InvalidInput, match=f"{option}: .*; latents with captions: elit-serve encode --captions"):
            train_here(recipe, "other", **paths, autoencoder=folder)


def test_a_plain_model_of_prompts_becomes_an_elastic_one_of_the_same_prompts(
    squares: Path, make_text_recipe: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    plain = {"kind": "mmdit", "interface": None}
    once = {"training": {"steps": 1}, "sampling": {"steps": 1, "guidance": {"method": "none"}}}
    export(train_here(make_text_recipe(backbone=plain, **once), data=squares).path, tmp_path / "plain")
    upcycled = {"upcycle": {"model": str(tmp_path / "plain")}}
    backbone = {"interface": {**BACKBONE["interface"], "start": "tokens"}}
    run = train_here(make_text_recipe(backbone=backbone, **upcycled, **once), "elastic", data=squares)
    assert run.facts().upcycled == load_checkpoint(tmp_path / "plain").config.model_hash

    other = make_text_recipe(backbone=backbone, text={"max_tokens": 7}, **upcycled, **once)
    with pytest.raises(InvalidInput, match=r"upcycle\.model: .*; a model of the same \[text\]; its max_tokens differ"):
        train_here(other, "other", data=squares)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"text": None}, r"kind elit-mmdit is told texts, so that \[text\] must name an encoder"),
        ({"text": {"encoder": {"kind": "oracle"}}}, r"text\.encoder\.kind: 'oracle' is not allowed"),
        ({"text": {"encoder": {"kind": "transformers"}}}, "one that comes with a package, as wordllama"),
        ({"text": {"examples": []}}, "at least 1 item"),
        ({"backbone": {"max_tokens": 8}}, r"\[text\] decides it; leave it out"),
        ({"backbone": {"kind": "elit-dit"}}, r"kind elit-dit is told classes, so that there can be no \[text\]"),
    ],
)
def test_what_is_wrong_with_a_recipe_for_texts_is_told(
    make_text_recipe: MakeRecipe, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        make_text_recipe(**changes)


def test_its_speed_is_measured_without_any_caption(make_text_recipe: MakeRecipe) -> None:
    console = Console(file=StringIO())
    speed = speed_to_file(
        make_text_recipe(), None, steps=5, warm_up=1, device=CPU, command="elit-serve", console=console
    )
    assert speed.images_per_second > 0
