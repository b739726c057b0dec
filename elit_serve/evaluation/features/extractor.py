"""What every extractor is and gives. Letters: B batch, H x W picture, F features, K logits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from elit_serve.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Described:
    """features [B, F] and, if the extractor classifies, logits [B, K]; float32."""

    features: Tensor
    logits: Tensor | None = None

    @classmethod
    def cat(cls, parts: Sequence[Described]) -> Described:
        logits = [part.logits for part in parts if part.logits is not None]
        return cls(features=torch.cat([part.features for part in parts]), logits=torch.cat(logits) if logits else None)


class FeatureExtractor(Protocol):
    """Anything that describes pictures by vectors."""

    @property
    def metric(self) -> str:
        """What a Fréchet distance in these features is called, as "FID" or "MobileNetV2-FD"."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the features may."""

    def __call__(self, images: Tensor) -> Described:
        """images [B, 3, H, W], or clips [B, 3, T, H, W], in [0, 1], float32, any device -> on its own."""


def checked(source: str, images: Tensor, features: object, logits: object = None) -> Described:
    """What a network gave for `images`, if it is vectors of finite numbers."""
    for part, letter in ((features, "F"), (logits, "K")):
        if part is None and letter == "K":
            continue
        if not isinstance(part, Tensor) or part.ndim != 2 or len(part) != len(images):
            raise InvalidInput(
                "features",
                source,
                f"it must turn {shape_text(images)} into [{len(images)}, {letter}], and gave {shape_text(part)}",
            )
        if not bool(torch.isfinite(part).all()):
            raise InvalidInput("features", source, "it gave NaN or infinite features")
    assert isinstance(features, Tensor)
    return Described(features=features.float(), logits=logits.float() if isinstance(logits, Tensor) else None)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A fingerprint of names and values, in their order."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def shape_text(value: object) -> str:
    """The shape of a tensor, or what else it is."""
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
