"""All kinds of conditions, by what a model's configuration says of them. To add one: a file, and a line here."""

from __future__ import annotations

from elit_serve.engine.conditions.classes import ClassConditions
from elit_serve.engine.conditions.condition import Conditions
from elit_serve.engine.conditions.text import TextConditions
from elit_serve.engine.text_encoders import TextEncoder
from elit_serve.files.config import ModelConfig, TextConfig


def conditions_of(config: ModelConfig, encoder: TextEncoder | None = None) -> Conditions:
    """What pictures of this model may be of. encoder: of its prompts, where it has these and pictures are made."""
    said = config.conditions
    if isinstance(said, TextConfig):
        return TextConditions(said, model=config.name, encoder=encoder)
    return ClassConditions(said.names, model=config.name)
