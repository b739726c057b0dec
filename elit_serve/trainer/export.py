"""A run's averaged weights as a deployable model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from elit_serve.catalogue import resolve_model
from elit_serve.engine.autoencoders.folder import PREVIEW_NAME, check_autoencoder, copy_autoencoder, fingerprint
from elit_serve.engine.checkpoint import MAX_SHARD_BYTES, UNWRITTEN_DIGEST, write_checkpoint
from elit_serve.engine.text_encoders import copy_encoder
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.config import ModelConfig, WeightDtype, WeightsConfig, check_name
from elit_serve.files.validation import problems_in
from elit_serve.text.command_line import readable
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory, RunFacts
from elit_serve.trainer.sources import check_folder_given


def export(
    run_path: Path,
    destination: Path,
    *,
    step: int | None = None,
    dtype: WeightDtype = "bfloat16",
    autoencoder: Path | None = None,
    preview_autoencoder: Path | None = None,
    replace: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ModelConfig:
    """Writes the averaged weights of a checkpoint (the newest, or that of `step`) as a model directory.

    `autoencoder` is copied in for models that need one, and `preview_autoencoder` for their previews; so is the text
    encoder that the model has from the one that it began with, or learned from. With `replace`
    other files of an existing directory stay.
    """
    check_name(destination)
    run = RunDirectory(run_path)
    facts, snapshot = run.facts(), run.load(step)
    check_folder_given(facts.recipe, autoencoder)
    recipe = facts.recipe
    coder = check_autoencoder(autoencoder, recipe.backbone.sketch.sample_shape, recipe.autoencoder.factor)
    _check_same(autoencoder, facts)
    factor = None if coder is None else coder.factor
    text_model = None if recipe.text_model is None else resolve_model(recipe.text_model)
    check_autoencoder(preview_autoencoder, recipe.backbone.sketch.sample_shape, factor, field="--preview-autoencoder")
    try:
        config = _config(destination.name, facts, factor, snapshot.state.step, dtype)
        written = write_checkpoint(destination, config, snapshot.ema, replace=replace, max_shard_bytes=max_shard_bytes)
    except ValidationError as error:
        raise CheckpointError(destination, problems_in(error)) from None
    except OSError as error:
        raise CheckpointError(destination, [f"it cannot be written: {error}"]) from None
    copy_autoencoder(autoencoder, destination)
    if recipe.text is not None and text_model is not None:
        copy_encoder(recipe.text.encoder, text_model, destination)
    copy_autoencoder(preview_autoencoder, destination, PREVIEW_NAME)
    return written


def _check_same(autoencoder: Path | None, facts: RunFacts) -> None:
    """Raises `InvalidInput` for another autoencoder than the run was trained behind, where that was noted."""
    known = facts.autoencoder_sha256
    if autoencoder is not None and known is not None and (given := fingerprint(autoencoder)) != known:
        raise InvalidInput(
            "--autoencoder", str(autoencoder), f"the one that was trained behind ({known[:12]}); this is {given[:12]}"
        )


def _without_paths(recipe: Recipe) -> dict[str, Any]:
    """A recipe for everybody: where the models lay that it began with and learned from is told by folders' names."""
    told = recipe.model_dump(mode="json", exclude={"provenance"})
    for table in (told["upcycle"], told["distillation"]):
        if table is not None and table["model"] is not None:
            table["model"] = readable(Path(table["model"]).name) or table["model"]
    return told


def _config(name: str, facts: RunFacts, factor: int | None, step: int, dtype: WeightDtype) -> ModelConfig:
    recipe = facts.recipe
    conditions = recipe.conditions(facts.classes)
    provenance: dict[str, Any] = {
        **recipe.provenance,
        "data": facts.data.model_dump(),
        "steps": step,
        "versions": facts.versions,
        "recipe": _without_paths(recipe),
    }
    hashes = {"upcycled": facts.upcycled, "teacher": facts.teacher}
    if models := {fact: model_hash for fact, model_hash in hashes.items() if model_hash is not None}:
        provenance["models"] = models
    fields = recipe.backbone.spec(conditions).config_fields()
    return ModelConfig(
        name=name,
        **{**fields, "shapes": {shape.name: shape.size for shape in recipe.shapes}},
        levels=recipe.levels,
        conditions=conditions,
        autoencoder=recipe.autoencoder.model_copy(update={"factor": factor}),
        sampling=recipe.sampling,
        provenance=provenance,
        weights=WeightsConfig(dtype=dtype, files={"model.safetensors": UNWRITTEN_DIGEST}),
    )
