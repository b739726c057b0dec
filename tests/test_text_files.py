"""Text files are UTF-8 in every module of the package, because each opening of one says so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import elit_serve

PACKAGE = Path(elit_serve.__file__).parent
READS_TEXT = {"read_text", "write_text", "TextIOWrapper", "text_encoding"}
OPENS = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile"}
OPEN_NO_TEXT = {"Image", "tarfile", "Database", "PictureSet", "webbrowser", "guest", "kind"}
STARTS = {"run", "Popen", "check_output"}  # of subprocess: text=True is text in the locale's encoding


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def is_of(call: ast.Call, owners: set[str]) -> bool:
    """Whether it is a method of one of these names."""
    return isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in owners


def mode_of(call: ast.Call) -> str:
    """The second argument of a function and the first of a path's method, or `mode`."""
    default = "r" if name_of(call) in ("open", "fdopen") else "w+b"
    given = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    position = 0 if isinstance(call.func, ast.Attribute) and not is_of(call, {"os", "tempfile", "io"}) else 1
    given += call.args[position : position + 1]
    return next((str(each.value) for each in given if isinstance(each, ast.Constant)), default)


def unsaid(source: str) -> Iterator[int]:
    """The lines that read or write text in whatever encoding the locale has."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        name = name_of(node)
        is_text = name in READS_TEXT and not (name == "read_text" and isinstance(node.func, ast.Name))
        if name in OPENS and not is_of(
            node, {"Image", "tarfile", "Database", "PictureSet", "LatentSet", "webbrowser", "guest", "kind", "model"}
        ):
            is_text = "b" not in mode_of(node) and not (name == "open" and is_of(node, {"os"}))
        if name in STARTS and is_of(node, {"subprocess"}):
            is_text = any(keyword.arg in ("text", "universal_newlines") for keyword in node.keywords)
        if is_text:
            yield node.lineno


@pytest.mark.parametrize(
    "line",
    [
        "path.read_text()",
        "(folder / 'a').write_text(text)",
        "open(name)",
        "path.open()",
        "path.open('a')",
        "open(name, mode='w')",
        "os.fdopen(handle, 'w')",
        "subprocess.run(command, text=True)",
    ],
)
def test_what_leaves_the_encoding_to_the_locale_is_found(line: str) -> None:
    assert list(unsaid(line)) == [1]


@pytest.mark.parametrize("line", ["path.open('rb')", "open(name, 'wb')", "path.read_text(encoding='utf-8')"])
def test_what_does_not_is_left_alone(line: str) -> None:
    assert not list(unsaid(line))


def test_no_module_leaves_the_encoding_to_the_locale() -> None:
    """`read_text` of `elit_serve.files.opening` is a function and knows its encoding."""
    modules = list(PACKAGE.rglob("*.py"))
    assert len(modules) > 200
    found = [f"{module}:{line}" for module in modules for line in unsaid(module.read_text(encoding="utf-8"))]
    assert not found
