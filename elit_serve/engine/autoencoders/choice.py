"""Which autoencoders a model works behind: those of its directory, or those that a user names instead."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from elit_serve.engine.autoencoders.folder import PREVIEW_NAME, check_autoencoder, misfits
from elit_serve.engine.autoencoders.table import kind_of
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.config import AutoencoderConfig, ModelConfig
from elit_serve.files.opening import MAX_JSON_BYTES, read_file

GIVEN = AutoencoderConfig(kind="diffusers")  # what a folder that a user names is


@dataclass(frozen=True, kw_only=True)
class AutoencoderChoice:
    """config: of the one for pictures, and folder: where its files lie. preview: the folder of one for previews, of the
    kind `GIVEN`."""

    config: AutoencoderConfig
    folder: Path
    preview: Path | None

    @property
    def cost_hash(self) -> str:
        """Twelve hex digits of what decoding costs depends on: the kind and its configuration, whatever its weights."""
        config = self.folder / "config.json"
        content = read_file(config, MAX_JSON_BYTES) if kind_of(self.config).has_files else b""
        return hashlib.sha256(self.config.kind.encode() + content).hexdigest()[:12]


def choose_autoencoders(
    config: ModelConfig, model: Path, given: Path | None = None, preview: Path | None = None
) -> AutoencoderChoice:
    """For the model of `config` in the directory `model`; `given` and `preview` come before what lies there.

    Reads no weight. Raises `InvalidInput` for a folder that is given and does not fit, `CheckpointError` for one of
    the model's own.
    """
    chosen = _for_pictures(config, model, given)
    facts = kind_of(chosen.config).facts
    factor = facts(chosen.folder).factor if facts else None
    shape = config.default_shape.size
    if preview is not None:
        if facts is None:
            raise InvalidInput("preview_autoencoder", str(preview), "the model has no autoencoder for its pictures")
        check_autoencoder(preview, shape, factor, field="preview_autoencoder")
    elif facts is not None and (own := model / PREVIEW_NAME).is_dir():
        preview = own
        _check_own(model, PREVIEW_NAME, misfits(facts(own), shape, factor))
    return AutoencoderChoice(config=chosen.config, folder=chosen.folder, preview=preview)


def _for_pictures(config: ModelConfig, model: Path, given: Path | None) -> AutoencoderChoice:
    """Without one for previews."""
    own, shape = config.autoencoder, config.default_shape.size
    facts = kind_of(own).facts
    if given is None:
        if facts is not None:
            _check_own(model, own.folder, misfits(facts(model / own.folder), shape, own.factor))
        return AutoencoderChoice(config=own, folder=model / own.folder, preview=None)
    if kind_of(own).channels is not None:
        raise InvalidInput("autoencoder", str(given), f"this model needs none: its samples are {own.kind}")
    check_autoencoder(given, shape, own.factor, field="autoencoder")
    return AutoencoderChoice(config=GIVEN, folder=given, preview=None)


def _check_own(model: Path, name: str, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(model, [f"{name}/: {problem}" for problem in problems])
