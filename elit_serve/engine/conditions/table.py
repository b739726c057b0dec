"""All kinds of conditions, by what a model's configuration says of them. To add one: a file, and its lines
here."""

from __future__ import annotations

from pathlib import Path

import torch

from elit_serve.engine.conditions.classes import ClassCondition, ClassConditions
from elit_serve.engine.conditions.condition import Conditions
from elit_serve.engine.conditions.text import TextCondition, TextConditions
from elit_serve.engine.text_encoders import encoder_problems, open_encoder
from elit_serve.files.config import ModelConfig, TextConfig

AnyCondition = ClassCondition | TextCondition  # where it must be told of which kind one is, as on its way to a replica


def conditions_of(config: ModelConfig) -> Conditions:
    """What pictures of this model may be of, for those who make none: nothing is opened."""
    said = config.conditions
    if isinstance(said, TextConfig):
        return TextConditions(said, model=config.name)
    return ClassConditions(said.names, model=config.name)


def open_conditions(config: ModelConfig, folder: Path, device: torch.device) -> Conditions:
    """The same for those who make them. folder: of the model, where an encoder's files lie. Raises `CheckpointError`,
    `MissingPackage`."""
    said = config.conditions
    if isinstance(said, TextConfig):
        return TextConditions(said, model=config.name, encoder=open_encoder(said, folder, device))
    return conditions_of(config)


def condition_problems(config: ModelConfig) -> list[str]:
    """What is wrong with them that `ModelConfig` cannot know."""
    said = config.conditions
    return encoder_problems(said.encoder) if isinstance(said, TextConfig) else []
