from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

PROBLEM = "application/problem+json"


def problem_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == PROBLEM
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    return dict(problem)


REFUSED: list[tuple[dict[str, object], str, object, str]] = [
    # body beside the label, field, value, a part of what is allowed
    ({"budget": 0}, "budget", 0, "greater than 0"),
    ({"budget": 1.5}, "budget", 1.5, "less than or equal to 1"),
    ({"budget": "0.5"}, "budget", "0.5", "number"),
    ({"n": 0}, "n", 0, "greater than or equal to 1"),
    ({"n": 5}, "n", 5, "between 1 and 4"),
    ({"n": True}, "n", True, "integer"),
    ({"seed": -1}, "seed", -1, "greater than or equal to 0"),
    ({"seed": 2**63 - 1, "n": 2}, "seed", 2**63 - 1, "at most"),
    ({"seed": 2**64}, "seed", "an integer of more than 64 bits", "less than or equal to 9223372036854775807"),
    ({"latency_ms": 0}, "latency_ms", 0, "greater than 0"),
    ({"latency_ms": 1}, "latency_ms", 1, "smallest feasible"),
    ({"steps": 0}, "steps", 0, "greater than or equal to 1"),
    ({"steps": 600, "n": 2}, "steps", 600, "at most 1000 steps over all images"),
    ({"steps": 1001}, "steps", 1001, "less than or equal to 1000"),
    ({"levels": []}, "levels", "[]", "at least 1 item"),
    ({"levels": [1, 9]}, "levels", 9, "levels 1-4"),
    ({"levels": [0]}, "levels.0", 0, "greater than or equal to 1"),
    ({"levels": [1], "budget": 0.5}, "budget", 0.5, "leave it out"),
    ({"min_budget": 0}, "min_budget", 0, "greater than 0"),
    ({"min_budget": 0.8, "max_budget": 0.4}, "min_budget", 0.8, "at most max_budget, 0.4"),
    ({"max_budget": 0.2}, "max_budget", 0.2, "at least 0.25, which the lowest level has"),
    ({"min_budget": 0.3, "max_budget": 0.4}, "min_budget", 0.3, "at most 0.25, the highest budget of a level"),
    ({"min_budget": 0.5, "budget": 0.5}, "min_budget", 0.5, "leave it out"),
    ({"max_budget": 0.5, "levels": [1, 1]}, "max_budget", 0.5, "leave it out"),
    ({"best_effort": 1}, "best_effort", 1, "boolean"),
    ({"priority": "urgent"}, "priority", "urgent", "'batch'"),
    ({"output_format": "safetensors"}, "output_format", "safetensors", "png, jpeg, webp"),
    ({"levels": [1], "steps": 2}, "steps", 2, "1 entries"),
    ({"guidance": {"method": "magic"}}, "guidance.method", "magic", "'ccfg'"),
    ({"guidance": {"scale": 0.5}}, "guidance.scale", 0.5, "greater than or equal to 1"),
    ({"guidance": {"weak_budget": 2}}, "guidance.weak_budget", 2, "less than or equal to 1"),
    ({"guidance": {"method": "cfg", "weak_budget": 0.5}}, "guidance.weak_budget", 0.5, "only ccfg and ag"),
    ({"guidance": {"method": "ag", "weak_budget": 1}}, "guidance.weak_budget", 1, "below the budget of every step"),
    ({"guidance": {"method": "ag"}, "budget": 0.25}, "guidance.weak_budget", 0.25, "below the budget of every step"),
    ({"guidance": {"interval": [0.8, 0.2]}}, "guidance.interval", "(0.8, 0.2)", "start <= end"),
    ({"guidance": {"interval": [0.2]}}, "guidance.interval", "[0.2]", "at least 2 items"),
    ({"output_format": "gif"}, "output_format", "gif", "'png'"),
    ({"output_compression": 99}, "output_compression", 99, "100 for png, which loses nothing"),
    ({"output_format": "webp", "output_compression": 101}, "output_compression", 101, "less than or equal to 100"),
    ({"prompt": "rose"}, "prompt", "rose", "leave one of them out"),
    ({"label": 3}, "label", 3, "from 0 to 2"),
    ({"label": "17"}, "label", "17", "from 0 to 2"),
    ({"label": True}, "label", True, "string; or input should be a valid integer"),
    ({"label": None}, "label", None, "class name or id"),
    ({"label": None, "prompt": "1"}, "prompt", "1", "exactly a class name"),
    ({"label": None, "prompt": "a red rose"}, "prompt", "a red rose", "rose"),
    ({"label": None, "prompt": "Roses"}, "prompt", "Roses", "rose"),
    ({"label": "x" * 300}, "label", "x" * 199 + "…", "at most 200 characters"),
    ({"label": "\ud800"}, "label", "\ud800", "valid string"),
]


@pytest.mark.parametrize(("changes", "field", "value", "allowed"), REFUSED, ids=lambda part: str(part)[:40])
def test_a_bad_value_is_refused_with_its_field_its_value_and_what_is_allowed(
    server: Any, changes: dict[str, object], field: str, value: object, allowed: str
) -> None:
    body = json.dumps({"label": "tulip", **changes})
    answer = server.client.post("/v1/generate", content=body, headers={"Content-Type": "application/json"})
    (error,) = problem_of(answer, 422)["errors"]
    assert error["field"] == field
    assert error["value"] == value
    assert allowed in error["allowed"]


def test_an_unknown_class_is_refused_with_the_nearest_names(server: Any) -> None:
    (error,) = problem_of(server.generate({"label": "tulpi"}), 422)["errors"]
    assert error["field"] == "label"
    assert error["value"] == "tulpi"
    assert "tulip" in error["allowed"]


def test_an_unknown_field_is_refused_by_name(server: Any) -> None:
    body = {"label": "tulip", "bugdet": 0.5, "guidance": {"method": "ccfg", "weight": 3}}
    errors = {error["field"]: error for error in problem_of(server.generate(body), 422)["errors"]}
    assert set(errors) == {"bugdet", "guidance.weight"}
    assert "did you mean budget?" in errors["bugdet"]["allowed"]
    assert "scale" in errors["guidance.weight"]["allowed"]


def test_everything_that_is_wrong_is_named_at_once(server: Any) -> None:
    errors = problem_of(server.generate({"label": "tulip", "n": 0, "steps": 0, "seed": -1}), 422)["errors"]
    assert [error["field"] for error in errors] == ["n", "seed", "steps"]


def test_a_body_full_of_unknown_fields_gets_a_short_answer(server: Any) -> None:
    answer = server.generate({"label": "tulip", **{f"budge{i}": 0 for i in range(50_000)}})
    problem = problem_of(answer, 422)
    assert len(problem["errors"]) == 20
    assert problem["detail"].endswith("and 49980 more")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("field", ["budget", "latency_ms"])
def test_numbers_that_are_none_are_refused(server: Any, constant: str, field: str) -> None:
    body = f'{{"label": "tulip", "{field}": {constant}}}'
    answer = server.client.post("/v1/generate", content=body, headers={"Content-Type": "application/json"})
    (error,) = problem_of(answer, 422)["errors"]
    assert error["field"] == field


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"label": 1' + b"0" * 5000 + b"}"])
def test_a_body_that_is_not_json_is_refused(server: Any, body: bytes) -> None:
    answer = server.client.post("/v1/generate", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    problem_of(answer, answer.status_code)


@pytest.mark.parametrize("body", ["[]", "3", "null", '"tulip"'])
def test_a_body_that_is_no_object_is_refused(server: Any, body: str) -> None:
    answer = server.client.post("/v1/generate", content=body, headers={"Content-Type": "application/json"})
    (error,) = problem_of(answer, 422)["errors"]
    assert error["field"] == "body"


@pytest.mark.parametrize(("path", "field"), [("/v1/generate", "guidance"), ("/v1/jobs", "webhook")])
def test_a_field_that_is_no_object_is_not_told_of_the_type_of_the_body(server: Any, path: str, field: str) -> None:
    answer = server.client.post(path, json={"label": "tulip", field: "ccfg"})
    (error,) = problem_of(answer, 422)["errors"]
    assert (error["field"], error["allowed"]) == (field, "a JSON object")


def test_a_form_is_told_to_be_json(server: Any) -> None:
    (error,) = problem_of(server.client.post("/v1/generate", data={"label": "tulip"}), 422)["errors"]
    assert "application/json" in error["allowed"]


def test_a_bare_picture_must_be_the_only_one(server: Any) -> None:
    (error,) = problem_of(server.generate({"label": "tulip", "n": 2}, accept="image/png"), 422)["errors"]
    assert error["field"] == "n"


def test_accept_and_output_format_may_not_contradict_each_other(server: Any) -> None:
    answer = server.generate({"label": "tulip", "output_format": "webp"}, accept="image/png")
    (error,) = problem_of(answer, 422)["errors"]
    assert error["field"] == "output_format"


def test_unknown_routes_and_methods_are_problems_too(server: Any) -> None:
    for route, status in (("/v1/nothing", 404), ("/v1/generate", 405)):
        assert problem_of(server.client.get(route), status)["type"]


def test_a_body_over_a_mebibyte_is_refused_by_its_length(server: Any) -> None:
    body = json.dumps({"label": "t" * (1 << 20)})
    problem = problem_of(server.client.post("/v1/generate", content=body), 413)
    assert "1048576" in problem["detail"]
    assert server.generate({"label": "tulip"}).status_code == 200


def test_a_body_over_a_mebibyte_is_refused_while_it_streams(server: Any) -> None:
    def chunks() -> Iterator[bytes]:
        yield from [b" " * 65536] * 20

    problem = problem_of(server.client.post("/v1/generate", content=chunks()), 413)
    assert "1048576" in problem["detail"]


def test_a_body_under_a_mebibyte_may_stream(server: Any) -> None:
    def chunks() -> Iterator[bytes]:
        yield from (b'{"label": ', b" " * (1 << 19), b'"tulip"}')

    answer = server.client.post("/v1/generate", content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
