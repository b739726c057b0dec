"""The server's reference has every setting and every route; its metrics are in tests/deploy."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from elit_serve.http.faults import KINDS
from elit_serve.server.settings import Settings


@pytest.fixture(scope="module")
def reference(root: Path) -> str:
    return (root / "elit_serve/server/README.md").read_text(encoding="utf-8")


def test_the_table_of_settings_says_what_they_say_of_themselves(reference: str) -> None:
    table = reference.partition("| flag | default | meaning |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = []
    for setting, field in Settings.model_fields.items():
        flag = "MODEL" if setting == "model" else f"--{setting.replace('_', '-')}"
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        rows.append(f"| `{flag}` | {default} | {field.description} |")
    assert table.splitlines() == rows


def test_the_table_of_routes_has_what_a_server_has(reference: str, server: str) -> None:
    table = reference.partition("| route | what |\n|---|---|\n")[2].partition("\n\n")[0]
    told = set(re.findall(r"`([A-Z]+) (/[^`]*)`", table))
    paths = httpx.get(f"http://{server}/openapi.json").json()["paths"]
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert served <= told
    for method, path in sorted(told - served):  # what is not in the interactive documentation
        assert method == "GET"
        with httpx.stream("GET", f"http://{server}{path.format(name='main.js')}") as answer:
            assert answer.status_code == 200, path


def test_every_field_of_a_request_is_explained(reference: str, server: str) -> None:
    schemas = httpx.get(f"http://{server}/openapi.json").json()["components"]["schemas"]
    fields = {name for schema in ("GenerateRequest", "JobRequest") for name in schemas[schema]["properties"]}
    assert not [name for name in sorted(fields) if f"`{name}`" not in reference]


def test_every_problem_is_explained(reference: str) -> None:
    assert not [kind.name for kind in KINDS.values() if f"{kind.status} `{kind.name}`" not in reference]
