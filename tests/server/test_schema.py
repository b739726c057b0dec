"""The OpenAPI document is what the server does: Schemathesis asks for all that it allows, and for what it does not."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from collections import defaultdict
from pathlib import Path
from typing import Any

CHECKS_LEFT_OUT = "positive_data_acceptance"  # fields that exclude each other are no part of JSON Schema here

Statuses = dict[str, set[int]]  # by operation, as `POST /v1/generate`


def statuses(report: Path, *phases: str) -> Statuses:
    """What was answered in these phases of a run."""
    found: Statuses = defaultdict(set)
    for line in report.read_text().splitlines():
        scenario = json.loads(line).get("ScenarioFinished")
        if scenario and scenario["phase"] in phases:
            interactions = scenario["recorder"].get("interactions", {}).values()
            for interaction in interactions:
                found[scenario["recorder"]["label"]].add(interaction["response"]["status_code"])
    return found


def test_every_operation_answers_as_documented(start_server: Any, tmp_path: Path) -> None:
    server = start_server()
    schemathesis = Path(sysconfig.get_path("scripts")) / "schemathesis"
    options = ["--exclude-checks", CHECKS_LEFT_OUT, "--max-examples", "50", "--continue-on-failure"]
    options += ["--generation-deterministic", "--report-ndjson-path", str(tmp_path / "report.ndjson")]
    done = subprocess.run(
        [schemathesis, "--no-color", "run", f"{server.url}/openapi.json", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    paths = server.client.get("/openapi.json").json()["paths"]
    documented = {
        f"{method.upper()} {path}": operation for path, item in paths.items() for method, operation in item.items()
    }
    answered = statuses(tmp_path / "report.ndjson", "coverage", "fuzzing")
    assert answered.keys() == documented.keys()
    assert all(200 in found for found in answered.values()), answered
    with_body = {name for name, operation in documented.items() if "requestBody" in operation}
    assert statuses(tmp_path / "report.ndjson", "examples") == {name: {200} for name in with_body}
