"""The extractors by name. Another one is a file here and a line in `EXTRACTORS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features.dinov2 import DinoV2Features
from elit_serve.evaluation.features.extractor import FeatureExtractor
from elit_serve.evaluation.features.inception import InceptionFeatures
from elit_serve.evaluation.features.torchscript import TorchScriptFeatures


@dataclass(frozen=True, kw_only=True)
class ExtractorKind:
    """open: from a path, or None for published weights, if there are any. is_published: whether there are."""

    open: Callable[[Path | None, torch.device], FeatureExtractor]
    is_published: bool = True

    def spellings(self, name: str) -> tuple[str, ...]:
        return (name, f"{name}:PATH") if self.is_published else (f"{name}:PATH",)


EXTRACTORS: Mapping[str, ExtractorKind] = {
    "torchscript": ExtractorKind(open=TorchScriptFeatures, is_published=False),
    "inception": ExtractorKind(open=InceptionFeatures),
    "dinov2": ExtractorKind(open=DinoV2Features),
}


def open_features(text: str, device: torch.device) -> FeatureExtractor:
    """An extractor from its name on the command line: `torchscript:PATH`, `inception[:PATH]`, `dinov2[:PATH]`."""
    name, _, path = text.partition(":")
    kind = EXTRACTORS.get(name)
    if kind is None or not (path or kind.is_published):
        *others, last = (spelling for name, kind in EXTRACTORS.items() for spelling in kind.spellings(name))
        raise InvalidInput("features", text, f"{', '.join(others)} or {last}")
    return kind.open(Path(path) if path else None, device)
