"""A file in TorchScript as an extractor. It is code: the operator who names it vouches for it."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features.extractor import Described, checked, shape_text
from elit_serve.files.opening import open_file

KNOWN_NAMES = {"mobilenetv2": "MobileNetV2", "i3d": "I3D"}


class TorchScriptFeatures:
    """Images, or clips for a video metric such as FVD -> features [B, F], or a pair of these and logits [B, K]."""

    def __init__(self, path: Path | None, device: torch.device) -> None:
        assert path is not None, "there is no published file"
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
            raise InvalidInput("features", str(self._path), f"it fails on {shape_text(images)}: {reason}") from None
        features, logits = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
        return checked(str(self._path), images, features, logits)


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
