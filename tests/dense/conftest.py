"""Tiny folders of diffusers, each made once and imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from dense.folders import IMPORTED, write_folder

from elit_serve.importing.diffusers_folder import import_folder

Made = Callable[[str], Path]


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The directory of the tiny model of a family."""
    made: dict[str, Path] = {}

    def model(family: str) -> Path:
        if family not in made:
            made[family] = write_folder(family, tmp_path_factory.mktemp("dense") / f"tiny-{family}")
            import_folder(made[family], **IMPORTED[family])
        return made[family]

    return model
