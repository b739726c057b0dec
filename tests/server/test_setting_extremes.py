"""Every setting at its extremes: it works, or is refused at the start with its name and what is allowed.

The tests walk over the settings themselves, so that a new one is among them.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.guests import GUESTS
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.server.app import create_app
from elit_serve.server.engines import LoadedModel, num_slots
from elit_serve.server.run import bind, load_and_measure
from elit_serve.server.setting_sources import read_settings
from elit_serve.server.settings import Settings

SCHEMA: dict[str, dict[str, Any]] = Settings.model_json_schema()["properties"]
BEFORE_THE_APP = {"port", "resolution", "threads"}  # what binds the address and loads the model
COST = CostTable(
    steps_ms={(StepKind("32x32", level, None), 1): 1.0 * level for level in (1, 2, 3, 4)}
    | {(StepKind("32x32", 1, 1), 1): 1.0},
    overhead_ms=1.0,
)

TEXTS = ["", " ", "0", "-1", "1.5", "nan", "inf", "-inf", "1e12", "1e308", "-1e308", "true", "\0", "\ud800", "http://["]
LONG_TEXTS = ["9" * 5000, "x" * 100_000, "http://" + "x" * 100_000, "https://a:99999999"]
KINDS: list[object] = [
    *(True, False, 0, -1, 1.5, float("nan"), float("inf"), 1e12, 1e308, -1e308, 2**63, 16**4000),
    *([[]], [1], [True], {}, {"a": 1}, datetime.date(2026, 11, 29)),
]


def variants(setting: str) -> list[dict[str, Any]]:
    """What the setting may be besides null, as JSON Schema."""
    described = SCHEMA[setting]
    return [part for part in described.get("anyOf", [described]) if part.get("type") != "null"]


def numbers() -> list[tuple[str, dict[str, Any]]]:
    parts = [(setting, part) for setting in SCHEMA for part in variants(setting)]
    return [(setting, part) for setting, part in parts if part["type"] in ("integer", "number")]


@pytest.mark.parametrize("setting", SCHEMA)
def test_numbers_have_two_bounds_and_texts_one(setting: str) -> None:
    for part in variants(setting):
        if part["type"] in ("integer", "number"):
            assert "maximum" in part
            assert part.keys() & {"minimum", "exclusiveMinimum"}
        elif "enum" not in part and "const" not in part:
            text = part.get("items", part)
            assert text.get("format") == "password" or "maxLength" in text


@pytest.mark.parametrize("setting", SCHEMA)
def test_what_is_out_of_bounds_is_refused_by_name(setting: str) -> None:
    given = [*TEXTS, *LONG_TEXTS, *KINDS]
    refused = 0
    for value in given:
        refusal = refusal_of(setting, value)
        if refusal is not None:
            refused += 1
            assert refusal.field == setting
            assert refusal.allowed
            assert len(str(refusal)) < 500
    assert refused >= len(KINDS) // 2


def refusal_of(setting: str, value: object) -> InvalidInput | None:
    try:
        read_settings({setting: value})
    except InvalidInput as refusal:
        return refusal
    return None


@pytest.mark.parametrize("setting", SCHEMA)
def test_no_setting_takes_a_truth_value_a_table_a_date_or_a_huge_number(setting: str) -> None:
    for kind in (True, False, {"a": 1}, datetime.date(2026, 11, 29), 2**63, 16**4000, 1e308):
        with pytest.raises(InvalidInput):
            read_settings({setting: kind})


def test_numbers_that_no_server_can_work_with_are_refused() -> None:
    too_much = {
        "results_seconds": "1e12",
        "drain_seconds": "86401",
        "idle_seconds": "1000000",
        "max_queue": "100000000",
    }
    too_much |= {"response_ms": "1e9", "soft_latency_ms": "1e300", "threads": "100000", "max_body_bytes": str(1 << 40)}
    for setting, text in too_much.items():
        with pytest.raises(InvalidInput, match=f"{setting}: .* is not allowed; .*less than or equal to") as refusal:
            read_settings({setting: text})
        assert refusal.value.field == setting


def extremes() -> list[tuple[str, float]]:
    """Of each number the least and the greatest that is allowed."""
    least = [(setting, part.get("minimum", 1e-9)) for setting, part in numbers()]
    return least + [(setting, part["maximum"]) for setting, part in numbers() if "maximum" in part]


@pytest.mark.parametrize(("setting", "value"), [pair for pair in extremes() if pair[0] not in BEFORE_THE_APP])
def test_a_server_works_at_the_bounds(start_server: Any, tmp_path: Path, setting: str, value: float) -> None:
    fixed = {"response_ms": 0, "arrival_log": str(tmp_path / "arrivals.jsonl"), "max_streams": 1 << 16}
    server = start_server(settings=Settings.model_validate({**fixed, setting: value}), cost=COST)
    steps = 1 if setting == "max_image_steps" else 4
    answer = server.generate({"label": "rose", "steps": steps})
    assert answer.status_code == 200, answer.text
    job = server.client.post("/v1/jobs", json={"label": "rose", "steps": steps})
    assert job.status_code == 202, job.text
    assert server.client.get(f"/v1/jobs/{job.json()['id']}").status_code == 200
    assert server.client.get("/metrics").status_code == 200


UNUSABLE = [
    ("keys_file", "x" * 1000),
    ("keys_file", "/dev/null"),
    ("keys_file", "."),
    ("results", "x" * 1000),
    ("results", "/dev/null/jobs"),
    ("database", "sqlite:///" + "x" * 1000),
    ("database", "sqlite:///jobs.sqlite3?colour=green"),
    ("database", "postgresql://here:99999999/jobs"),
    ("database", f"postgresql://here:{'9' * 3000}/jobs"),
    ("database", "postgresql://[/jobs"),
    ("database", "://"),
    ("arrival_log", "x" * 1000),
    ("arrival_log", "."),
]


@pytest.mark.parametrize(("setting", "text"), UNUSABLE, ids=lambda part: part[:40])
def test_a_path_or_address_that_cannot_be_used_is_refused_by_name(
    tiny_pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read_settings({setting: text})
    executor = Executor(tiny_pipeline, num_slots=num_slots(settings))
    with pytest.raises(InvalidInput) as refusal:
        create_app([LoadedModel(pipeline=tiny_pipeline, executor=executor, cost=COST)], settings, guests=GUESTS)
    assert refusal.value.field == setting


@pytest.mark.parametrize("text", ["x" * 1000, "cuda:-1", "cuda:99999999999999999999", "cpu:", "meta"])
def test_a_device_or_model_that_is_not_there_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput, match="model"):
        load_and_measure(Settings(model=text))
    with pytest.raises(InvalidInput, match="device"):
        load_and_measure(read_settings({"device": text}))


@pytest.mark.parametrize("host", ["x" * 64 + ".example", ".", "a..b", "no such host", "256.0.0.1"])
def test_a_host_that_is_none_is_refused_by_name(host: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        bind(host, 0)
    assert refusal.value.field == "host"


@pytest.mark.parametrize(
    "host", ["https://a.example", "a.example/path", "a.example:0", "a.example:99999", "me@a.example"]
)
def test_where_no_webhook_can_go_is_refused(host: str) -> None:
    with pytest.raises(InvalidInput, match="HOST or HOST:PORT"):
        read_settings({"webhook_host": [host]})
