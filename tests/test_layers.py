"""What is imported when: the command line and the pure parts start without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

SOURCES = "elit_serve/**/*.py"


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


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports for types and inside of functions count too."""
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in Path().glob(SOURCES)}
    graph = {name: sorted(_imported(path, modules) - {name}) for name, path in modules.items()}
    assert list(TopologicalSorter(graph).static_order())  # raises `CycleError` with the circle


def test_only_one_module_reaches_into_uvicorn() -> None:
    found = {path.as_posix() for path in Path().glob(SOURCES) if "uvicorn." in path.read_text(encoding="utf-8")}
    public = {"elit_serve/server/middleware/prefix.py"}  # its middleware for proxies is documented
    assert found == {"elit_serve/server/connections.py"} | public


def test_the_version_of_uvicorn_is_the_one_that_is_reached_into() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    (requirement,) = [Requirement(line) for line in project["dependencies"] if line.startswith("uvicorn")]
    assert version("uvicorn") in requirement.specifier
    least, below = (Version(each.version) for each in sorted(requirement.specifier, key=lambda each: each.version))
    assert (below.major, below.minor) == (least.major, least.minor + 1)


def _imported(path: Path, modules: Mapping[str, Path]) -> set[str]:
    """The modules of ours that a file names in its imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(modules)
