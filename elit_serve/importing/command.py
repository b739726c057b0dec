"""A published checkpoint as a model directory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from elit_serve.engine.autoencoders.folder import PREVIEW_NAME, check_autoencoder, copy_autoencoder
from elit_serve.engine.checkpoint import MAX_SHARD_BYTES, UNWRITTEN_DIGEST, write_checkpoint
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.config import (
    AutoencoderConfig,
    ClassesConfig,
    ModelConfig,
    SamplingConfig,
    WeightDtype,
    WeightsConfig,
    check_name,
)
from elit_serve.files.opening import open_file
from elit_serve.files.validation import problems_in
from elit_serve.importing.classes import class_names
from elit_serve.importing.sit import Split, spec_of_file, weights_of_file
from elit_serve.importing.torch_file import TorchFile, read_torch_file
from elit_serve.nn import BackboneSpec
from elit_serve.plans.guidance import Guidance

STEPS, SCALE, WEAK_SHARE = 50, 4.0, 16  # of the authors' own comparison: CCFG with a sixteenth of the latents


def import_model(
    source_file: Path,
    destination: Path,
    *,
    source: str,
    license_text: str,
    split: Split | None = None,
    levels: Sequence[int] | None = None,
    classes: Path | None = None,
    autoencoder: Path | None = None,
    preview_autoencoder: Path | None = None,
    dtype: WeightDtype = "bfloat16",
    replace: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ModelConfig:
    """Writes the averaged weights of a `.pt` file of ELIT-SiT or SiT as a model directory.

    source and license_text go into the model's provenance; levels: None is all. Everything is checked before a tensor
    is converted. The file is mapped and one shard at a time is converted, so that at most `max_shard_bytes` of weights
    are in memory beside pages that the system can take back: 1.4 GB of an XL/2 in bfloat16, next to nothing in float32,
    which stays as it lies in the file (measured with 704 million parameters, 2026-11-30). Raises `CheckpointError` for
    the file and `InvalidInput` for the rest.
    """
    check_name(destination)
    if destination.exists() and not replace:
        raise InvalidInput("destination", str(destination), "it exists already")
    file = read_torch_file(source_file)
    spec = spec_of_file(source_file, file, split or Split())
    coder = check_autoencoder(autoencoder, spec.sample_shape)
    factor = None if coder is None else coder.factor
    check_autoencoder(preview_autoencoder, spec.sample_shape, factor, field="--preview-autoencoder")
    names = ClassesConfig(names=class_names(spec.config_fields()["backbone"]["num_classes"], classes))
    weights = weights_of_file(source_file, file, spec)
    try:
        config = ModelConfig(
            name=destination.name,
            **spec.config_fields(),
            levels=_levels(spec, levels),
            conditions=names,
            autoencoder=AutoencoderConfig(kind="none" if autoencoder is None else "diffusers", factor=factor),
            sampling=_sampling(spec, _levels(spec, levels)),
            provenance=_provenance(source_file, file, source, license_text),
            weights=WeightsConfig(dtype=dtype, files={"model.safetensors": UNWRITTEN_DIGEST}),
        )
    except ValidationError as error:
        raise CheckpointError(destination, problems_in(error)) from None
    written = write_checkpoint(destination, config, weights, replace=replace, max_shard_bytes=max_shard_bytes)
    copy_autoencoder(autoencoder, destination)
    copy_autoencoder(preview_autoencoder, destination, PREVIEW_NAME)
    return written


def _levels(spec: BackboneSpec, wanted: Sequence[int] | None) -> tuple[int, ...]:
    if wanted is None:
        return spec.levels
    for level in wanted:
        if level not in spec.levels:
            raise InvalidInput("--levels", level, f"levels of this model lie in 1..{spec.levels[-1]}")
    return tuple(sorted(set(wanted)))


def _sampling(spec: BackboneSpec, levels: Sequence[int]) -> SamplingConfig:
    if len(levels) == 1:
        return SamplingConfig(steps=STEPS, guidance=Guidance(method="cfg", scale=SCALE))
    wanted = max(1, spec.latents_per_group // WEAK_SHARE)
    weak_level = min(levels, key=lambda level: abs(level - wanted))
    return SamplingConfig(steps=STEPS, guidance=Guidance(method="ccfg", scale=SCALE, weak_level=weak_level))


def _provenance(path: Path, file: TorchFile, source: str, license_text: str) -> dict[str, Any]:
    try:
        with open_file(path) as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(path, [f"it cannot be read: {error.strerror or error}"]) from None
    return {
        "source": source,
        "license": license_text,
        "imported_from": {"file": path.name, "sha256": digest, "averaged": file.is_averaged, "steps": file.steps},
    }
