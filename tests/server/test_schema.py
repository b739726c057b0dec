"""The OpenAPI document is what the server does: Schemathesis asks for all that it allows, and for what it does not."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

CHECKS_LEFT_OUT = (
    "positive_data_acceptance",  # fields that exclude each other are no part of JSON Schema here
    "use_after_free",  # a job that has been cancelled by DELETE can still be asked for
)
SUCCESS = {200, 202}

Statuses = dict[str, set[int]]  # by operation, as `POST /v1/generate`


def statuses(report: Path, *phases: str) -> Statuses:
    """What was answered in these phases of a run."""
    found: Statuses = defaultdict(set)
    for line in report.read_text(encoding="utf-8").splitlines():
        scenario = json.loads(line).get("ScenarioFinished")
        if scenario and scenario["phase"] in phases:
            interactions = scenario["recorder"].get("interactions", {}).values()
            for interaction in interactions:
                found[scenario["recorder"]["label"]].add(interaction["response"]["status_code"])
    return found


@pytest.mark.slow
def test_every_operation_answers_as_documented(start_server: Any, tmp_path: Path) -> None:
    server = start_server()
    schemathesis = Path(sysconfig.get_path("scripts")) / "schemathesis"
    options = ["--exclude-checks", ",".join(CHECKS_LEFT_OUT), "--max-examples", "30", "--continue-on-failure"]
    options += ["--generation-deterministic", "--report-ndjson-path", str(tmp_path / "report.ndjson")]
    done = subprocess.run(
        [schemathesis, "--no-color", "run", f"{server.url}/openapi.json", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    paths = server.client.get("/openapi.json").json()["paths"]
    documented = {
        f"{method.upper()} {path}": operation for path, item in paths.items() for method, operation in item.items()
    }
    answered = statuses(tmp_path / "report.ndjson", "coverage", "fuzzing", "stateful")
    assert answered.keys() >= documented.keys()
    assert all(answered[name] & SUCCESS for name in documented if "{" not in name), answered
    of_examples = statuses(tmp_path / "report.ndjson", "examples")
    assert of_examples.keys() == {name for name, operation in documented.items() if "requestBody" in operation}
    assert all(found & SUCCESS for found in of_examples.values()), of_examples
