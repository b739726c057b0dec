"""The trained models that a run begins with and learns from, by the recipe's `[upcycle]` and `[distillation]`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from elit_serve.catalogue import resolve_model
from elit_serve.engine.autoencoders.folder import fingerprint
from elit_serve.engine.checkpoint import TORCH_DTYPES, load_checkpoint, read_spec
from elit_serve.errors import InvalidInput
from elit_serve.files.config import ConditionsConfig, ModelConfig, TextConfig
from elit_serve.nn import Backbone, BackboneSpec, build_empty, preset_conditions
from elit_serve.plans.shape import Shape
from elit_serve.trainer.loss import Teacher
from elit_serve.trainer.recipe import Recipe

SIDES = ("height", "width")  # of samples: a model may go on at another size than it was trained at


@dataclass(frozen=True, kw_only=True)
class Models:
    """weights: with which the run begins, by the names of its own; None where all are drawn, or a run goes on. taken:
    names of all that the model that it began with had too."""

    weights: Mapping[str, Tensor] | None = None
    taken: frozenset[str] = frozenset()
    teacher: Teacher | None = None


NONE = Models()


def model_facts(recipe: Recipe, conditions: ConditionsConfig, autoencoder: Path | None) -> dict[str, str | None]:
    """The hashes of both models, as `RunFacts` has them. Raises `InvalidInput` for one that does not fit."""
    upcycled = recipe.upcycle.model if recipe.upcycle else None
    named = {"upcycled": ("upcycle.model", upcycled), "teacher": ("distillation.model", recipe.teacher)}
    return {
        fact: _checked(field, model, recipe, conditions, autoencoder).model_hash if model else None
        for fact, (field, model) in named.items()
    }


def open_models(recipe: Recipe, conditions: ConditionsConfig, autoencoder: Path | None, *, is_begun: bool) -> Models:
    """What the recipe names, on the CPU. is_begun: whether the run goes on, with weights of its own.

    Raises `InvalidInput` for a model that does not fit, and `CheckpointError` for one that is damaged.
    """
    upcycle, spec = recipe.upcycle, recipe.backbone.spec(conditions)
    weights: Mapping[str, Tensor] | None = None
    taken: Mapping[str, Tensor] = {}
    if upcycle is not None:
        _checked("upcycle.model", upcycle.model, recipe, conditions, autoencoder)
        path = resolve_model(upcycle.model)
        before = build_empty(read_spec(path)[1]) if is_begun else load_checkpoint(path).model
        taken = _as_own(spec, before)
        weights = None if is_begun else taken
    teacher = _teacher(recipe, conditions, autoencoder)
    return Models(weights=weights, taken=frozenset(taken), teacher=teacher)


def _as_own(spec: BackboneSpec, before: Backbone) -> Mapping[str, Tensor]:
    """A model's weights by the names that they have in one of this spec."""
    weights = before.state_dict()
    return weights if before.spec.kind == spec.kind else build_empty(spec).from_plain(weights)


def _teacher(recipe: Recipe, conditions: ConditionsConfig, autoencoder: Path | None) -> Teacher | None:
    if recipe.distillation is None or recipe.teacher is None:
        return None
    _checked("distillation.model", recipe.teacher, recipe, conditions, autoencoder)
    options = recipe.distillation
    loaded = load_checkpoint(resolve_model(recipe.teacher), dtype=TORCH_DTYPES[options.precision])
    return Teacher(model=loaded.model, scale=options.scale)


def _checked(
    field: str, model: str, recipe: Recipe, conditions: ConditionsConfig, autoencoder: Path | None
) -> ModelConfig:
    """The configuration of a model that is named in the recipe. Raises `InvalidInput` if it is of something else."""
    path = resolve_model(model)
    config, theirs = read_spec(path)
    spec = recipe.backbone.spec(conditions)
    problems = [*_condition_problems(config, conditions), *_autoencoder_problems(path, config, recipe, autoencoder)]
    is_turned = field == "upcycle.model"
    problems += _turning_problems(recipe, spec, theirs) if is_turned else []
    problems += [] if problems else _sample_problems(recipe.shapes, theirs)
    if problems:
        raise InvalidInput(field, model, "; ".join(problems))
    return config


def _condition_problems(config: ModelConfig, ours: ConditionsConfig) -> list[str]:
    theirs = config.conditions
    if theirs.kind != ours.kind:
        return [f"a model whose pictures are of a {ours.kind}; those of this one are of a {theirs.kind}"]
    if isinstance(ours, TextConfig):
        names = [name for name in ("encoder", "dim", "max_tokens") if getattr(ours, name) != getattr(theirs, name)]
        return [f"a model of the same [text]; its {', '.join(names)} differ"] if names else []
    if theirs.names == ours.names:
        return []
    strange = sorted(set(theirs.names) ^ set(ours.names))
    named = f": {', '.join(strange[:5])} in one of them only" if strange else ", in another order"
    return [f"a model of the data's {len(ours.names)} classes; it has {len(theirs.names)}{named}"]


def _autoencoder_problems(path: Path, config: ModelConfig, recipe: Recipe, autoencoder: Path | None) -> list[str]:
    wanted, found = recipe.autoencoder.kind, config.autoencoder.kind
    if wanted != found:
        return [f"a model behind the recipe's autoencoder, {wanted}; its own is {found}"]
    own = path / config.autoencoder.folder
    if autoencoder is not None and own.is_dir() and fingerprint(own) != fingerprint(autoencoder):
        return [f"a model behind the autoencoder that is given, {autoencoder}; its own is another"]
    return []


def _sample_problems(shapes: Sequence[Shape], theirs: BackboneSpec) -> list[str]:
    """Why a model cannot go on with, or be asked about, samples of these shapes, which differ in their sides only."""
    channels, *sides = shapes[0].size
    if theirs.sample_shape[0] != channels or len(theirs.sample_shape) != 1 + len(sides):
        return [f"a model of samples of {channels} channels; its own are {theirs.sample_shape}"]
    problems = []
    for shape in shapes:
        try:
            theirs.check_size(*shape.size[1:])
        except InvalidInput as error:
            problems.append(f"a model that works at {shape.name}: {error}")
    return problems


def _turning_problems(recipe: Recipe, spec: BackboneSpec, theirs: BackboneSpec) -> list[str]:
    """Why a model cannot be turned into one of a spec."""
    if theirs.kind == spec.kind and recipe.upcycle is not None and recipe.upcycle.new_only_steps:
        return [f"a plain model, where there are upcycle.new_only_steps: nothing is new in a {spec.kind}"]
    if theirs.kind != spec.kind:
        try:
            spec = spec.plain()
        except InvalidInput as error:
            return [f"nothing, as the recipe's backbone is: {error}"]
    if theirs.kind != spec.kind:
        return [f"a {spec.kind}; it is a {theirs.kind}"]
    decided = preset_conditions(spec.kind)  # by the data or by [text]
    return _differences(spec, theirs, leaving_out=(*SIDES, *decided))


def _differences(ours: Any, theirs: Any, *, within: str = "", leaving_out: Collection[str] = ()) -> list[str]:
    """Of two specs of one class, by the names that a recipe has for them."""
    problems = []
    for name in (each.name for each in fields(ours) if each.name not in leaving_out):
        our, their = getattr(ours, name), getattr(theirs, name)
        if is_dataclass(our) and type(our) is type(their):
            problems += _differences(our, their, within=f"{within}{name}.")
        elif our != their:
            problems.append(f"one whose {within}{name} is {our}; it is {their}")
    return problems
