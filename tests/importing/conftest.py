"""A published checkpoint, with what the published code makes of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from published import published_tensors, published_weights, save_published
from torch import Tensor

WritePublished = Callable[..., Path]


@pytest.fixture(scope="session")
def published() -> dict[str, Tensor]:
    """See `published_tensors`."""
    return published_tensors()


@pytest.fixture
def weights(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under their published names; a test may change them."""
    return published_weights(published)


@pytest.fixture
def write_published(weights: dict[str, Tensor], tmp_path: Path) -> WritePublished:
    """Writes a checkpoint as training leaves it; keywords change or add entries."""
    return partial(save_published, tmp_path / "published.pt", weights)
