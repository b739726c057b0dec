"""Recipes: what is shipped is valid and is the paper's, and what is wrong is listed whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from pydantic import ValidationError

from elit_serve.errors import InvalidInput, RecipeError
from elit_serve.files.config import ClassesConfig
from elit_serve.nn import count_parameters, preset
from elit_serve.nn.flops import flops_iteration, flops_multi_budget
from elit_serve.trainer.recipe import Recipe, read_recipe
from elit_serve.trainer.run import RunDirectory
from elit_serve.trainer.speed import step_flops

RECIPES = Path(__file__).parents[2] / "models" / "recipes"


def problems_of(text: str, tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "recipe.toml")
    assert "\n" not in str(caught.value)
    return caught.value.problems


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_named_as_its_file(path: Path) -> None:
    assert read_recipe(path).name == path.stem


@pytest.mark.parametrize("kind", ["uvit", "hdit"])
@pytest.mark.parametrize("resolution", [256, 512])
def test_recipes_of_other_backbones_differ_from_that_of_elit_dit_in_the_backbone_alone(
    resolution: int, kind: str
) -> None:
    recipe = read_recipe(RECIPES / f"imagenet{resolution}-elit-{kind}-xl2.toml")
    of_dit = read_recipe(RECIPES / f"imagenet{resolution}-elit-dit-xl2.toml")
    spec = recipe.backbone.spec(ClassesConfig(names=tuple(map(str, range(1000)))))
    assert spec == preset(f"elit-{kind}-xl/2", resolution)
    assert recipe.model_copy(update={"name": of_dit.name, "backbone": of_dit.backbone}) == of_dit


@pytest.mark.parametrize(
    ("resolution", "latents", "full", "multi_budget", "paper"),
    [(256, 16, 188.1, 187.5, 189.7), (512, 64, 830.8, 793.4, 803.0)],
)
def test_the_imagenet_recipes_are_the_papers(
    resolution: int, latents: int, full: float, multi_budget: float, paper: float
) -> None:
    recipe = read_recipe(RECIPES / f"imagenet{resolution}-elit-dit-xl2.toml")
    spec = recipe.backbone.spec(ClassesConfig(names=tuple(map(str, range(1000)))))
    assert spec == preset("elit-dit-xl/2", resolution)
    assert count_parameters(spec) == pytest.approx(698e6, rel=0.01)
    assert recipe.levels == tuple(range(1, latents + 1))

    at_256 = flops_iteration(spec.flops(latents), 256).prefix / 1e12
    iteration = flops_iteration(flops_multi_budget(spec), recipe.training.batch)
    assert at_256 == pytest.approx(full, rel=0.005)
    assert iteration.prefix / 1e12 == pytest.approx(multi_budget, rel=0.005)
    assert iteration.all_latents / 1e12 == pytest.approx(paper, rel=0.005)

    training, optimizer = recipe.training, recipe.optimizer
    assert (training.steps, training.batch, training.class_dropout) == (500_000, 384, 0.1)
    assert (training.time_mean, training.time_std, training.precision) == (0.0, 1.0, "bfloat16")
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.decay_steps) == (1e-4, 10_000, 0)
    assert (optimizer.weight_decay, optimizer.clip, optimizer.ema) == (0.0, 1.0, 0.9999)
    assert (recipe.data.flip, recipe.data.shift) == (True, 0)
    assert (recipe.budget.drawing, recipe.autoencoder.kind, recipe.sampling.steps) == ("uniform", "diffusers", 40)
    assert training.batch % (8 * training.accumulation) == 0


def test_garden64_is_upcycled_in_a_third_of_the_compute_of_the_plain_model_that_it_begins_with() -> None:
    plain, upcycled = (read_recipe(RECIPES / f"garden64-{name}.toml") for name in ("dense", "upcycled"))
    assert upcycled.upcycle is not None
    assert Path(upcycled.upcycle.model).name == plain.name
    before, after = plain.backbone.sketch, upcycled.backbone.sketch
    assert after.plain() == before
    of_plain = step_flops(before, before.levels, plain.training.batch)
    of_student = fmean(step_flops(after, (after.levels[-1], level), 256) for level in upcycled.levels)
    of_teacher = before.flops(1).executed * upcycled.training.batch
    spent = upcycled.training.steps * (of_student + of_teacher)
    assert 0.95 < spent / (plain.training.steps * of_plain / 3) <= 1


def test_a_recipe_survives_being_written_and_read(
    make_recipe: Callable[..., Recipe], write_recipe: Callable[[Recipe, Path], Path], tmp_path: Path
) -> None:
    recipe = make_recipe(provenance={"attribution": ["an author, CC BY 2.0"]})
    assert read_recipe(write_recipe(recipe, tmp_path / "recipe.toml")) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_everything_that_is_wrong_is_listed(
    make_recipe: Callable[..., Recipe], write_recipe: Callable[[Recipe, Path], Path], tmp_path: Path
) -> None:
    text = write_recipe(make_recipe(), tmp_path / "good.toml").read_text()
    for good, bad in {
        "num_heads = 2": "num_heads = 3",
        "steps = 60": "steps = 0",
        "shift = 2": "shift = -1\nsift = 2",
        'precision = "float32"': 'precision = "float8"',
        "learning_rate = 0.002": "learning_rate = inf",
    }.items():
        assert good in text
        text = text.replace(good, bad)
    problems = problems_of(text, tmp_path)
    assert [problem.split(": ")[0] for problem in problems] == [
        "backbone",
        "data.shift",
        "data.sift",
        "optimizer.learning_rate",
        "training.steps",
        "training.precision",
    ]
    assert problems[0].startswith("backbone: num_heads: 3 is not allowed; 2D positions need")
    assert problems[2] == "data.sift: Extra inputs are not permitted"


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"budget": {"max_level": 5}}, "budget.max_level 5 exceeds 4 latents per group"),
        ({"budget": {"min_level": 3, "max_level": 2}}, "budget.min_level 3 exceeds the largest level, 2"),
        ({"training": {"accumulation": 3}}, "training.batch must be a multiple of training.accumulation"),
        ({"backbone": {"channels": 4}}, "a model of 4 needs an autoencoder"),
        ({"backbone": {"interface": None}, "budget": {"drawing": "random-drop"}}, "a dit has no latents to drop"),
        ({"budget": {"distilled": True}}, "budget.distilled needs batches of two levels"),
        ({"budget": {"full_share": 0.5}, "training": {"batch": 6, "accumulation": 2}}, "times 2 for two levels"),
        ({"budget": {"full_share": 1.0}}, "budget.full_share"),
        ({"budget": {"elastic_from": -0.1}}, "budget.elastic_from"),
        ({"budget": {"min_level": 2}}, "weak_level 1 is not a level that the recipe trains"),
        ({"sampling": {"guidance": {"method": "ag", "weak_level": 4}}}, "must lie below the largest level for ag"),
        ({"backbone": {"height": 20}}, "height: 20 is not allowed; it must be a multiple of 8"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    sections: dict[str, Any], problem: str, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(ValidationError) as caught:
        make_recipe(**sections)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("data", "shift", [-1, 5000, 10**30]),
        ("data", "holdout", [0, 1, -0.5]),
        ("data", "max_corrupt", [-0.1, 1.1]),
        ("data", "memory_gb", [-1, 1e300]),
        ("data", "workers", [-1, 10**6]),
        ("budget", "min_level", [0, 10**30]),
        ("budget", "max_level", [0, 10**30]),
        ("optimizer", "learning_rate", [0, -1e-3, 1e-320, 1e300]),
        ("optimizer", "warmup_steps", [-1, 10**30]),
        ("optimizer", "decay_steps", [-1, 10**30]),
        ("optimizer", "weight_decay", [-1, 1e300]),
        ("optimizer", "betas", [[1.0, 0.9], [0.9, 1.0], [-0.1, 0.9], [0.9], [0.9, 0.9, 0.9]]),
        ("optimizer", "clip", [0, -1, 1e-320, 1e300]),
        ("optimizer", "ema", [-0.1, 1, 2]),
        ("training", "steps", [0, -1, 10**30]),
        ("training", "batch", [0, -1, 10**30]),
        ("training", "accumulation", [0, 3, 10**30]),
        ("training", "class_dropout", [-0.1, 1.1]),
        ("training", "time_mean", [-1e300, 1e300]),
        ("training", "time_std", [0, -1, 1e-320, 1e300]),
        ("training", "seed", [-1, 2**63, 10**30]),
        ("every", "log", [0, -1, 10**30]),
        ("every", "keep", [0, -1, 10**30]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_number_that_no_run_can_have_is_refused_by_its_key(
    section: str,
    key: str,
    values: list[object],
    make_recipe: Callable[..., Recipe],
    write_recipe: Callable[[Recipe, Path], Path],
    tmp_path: Path,
) -> None:
    good = write_recipe(make_recipe(), tmp_path / "good.toml")
    not_finite = [] if isinstance(values[0], list) else ["inf", "-inf", "nan"]
    for value in [*map(json.dumps, values), *not_finite]:
        with pytest.raises(RecipeError) as caught:
            read_recipe(good, [f"{section}.{key} = {value}"])
        assert f"{section}.{key}" in str(caught.value), value
        assert "\n" not in str(caught.value)


def test_a_batch_far_beyond_the_data_is_refused(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory]
) -> None:
    with pytest.raises(InvalidInput, match=r"training\.batch: 8000 is not allowed; at most 288, 16 times the 18 photo"):
        train_here(make_recipe(training={"batch": 8000}))


def test_several_misfits_are_told_together(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(ValidationError, match=r"budget\.max_level 9 exceeds.*; training\.batch must be a multiple"):
        make_recipe(budget={"max_level": 9}, training={"accumulation": 3})


def test_files_that_are_no_recipe_are_one_clear_error(tmp_path: Path) -> None:
    assert problems_of("name = ", tmp_path)[0].startswith("not TOML: ")
    assert problems_of("", tmp_path) == (
        "name: Field required",
        "backbone: Field required",
        "training: Field required",
    )
    assert problems_of("#" * (1 << 20) + "\n", tmp_path) == ("it cannot be read: it is larger than 1048576 bytes",)
    with pytest.raises(RecipeError, match="it cannot be read: No such file"):
        read_recipe(tmp_path / "missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not TOML"):
        read_recipe(tmp_path / "binary.toml")


def test_values_can_be_changed_without_another_file() -> None:
    path = RECIPES / "garden64.toml"
    changes = ["training.steps=7", "backbone.interface.head=2", "backbone.interface.core=9", "name='mine'"]
    recipe, changed = read_recipe(path), read_recipe(path, changes)
    assert (changed.training.steps, changed.name) == (7, "mine")
    assert changed.backbone.interface is not None
    assert (changed.backbone.interface["head"], changed.backbone.interface["tail"]) == (2, 1)
    assert changed.training.batch == recipe.training.batch


def test_a_change_can_be_wrong_too() -> None:
    path = RECIPES / "garden64.toml"
    with pytest.raises(RecipeError, match=r"training\.stepz"):
        read_recipe(path, ["training.stepz=7"])
    with pytest.raises(InvalidInput, match="a key and a TOML value"):
        read_recipe(path, ["training.steps"])


@pytest.mark.parametrize("interface", [None, {"window": [2, 2], "head": 1, "core": 1, "tail": 1}])
def test_a_backbone_means_the_same_whatever_is_left_out(
    make_recipe: Callable[..., Recipe], interface: dict[str, Any] | None
) -> None:
    """As in the run.json of earlier versions, which had no kinds and spelled out every default."""
    short = make_recipe(backbone={"interface": interface})
    long = make_recipe(backbone={"interface": interface, "positions": "rope", "padding": 0, "zeros_between": 0})
    named = make_recipe(backbone={"interface": interface} if interface is None else {"kind": "elit-dit"})
    assert short == long == named
    assert short.backbone.kind == ("dit" if interface is None else "elit-dit")
