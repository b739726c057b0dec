"""A run's averaged weights as a deployable model directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from elit_serve.engine.checkpoint import MAX_SHARD_BYTES, write_checkpoint
from elit_serve.engine.config import BackboneConfig, ModelConfig, WeightDtype, WeightsConfig
from elit_serve.errors import InvalidInput
from elit_serve.trainer.run import RunDirectory

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

    `autoencoder` is copied in for models that need one. Other files of an existing directory stay when `replace` is set.
    """
    run = RunDirectory(run_path)
    facts, snapshot = run.facts(), run.load(step)
    recipe = facts.recipe
    if (recipe.autoencoder.kind == "diffusers") != (autoencoder is not None):
        raise InvalidInput("--autoencoder", autoencoder, f"this recipe's autoencoder is {recipe.autoencoder.kind}")
    provenance = {
        **recipe.provenance,
        "data": facts.data,
        "steps": snapshot.state.step,
        "versions": facts.versions,
        "recipe": recipe.model_dump(mode="json", exclude={"provenance"}),
    }
    config = ModelConfig(
        name=destination.name,
        backbone=BackboneConfig.of(recipe.backbone.spec(len(facts.classes))),
        levels=recipe.levels,
        classes=facts.classes,
        autoencoder=recipe.autoencoder,
        sampling=recipe.sampling,
        provenance=provenance,
        weights=WeightsConfig(dtype=dtype, files={"model.safetensors": UNWRITTEN_DIGEST}),
    )
    written = write_checkpoint(destination, config, snapshot.ema, replace=replace, max_shard_bytes=max_shard_bytes)
    if autoencoder is not None:
        shutil.copytree(autoencoder, destination / "autoencoder", dirs_exist_ok=True)
    return written
