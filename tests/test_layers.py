"""What is imported when: the command line and the pure parts start without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "elit_serve",
        "elit_serve.cli",
        "elit_serve.client",
        "elit_serve.scheduler",
        "elit_serve.pictures",
        "elit_serve.charts",
        "elit_serve.evaluation.report.page",
        "elit_serve.bench.load.compare",
        "elit_serve.http.schemas",
        "elit_serve.server.schemas",
        "elit_serve.server.openai.schemas",
        "elit_serve.server.settings",
    ],
)
def test_it_is_imported_without_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_error_tree_is_the_one_in_its_docstring() -> None:
    from elit_serve import errors

    classes = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.ElitError)
    }
    drawn = {word for word in (errors.__doc__ or "").split() if word in classes}
    assert drawn == classes
