"""DINOv2's pooled features, in which a Fréchet distance is called FDD (Stein et al. 2023), through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from elit_serve.errors import InvalidInput, MissingPackage
from elit_serve.evaluation.features.extractor import Described, checked, weights_digest
from elit_serve.files.opening import regular_folder

PUBLISHED = "facebook/dinov2-large"  # ViT-L/14
SIDE_PX = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoV2Features:
    """The normalised class token of a DINOv2: [B, 3, H, W] -> [B, 1024] for ViT-L/14."""

    metric = "FDD"

    def __init__(self, folder: Path | None, device: torch.device) -> None:
        """folder: weights in transformers' format, safetensors only; None lets transformers fetch ViT-L/14."""
        try:
            from transformers import Dinov2Model
        except ImportError:
            raise MissingPackage("transformers", "evaluation") from None
        if folder is not None and not (folder / "config.json").is_file():
            raise InvalidInput("features", str(folder), "a folder in transformers' format; there is no config.json")
        self._source = PUBLISHED if folder is None else str(folder)
        self._device = device
        untyped: Any = Dinov2Model
        try:
            if folder is not None:
                regular_folder(folder)
            model = untyped.from_pretrained(self._source, local_files_only=folder is not None, use_safetensors=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InvalidInput("features", self._source, f"weights of a DINOv2 in safetensors: {reason}") from None
        self._model = model.to(device).eval().requires_grad_(False)
        self.fingerprint = weights_digest(dict(sorted(self._model.state_dict().items())))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Described:
        images = images.to(self._device, torch.float32)
        resized = F.interpolate(images, size=(SIDE_PX, SIDE_PX), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (images.new_tensor(value).view(3, 1, 1) for value in (MEAN, STD))
        return checked(self._source, images, self._model((resized - mean) / std).pooler_output)
