"""A run's averaged weights as a deployable model directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import ValidationError

from elit_serve.engine.checkpoint import MAX_SHARD_BYTES, write_checkpoint
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.config import ClassesConfig, ModelConfig, WeightDtype, WeightsConfig
from elit_serve.trainer.run import RunDirectory, RunFacts
from elit_serve.trainer.sources import check_folder_given

UNWRITTEN_DIGEST = "0" * 64  # replaced by the real ones as the files are written


def export(
    run_path: Path,
    destination: Path,
    *,
    step: int | None = None,
    dtype: WeightDtype = "bfloat16",
    autoencoder: Path | None = None,
    replace: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ModelConfig:
    """Writes the averaged weights of a checkpoint (the newest, or that of `step`) as a model directory.

    `autoencoder` is copied in for models that need one. With `replace` other files of an existing directory stay.
    """
    run = RunDirectory(run_path)
    facts, snapshot = run.facts(), run.load(step)
    check_folder_given(facts.recipe, autoencoder)
    if autoencoder is not None and not (autoencoder / "config.json").is_file():
        raise InvalidInput("--autoencoder", str(autoencoder), "a folder in diffusers' format; it has no config.json")
    try:
        config = _config(destination.name, facts, snapshot.state.step, dtype)
        written = write_checkpoint(destination, config, snapshot.ema, replace=replace, max_shard_bytes=max_shard_bytes)
        if autoencoder is not None:
            _copy_autoencoder(autoencoder, destination / "autoencoder")
    except ValidationError as error:
        raise InvalidInput("destination", str(destination), error.errors()[0]["msg"]) from None
    except OSError as error:
        raise CheckpointError(destination, [f"it cannot be written: {error}"]) from None
    return written


def _config(name: str, facts: RunFacts, step: int, dtype: WeightDtype) -> ModelConfig:
    recipe, conditions = facts.recipe, ClassesConfig(names=facts.classes)
    provenance = {
        **recipe.provenance,
        "data": facts.data.model_dump(),
        "steps": step,
        "versions": facts.versions,
        "recipe": recipe.model_dump(mode="json", exclude={"provenance"}),
    }
    return ModelConfig(
        name=name,
        **recipe.backbone.spec(conditions).config_fields(),
        levels=recipe.levels,
        conditions=conditions,
        autoencoder=recipe.autoencoder,
        sampling=recipe.sampling,
        provenance=provenance,
        weights=WeightsConfig(dtype=dtype, files={"model.safetensors": UNWRITTEN_DIGEST}),
    )


def _copy_autoencoder(source: Path, destination: Path) -> None:
    """Configuration and safetensors only: a folder in diffusers' format may hold pickled weights as well."""
    destination.mkdir(exist_ok=True)
    for file in (*source.glob("*.json"), *source.glob("*.safetensors")):
        shutil.copyfile(file, destination / file.name)
