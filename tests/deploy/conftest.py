"""The files of `deploy/`."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def deploy_dir() -> Path:
    return Path(__file__).parents[2] / "deploy"
