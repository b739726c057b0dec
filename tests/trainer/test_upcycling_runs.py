"""Runs that begin with a trained plain model and learn from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from elit_serve.engine.autoencoders.pixels import Pixels
from elit_serve.engine.checkpoint import UNWRITTEN_DIGEST, load_checkpoint, write_checkpoint
from elit_serve.errors import InvalidInput, RecipeError, RunError
from elit_serve.files.config import ClassesConfig, ModelConfig, WeightsConfig
from elit_serve.nn import Backbone, DiTSpec, build
from elit_serve.trainer.distributed import World
from elit_serve.trainer.export import export
from elit_serve.trainer.loop import Trainer
from elit_serve.trainer.loss import rectified_flow_loss
from elit_serve.trainer.recipe import Recipe, read_recipe
from elit_serve.trainer.run import RunDirectory
from elit_serve.trainer.sources import open_source
from elit_serve.trainer.speed import speed_to_file
from elit_serve.trainer.starts import model_facts, open_models

CPU = torch.device("cpu")
CLASSES = ("daisy", "rose", "tulip")
PLAIN: dict[str, Any] = {"channels": 3, "height": 16, "width": 16, "patch": 4, "dim": 32, "depth": 3, "num_heads": 2}
ELASTIC = {"interface": {"window": [2, 2], "head": 1, "core": 1, "tail": 1, "start": "tokens"}}
SELDOM = {"log": 1, "validation": 1000, "samples": 1000, "checkpoint": 1000}

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., RunDirectory]
Log = Callable[[RunDirectory], list[dict[str, Any]]]


def write_plain(path: Path, **fields: Any) -> Path:
    """A plain DiT all of whose blocks matter, as those of a trained one do."""
    spec = DiTSpec(**PLAIN, num_classes=3, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(spec).requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    config = ModelConfig(
        name="plain",
        **spec.config_fields(),
        levels=spec.levels,
        conditions=ClassesConfig(names=CLASSES),
        weights=WeightsConfig(dtype="float32", files={"model.safetensors": UNWRITTEN_DIGEST}),
    )
    write_checkpoint(path, config, model.state_dict())
    return path


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No test may change it."""
    return write_plain(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture
def make_turned(make_recipe: MakeRecipe, plain_model: Path) -> MakeRecipe:
    """The recipe of an elastic model that begins as the plain one."""

    def make(**sections: Any) -> Recipe:
        sections = {"upcycle": {}, "backbone": {}, "every": {}, **sections}
        sections["upcycle"] = {"model": str(plain_model), **sections["upcycle"]}
        sections["backbone"] = {**ELASTIC, **sections["backbone"]}
        sections["every"] = {**SELDOM, **sections["every"]}
        return make_recipe(**sections)

    return make


def trainer_of(recipe: Recipe, photographs: Path, folder: Path) -> Trainer:
    source = open_source(recipe, Pixels(), None, photographs, None)
    models = open_models(recipe, recipe.conditions(CLASSES), None, is_begun=False)
    return Trainer(recipe, source, World(device=CPU), RunDirectory(folder), Pixels(), models)


def samples(count: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, count, 3, 16, 16, generator=generator)
    return data, noise, torch.linspace(0.05, 0.95, count), torch.arange(count) % 3


def test_before_its_first_step_the_full_level_is_the_plain_model(
    make_turned: MakeRecipe, photographs: Path, plain_model: Path, tmp_path: Path
) -> None:
    learner = trainer_of(make_turned(), photographs, tmp_path / "run").learner
    plain, given = load_checkpoint(plain_model).model, samples()
    expected = rectified_flow_loss(plain, *given, 1)
    for model in (learner.model, learner.ema.model):
        torch.testing.assert_close(rectified_flow_loss(model, *given, 4), expected, atol=1e-6, rtol=1e-5)
        assert distance(model, plain, given, 4) < 1e-9 < distance(model, plain, given, 1)


def test_first_only_that_learns_which_the_plain_model_does_not_have(
    make_turned: MakeRecipe, photographs: Path, tmp_path: Path
) -> None:
    recipe = make_turned(training={"steps": 4}, upcycle={"new_only_steps": 3})
    trainer = trainer_of(recipe, photographs, tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in trainer.learner.model.state_dict().items()}
    trainer.learner.begin(lambda _: None)
    moved = []
    for batch, _ in zip(trainer.data.batches(trainer.order, 0), range(4), strict=False):
        trainer.learner.take_step(batch.images, batch.condition)
        now = trainer.learner.model.state_dict()
        moved.append({name.partition(".")[0] for name, tensor in now.items() if not torch.equal(tensor, before[name])})
    new = {"latents", "places", "read", "write"}
    assert moved[0] <= moved[1] <= moved[2] <= new
    assert {"read", "write"} <= moved[2]
    assert {"head", "core", "tail", "patch_embed", "final"} <= moved[3]


def test_the_loss_of_a_taught_run_is_that_of_the_data_and_the_scaled_distance_to_the_teacher(
    make_turned: MakeRecipe, train_here: Train, read_log: Log
) -> None:
    recipe = make_turned(distillation={"scale": 5.0, "precision": "float32"}, training={"steps": 3})
    lines = [line for line in read_log(train_here(recipe)) if "loss" in line]
    assert len(lines) == 3
    for line in lines:
        assert line["loss"] == pytest.approx(line["rectified_flow"] + 5 * line["distillation"], rel=1e-5)
        assert line["rectified_flow"] > 0


def test_at_the_full_level_there_is_nothing_to_learn_from_the_plain_model_at_first(
    make_turned: MakeRecipe, train_here: Train, read_log: Log
) -> None:
    recipe = make_turned(
        distillation={"precision": "float32"}, budget={"drawing": "fixed"}, training={"steps": 1},
        sampling={"guidance": {"method": "none"}},
    )  # fmt: skip
    (first,) = [line for line in read_log(train_here(recipe)) if "loss" in line]
    assert first["distillation"] < 1e-9 < first["rectified_flow"]


def test_low_levels_come_closer_to_their_teacher(
    make_turned: MakeRecipe, train_here: Train, photographs: Path, plain_model: Path, tmp_path: Path
) -> None:
    recipe = make_turned(
        distillation={"precision": "float32", "scale": 1000.0},  # these weights know nothing of the pictures
        training={"steps": 60},
        optimizer={"learning_rate": 3e-3, "ema": 0.9},
    )
    fresh = trainer_of(recipe, photographs, tmp_path / "fresh")
    at_first = fresh.learner.model
    run = train_here(recipe)
    export(run.path, tmp_path / "turned", dtype="float32")
    learned, plain = load_checkpoint(tmp_path / "turned").model, load_checkpoint(plain_model).model
    (held,) = fresh.validation.values()
    _, noise, t, _ = samples(len(held.images))
    given = fresh.source.plain(held.images), noise, t, held.condition
    for level in (1, 2):
        assert distance(learned, plain, given, level) < 0.9 * distance(at_first, plain, given, level)


@torch.no_grad()
def distance(model: Backbone, plain: Backbone, given: tuple[Tensor, Tensor, Tensor, Tensor], level: int) -> float:
    data, noise, t, condition = given
    time = t.view(-1, 1, 1, 1)
    x = (1 - time) * noise + time * data
    return float((model(x, t, condition, level) - plain(x, t, condition)).square().mean())


def test_a_taught_run_that_was_interrupted_ends_as_an_unbroken_one(
    make_turned: MakeRecipe, train_here: Train, read_log: Log
) -> None:
    sections: dict[str, Any] = {"upcycle": {"new_only_steps": 3}, "distillation": {}, "every": {"log": 4}}
    whole = train_here(make_turned(**sections, training={"steps": 8}), "whole")
    sections["every"] |= {"checkpoint": 5}
    train_here(make_turned(**sections, training={"steps": 5}), "parts")
    parts = train_here(make_turned(**sections, training={"steps": 8}), "parts", resume=True)
    assert read_log(whole)[-1] == read_log(parts)[-1]
    for name, expected in whole.load().model.items():
        assert torch.equal(parts.load().model[name], expected), name


def test_a_run_goes_on_with_the_models_that_it_began_with(
    make_turned: MakeRecipe, train_here: Train, plain_model: Path, tmp_path: Path
) -> None:
    train_here(make_turned(training={"steps": 2}))
    moved = tmp_path / "elsewhere"
    moved.symlink_to(plain_model)
    train_here(make_turned(training={"steps": 3}, upcycle={"model": str(moved)}), resume=True)
    with pytest.raises(RunError, match="the teacher is another model"):
        train_here(make_turned(training={"steps": 4}, distillation={}), resume=True)


def test_a_model_tells_which_models_it_was_made_of_but_not_where_they_lay(
    make_turned: MakeRecipe, train_here: Train, plain_model: Path, tmp_path: Path
) -> None:
    run = train_here(make_turned(distillation={"model": str(plain_model)}, training={"steps": 1}))
    provenance = export(run.path, tmp_path / "turned").provenance
    told = provenance["recipe"]
    assert (told["upcycle"]["model"], told["distillation"]["model"]) == ("plain", "plain")
    model_hash = load_checkpoint(plain_model).config.model_hash
    assert provenance["models"] == {"upcycled": model_hash, "teacher": model_hash}
    assert str(plain_model.parent) not in (tmp_path / "turned" / "config.json").read_text(encoding="utf-8")


def test_a_model_goes_on_at_another_size(
    make_turned: MakeRecipe, train_here: Train, read_log: Log, tmp_path: Path
) -> None:
    """As the next stage of a training whose pictures grow; the teacher is the plain model still."""
    small = train_here(make_turned(training={"steps": 2}))
    export(small.path, tmp_path / "small", dtype="float32")
    teacher = make_turned().upcycle
    assert teacher is not None
    recipe = make_turned(
        upcycle={"model": str(tmp_path / "small")},
        distillation={"model": teacher.model},
        backbone={"height": 32, "width": 32},
        training={"steps": 1},
    )
    (first,) = [line for line in read_log(train_here(recipe, "larger")) if "loss" in line]
    assert first["distillation"] > 0


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"interface": {"window": [2, 2], "head": 1, "core": 1, "tail": 1}}, r"interface\.start: 'places'.*tokens"),
        ({"dim": 64}, "one whose dim is 64; it is 32"),
        ({"interface": {**ELASTIC["interface"], "core": 2}, "depth": 4}, "one whose depth is 4; it is 3"),
        ({"kind": "elit-uvit"}, "a uvit; it is a dit"),
    ],
)
def test_a_plain_model_that_does_not_fit_is_refused(
    backbone: dict[str, Any], message: str, make_turned: MakeRecipe, train_here: Train
) -> None:
    with pytest.raises(InvalidInput, match=rf"upcycle\.model.*{message}"):
        train_here(make_turned(backbone=backbone))


def test_an_elastic_model_whose_latents_are_others_is_refused_by_the_key_that_differs(
    make_turned: MakeRecipe, train_here: Train, tmp_path: Path
) -> None:
    small = train_here(make_turned(training={"steps": 1}))
    export(small.path, tmp_path / "small", dtype="float32")
    other = {"interface": {**ELASTIC["interface"], "head": 0, "core": 2}}
    with pytest.raises(InvalidInput, match=r"one whose interface\.head is 0; it is 1; one whose interface\.core is"):
        train_here(make_turned(upcycle={"model": str(tmp_path / "small")}, backbone=other), "other")


def test_a_model_that_has_learned_the_positions_of_one_size_is_refused_for_others(
    make_recipe: MakeRecipe, make_turned: MakeRecipe, tmp_path: Path
) -> None:
    model = str(write_plain(tmp_path / "learned", positions="learned"))
    larger = {"backbone": {**PLAIN, "kind": "dit", "positions": "learned", "height": 32, "width": 32}}
    unguided = {"sampling": {"guidance": {"method": "none"}}, "upcycle": {"model": model}}
    begun = Recipe.model_validate(make_recipe().model_dump(exclude={"backbone", "upcycle"}) | larger | unguided)
    with pytest.raises(InvalidInput, match=r"upcycle\.model: .*works at 32x32: .*positions are learned for \(16, 16\)"):
        model_facts(begun, begun.conditions(CLASSES), None)
    taught = make_turned(distillation={"model": model}, data={"sizes": ["24x16"]})
    with pytest.raises(InvalidInput, match=r"distillation\.model: .*works at 16x24: .*positions are learned"):
        model_facts(taught, taught.conditions(CLASSES), None)


def test_a_model_of_other_classes_is_refused(
    make_turned: MakeRecipe, train_here: Train, make_photographs: Callable[..., Path], tmp_path: Path
) -> None:
    others = make_photographs(tmp_path / "others", classes=("daisy", "rose", "violet"))
    with pytest.raises(InvalidInput, match=r"3 classes; it has 3: tulip, violet in one of them only"):
        train_here(make_turned(), data=others)


def test_recipes_that_contradict_themselves_are_refused(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    with pytest.raises(ValueError, match=r"distillation\.model must name a model"):
        make_recipe(distillation={})
    both = {"distillation": {"model": "garden64"}, "budget": {"distilled": True, "full_share": 0.5}}
    with pytest.raises(ValueError, match="goes without"):
        make_recipe(**both)
    (tmp_path / "r.toml").write_text("name = 'x'\nupcycle = { scale = 1 }\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"upcycle\.scale"):
        read_recipe(tmp_path / "r.toml")


def test_the_speed_of_a_taught_recipe_is_not_claimed(make_turned: MakeRecipe) -> None:
    with pytest.raises(InvalidInput, match="without a teacher"):
        speed_to_file(make_turned(distillation={}), None, steps=1, warm_up=0, device=CPU, command="", console=Console())
