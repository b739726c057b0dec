"""Bodies that are made to cost much: their answers are as cheap as others', and who sends slowly shuts nobody out."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elit_serve.bench.soak.ledger import read_samples
from elit_serve.engine.checkpoint import spec_of, write_checkpoint
from elit_serve.engine.pipeline import Pipeline
from elit_serve.files.config import ModelConfig
from elit_serve.http.bodies import MAX_CONTAINERS, known_part, num_containers
from elit_serve.jobs.schemas import JobRequest
from elit_serve.nn import build
from elit_serve.server.settings import Settings


def cpu_seconds(url: str) -> float:
    return read_samples(httpx.get(f"{url}/metrics", timeout=60).text)["process_cpu_seconds_total"]


def test_a_body_that_does_not_say_that_it_is_json_is_shown_in_part(tiny_server_url: str) -> None:
    answer = httpx.post(f"{tiny_server_url}/v1/generate", content=b"\xff" * 1_000_000, timeout=60)
    (error,) = answer.json()["errors"]
    assert len(error["value"]) <= 200


def test_brackets_in_a_text_are_no_lists(server: Any) -> None:
    answer = server.generate({"label": '"\\' + "[{" * 90})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "label")
    openai = {"prompt": '\\"[' * 5_000 + "\\"}
    assert "class" in server.client.post("/v1/images/generations", json=openai).json()["error"]["message"]


def test_no_route_parses_a_body_in_another_way(server: Any) -> None:
    documented = server.client.get("/openapi.json").json()["paths"]
    takes_body = {path for path, methods in documented.items() if "requestBody" in methods.get("post", {})}
    crowd = f'{{"label": [{",".join(["[]"] * 2 * MAX_CONTAINERS)}]}}'
    assert takes_body == {"/v1/generate", "/v1/plan", "/v1/jobs", "/v1/images/generations"}
    for path in takes_body:
        answer = server.client.post(path, content=crowd, headers={"Content-Type": "application/json"})
        assert (answer.status_code, f"more than {MAX_CONTAINERS} lists" in answer.text) == (400, True)


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/plan", "/v1/jobs", "/v1/images/generations"])
def test_a_compressed_body_is_refused_as_such(server: Any, path: str) -> None:
    content = gzip.compress(b'{"label": "tulip"}')
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = server.client.post(path, content=content, headers=headers)
    assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "identity")
    assert "gzip; send it as it is" in answer.text
    assert "415" in server.client.get("/openapi.json").json()["paths"][path]["post"]["responses"]


def test_a_body_that_says_that_it_is_not_compressed_is_read(server: Any) -> None:
    body = {"label": "tulip", "steps": 1}
    assert server.client.post("/v1/plan", json=body, headers={"Content-Encoding": "identity"}).status_code == 200


def test_json_in_another_character_set_is_told_which_is_read(server: Any) -> None:
    headers = {"Content-Type": "application/json; charset=latin-1"}
    answer = server.client.post("/v1/generate", content='{"label": "été"}'.encode("latin-1"), headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (400, "the body is not JSON: it is not in UTF-8")


JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}"\\a,'),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(alphabet='[]{}"\\a,'), parts),
)


def count(value: object) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, dict | list) + sum(map(count, parts))


@given(JSON)
def test_lists_and_objects_are_counted_as_a_parser_finds_them(value: object) -> None:
    crowd = [[]] * MAX_CONTAINERS  # few are not counted exactly
    assert num_containers(json.dumps([value, crowd]).encode()) == count(value) + len(crowd) + 2


def test_unknown_fields_that_no_answer_shows_are_left_out_and_counted() -> None:
    body = {**{f"a{i}": 0 for i in range(100)}, "label": "tulip", "webhook": {f"b{i}": 0 for i in range(50)}}
    kept, num_left_out = known_part(body, JobRequest)
    assert num_left_out == 80 + 30
    assert [name for name in kept if name.startswith("a")] == [f"a{i}" for i in range(20)]
    assert kept["label"] == "tulip"
    assert list(kept["webhook"]) == [f"b{i}" for i in range(20)]


@pytest.fixture
def pipeline_of_many_classes(tiny_config: ModelConfig, tmp_path: Path) -> Pipeline:
    spec = replace(spec_of(tiny_config), num_classes=100_000)
    names = tuple(f"flower-number-{i:06}" for i in range(100_000))
    config = ModelConfig.model_validate(
        {**tiny_config.model_dump(), **spec.config_fields(), "conditions": {"names": names}}
    )
    write_checkpoint(tmp_path / "many", config, build(spec).state_dict())
    return Pipeline.load(tmp_path / "many", device="cpu")


def test_a_name_is_not_compared_with_a_hundred_thousand_classes(
    start_server: Any, pipeline_of_many_classes: Pipeline
) -> None:
    server = start_server(pipeline_of_many_classes)
    before = cpu_seconds(server.url)
    for prompt in ("flower-number-0500000", "fower-number-050000", "flower" * 5_000, "9" * 200):
        answer = server.client.post("/v1/images/generations", json={"prompt": prompt})
        assert answer.status_code == 400
        assert server.generate({"label": prompt[:200]}).status_code == 422
    assert cpu_seconds(server.url) - before < 2
    assert (
        "the nearest are flower-number-050000," in server.generate({"label": "flower-number-0500000"}).json()["detail"]
    )


def test_a_body_that_is_still_being_sent_takes_a_place_and_gives_it_up_to_others(
    start_server: Any, held: Any, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    server = start_server(settings=Settings(response_ms=0, max_concurrent_requests=3), executor=held)
    with ExitStack() as stack:

        def connect(body: str) -> socket.socket:
            caller = stack.enter_context(socket.create_connection(("127.0.0.1", server.client.base_url.port)))
            caller.settimeout(60)
            head = "POST /v1/generate HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: 18"
            caller.sendall(f"{head}\r\n\r\n{body}".encode())
            return caller

        slow = [connect('{"label"') for _ in range(4)]
        with slow[0].makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.1 503 "), "and it is closed"
        whole = [connect('{"label": "tulip"}') for _ in range(3)]
        assert [caller.recv(1 << 16)[:13] for caller in slow[1:]] == [b"HTTP/1.1 503 "] * 3
        eventually(lambda: server.health()["queue_length"] + server.health()["running"] == 3)
        assert server.generate({"label": "tulip"}).status_code == 503, "what is there whole keeps its place"
        assert server.client.get("/v1/models").status_code == 200, "requests for pictures shut nobody else out"
        server.executor.may_run.set()
        assert [caller.recv(13) for caller in whole] == [b"HTTP/1.1 200 "] * 3
