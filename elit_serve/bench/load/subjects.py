"""What the pictures of a run are of: classes of the server's model, or prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elit_serve.client import Model
from elit_serve.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Subject:
    """label: class id; prompt: words. One of them, the other is None."""

    label: int | None = None
    prompt: str | None = None


def subjects_of(model: Model, prompts: Sequence[str]) -> tuple[Subject, ...]:
    """These prompts; without any, the classes of the model or, where it has none, the prompts that it shows.

    Raises `InvalidInput` where there are neither.
    """
    if not prompts and model.classes:
        return tuple(Subject(label=class_id) for class_id in range(len(model.classes)))
    asked = prompts or (() if model.prompts is None else model.prompts.examples)
    if not asked:
        raise InvalidInput("prompts", None, f"a file of some: {model.id} shows none")
    return tuple(Subject(prompt=prompt) for prompt in asked)
