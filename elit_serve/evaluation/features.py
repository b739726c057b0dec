"""From pictures to feature vectors, by an extractor that the operator chooses.

Letters: B batch, H x W picture, F features.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from elit_serve.errors import InvalidInput
from elit_serve.pictures import Photograph, decode, fit

KNOWN_NAMES = {"mobilenetv2": "MobileNetV2", "inceptionv3": "InceptionV3", "dinov2": "DINOv2"}


class FeatureExtractor(Protocol):
    """Anything that describes pictures by vectors."""

    @property
    def name(self) -> str:
        """What figures made with it are called after, as in "MobileNetV2-FD"."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the features may."""

    def __call__(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 1], float32, any device -> features [B, F], float64, on the CPU."""


class TorchScriptFeatures:
    """A TorchScript file. It is code: the operator who names it vouches for it."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path
        self._device = device
        self._module = _load_torchscript(path, device)
        self.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()

    @property
    def name(self) -> str:
        stem = self._path.stem.removesuffix("_features")
        return KNOWN_NAMES.get(stem.lower(), stem)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        try:
            features = self._module(images.to(self._device, torch.float32))
        except RuntimeError as error:  # TorchScript gives its own traceback as the message; the cause comes last
            reason = str(error).strip().splitlines()[-1]
            raise InvalidInput("features", str(self._path), f"it fails on {_shape(images)}: {reason}") from None
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            raise InvalidInput(
                "features",
                str(self._path),
                f"it must turn {_shape(images)} into [{len(images)}, F], and gave {_shape(features)}",
            )
        if not bool(torch.isfinite(features).all()):
            raise InvalidInput("features", str(self._path), "it gave NaN or infinite features")
        return features.double().cpu()


def open_features(text: str, device: torch.device) -> FeatureExtractor:
    """An extractor from its name on the command line: `torchscript:PATH`."""
    kind, _, path = text.partition(":")
    if kind != "torchscript" or not path:
        raise InvalidInput("features", text, "torchscript:PATH")
    return TorchScriptFeatures(Path(path), device)


def load_pictures(photographs: Sequence[Photograph], height: int, width: int) -> Tensor:
    """Photographs cropped and resized to height x width. -> [B, 3, height, width] in [0, 1], float32"""
    arrays = [np.asarray(fit(decode(photograph), height, width)) for photograph in photographs]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def photograph_features(
    extractor: FeatureExtractor,
    photographs: Sequence[Photograph],
    *,
    height: int,
    width: int,
    batch_size: int = 128,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Features of photographs at height x width pixels. -> [len(photographs), F], float64, on the CPU

    `on_batch` is called with the size of each batch when it is done.
    """
    features = []
    for batch in batches(photographs, batch_size):
        features.append(extractor(load_pictures(batch, height, width)))
        if on_batch is not None:
            on_batch(len(batch))
    return torch.cat(features)


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
