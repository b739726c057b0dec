"""From pictures to feature vectors, by an extractor that the operator chooses.

Letters: B batch, H x W picture, F features.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from elit_serve.errors import InvalidInput
from elit_serve.files.opening import open_file
from elit_serve.photographs import Photograph, decode
from elit_serve.pictures import fit

KNOWN_NAMES = {"mobilenetv2": "MobileNetV2", "i3d": "I3D"}


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


class TorchScriptFeatures:
    """A TorchScript file. It is code: the operator who names it vouches for it.

    It turns images, or clips for a video metric such as FVD, into features [B, F] or a pair (features, logits [B, K]).
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path
        self._device = device
        self._module = _load_torchscript(path, device)
        with open_file(path) as file:
            self.fingerprint = hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def metric(self) -> str:
        stem = self._path.stem.removesuffix("_features")
        return f"{KNOWN_NAMES.get(stem.lower(), stem)}-FD"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Described:
        try:
            answer = self._module(images.to(self._device, torch.float32))
        except RuntimeError as error:  # TorchScript gives its own traceback as the message; the cause comes last
            reason = str(error).strip().splitlines()[-1]
            raise InvalidInput("features", str(self._path), f"it fails on {_shape(images)}: {reason}") from None
        features, logits = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
        return checked(str(self._path), images, features, logits)


def checked(source: str, images: Tensor, features: object, logits: object = None) -> Described:
    """What a network gave for `images`, if it is vectors of finite numbers."""
    for part, letter in ((features, "F"), (logits, "K")):
        if part is None and letter == "K":
            continue
        if not isinstance(part, Tensor) or part.ndim != 2 or len(part) != len(images):
            raise InvalidInput(
                "features",
                source,
                f"it must turn {_shape(images)} into [{len(images)}, {letter}], and gave {_shape(part)}",
            )
        if not bool(torch.isfinite(part).all()):
            raise InvalidInput("features", source, "it gave NaN or infinite features")
    assert isinstance(features, Tensor)
    return Described(features=features.float(), logits=logits.float() if isinstance(logits, Tensor) else None)


def open_features(text: str, device: torch.device) -> FeatureExtractor:
    """An extractor from its name on the command line: `torchscript:PATH`, `inception[:PATH]`, `dinov2[:PATH]`."""
    kind, _, path = text.partition(":")
    if kind == "torchscript" and path:
        return TorchScriptFeatures(Path(path), device)
    if kind == "inception":
        from elit_serve.evaluation.features.inception import InceptionFeatures

        return InceptionFeatures(Path(path) if path else None, device)
    if kind == "dinov2":
        from elit_serve.evaluation.features.dinov2 import DinoV2Features

        return DinoV2Features(Path(path) if path else None, device)
    raise InvalidInput("features", text, "torchscript:PATH, inception, inception:PATH, dinov2 or dinov2:PATH")


def load_pictures(photographs: Sequence[Photograph], height: int, width: int, *, field: str = "reference") -> Tensor:
    """Photographs cropped and resized to height x width. -> [B, 3, height, width] in [0, 1], float32

    Smaller ones are refused: enlarged, they would be blurred, and so would what is measured against them.
    """
    arrays = []
    for photograph in photographs:
        image = decode(photograph)
        if image.width < width or image.height < height:
            name = f"{photograph.label}/{photograph.name}: {image.width} x {image.height}"
            raise InvalidInput(field, name, f"photographs of at least the model's {width} x {height} pixels")
        arrays.append(np.asarray(fit(image, height, width)))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def photograph_features(
    extractor: FeatureExtractor,
    photographs: Sequence[Photograph],
    *,
    height: int,
    width: int,
    batch_size: int = 128,
    field: str = "reference",
    on_batch: Callable[[int], None] | None = None,
) -> Described:
    """Features of photographs at height x width pixels, on the extractor's device.

    `on_batch` is called with the size of each batch when it is done.
    """
    described = []
    for batch in batches(photographs, batch_size):
        described.append(extractor(load_pictures(batch, height, width, field=field)))
        if on_batch is not None:
            on_batch(len(batch))
    return Described.cat(described)


def batches(photographs: Sequence[Photograph], size: int) -> Iterator[Sequence[Photograph]]:
    for start in range(0, len(photographs), size):
        yield photographs[start : start + size]


def _load_torchscript(path: Path, device: torch.device) -> Any:
    if not path.is_file():
        raise InvalidInput("features", str(path), "a TorchScript file; there is none here")
    try:
        with warnings.catch_warnings():
            # torch deprecates TorchScript in favour of torch.export, whose files are not portable across versions
            warnings.simplefilter("ignore", DeprecationWarning)
            module: Any = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
            return module.eval()
    except (RuntimeError, ValueError):
        raise InvalidInput("features", str(path), "a TorchScript file; this is none") from None


def _shape(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
