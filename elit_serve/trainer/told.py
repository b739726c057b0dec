"""What a model is told of the pictures that it learns: class ids as they are, or captions as an encoder makes them.

Letters: B samples, U different captions, T places for tokens of text, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from elit_serve.catalogue import resolve_model
from elit_serve.engine.conditions import ClassConditions, Conditions, TextConditions
from elit_serve.engine.text_encoders import CachedEncoder, open_encoder
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.texts import StoredTexts

AT_A_TIME = 1024  # captions that are encoded in one go

Tell = Callable[[Tensor], Tensor]  # which of a set's classes or captions [B] int64 -> what the model is told [B, ...]


class Told:
    """Of a recipe: what it says of conditions, or what its data does. classes: of the data, where it has them. texts:
    encoded captions, where the data has these."""

    def __init__(
        self, recipe: Recipe, classes: Sequence[str], device: torch.device, texts: StoredTexts | None = None
    ) -> None:
        self.no_text: Tensor | None = None  # [T, D + 1], where the encoded empty prompt stands for that
        self.config = recipe.conditions(classes)
        self._device = device
        self._limit = recipe.data.memory_gb * 1e9
        self._encoder: CachedEncoder | None = None
        self._texts = texts
        self.shown: Conditions = ClassConditions(classes, model=recipe.name)  # in grids of samples
        if recipe.text is not None:
            self._encoder = (
                open_encoder(recipe.text, _text_folder(recipe), device) if texts is None else CachedEncoder(texts)
            )
            if texts is not None:
                texts.check(recipe.text.examples)
            self.no_text = self._encoder.encode([""])[0].to(device) if recipe.text.negative else None
            self.shown = TextConditions(recipe.text, model=recipe.name, encoder=self._encoder)

    def of(self, names: Sequence[str]) -> Tell:
        """For a set of these classes or captions. Captions are encoded once, here, if all of them fit the memory that a
        recipe gives to data, and otherwise whenever they come."""
        if self._encoder is None:
            return _as_they_are
        if self._texts is not None:
            self._texts.check(names)
        encoder = self._encoder
        size = len(names) * encoder.max_tokens * (encoder.dim + 1) * encoder.dtype.itemsize
        if size > self._limit:
            return lambda which: encoder.encode([names[index] for index in which.tolist()]).to(self._device)
        parts = [encoder.encode(names[first : first + AT_A_TIME]) for first in range(0, len(names), AT_A_TIME)]
        table = torch.cat(parts).to(self._device)  # [U, T, D + 1]
        return lambda which: table.index_select(0, which)


def _text_folder(recipe: Recipe) -> Path:
    """Where the files of its encoder lie, if it has any."""
    return Path() if recipe.text_model is None else resolve_model(recipe.text_model)


def _as_they_are(which: Tensor) -> Tensor:
    return which
