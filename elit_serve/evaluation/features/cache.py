"""Features of finished sets of samples on disk, so that an interrupted evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, Json
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features.extractor import Described
from elit_serve.files.opening import regular


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A set of samples, described, and the seconds that it took to make them."""

    described: Described
    sampling_seconds: float


class CachedSetHeader(BaseModel):
    """The metadata of a file of features: texts, as safetensors has them.

    facts: all that the features depend on, as JSON.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    sampling_seconds: float = Field(ge=0)
    facts: Json[dict[str, Any]]

    @property
    def metadata(self) -> dict[str, str]:
        return {"sampling_seconds": repr(self.sampling_seconds), "facts": json.dumps(self.facts)}


class FeatureCache:
    """One file for each set, named by a digest of all that its features depend on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, facts: Mapping[str, object]) -> Sampled | None:
        """The set with these facts; None if there is none, or its file is damaged."""
        try:
            with safe_open(regular(self._file(facts)), framework="pt") as content:
                header = CachedSetHeader.model_validate(content.metadata())
                names = set(content.keys())
                logits = content.get_tensor("logits") if "logits" in names else None
                described = Described(features=content.get_tensor("features"), logits=logits)
                return Sampled(described=described, sampling_seconds=header.sampling_seconds)
        except (OSError, SafetensorError, ValueError):
            return None

    def write(self, facts: Mapping[str, object], sampled: Sampled) -> None:
        """All of the file or none of it."""
        tensors = {"features": sampled.described.features.contiguous()}
        if sampled.described.logits is not None:
            tensors["logits"] = sampled.described.logits.contiguous()
        told = {"sampling_seconds": sampled.sampling_seconds, "facts": json.dumps(facts)}
        header = CachedSetHeader.model_validate(told)
        try:
            self._write(tensors, header.metadata, self._file(facts))
        except (OSError, SafetensorError) as error:
            raise InvalidInput("out", str(self._folder), f"it cannot be written: {error}") from None

    def _write(self, tensors: dict[str, Tensor], metadata: dict[str, str], file: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._folder, suffix=".part")
        os.close(handle)
        staging = Path(name)
        try:
            save_file(tensors, staging, metadata=metadata)
            staging.replace(file)
        finally:
            staging.unlink(missing_ok=True)

    def _file(self, facts: Mapping[str, object]) -> Path:
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
        return self._folder / f"{digest}.safetensors"
