"""Everything beside /v1/generate: the model, health, metrics, the docs page, settings, start-up."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from elit_serve.errors import InvalidInput
from elit_serve.server.run import bind, load_and_measure
from elit_serve.server.settings import Settings


def test_the_model_is_described_with_what_its_levels_cost(server: Any) -> None:
    (model,) = server.client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert model["hash"] == server.pipeline.model_hash
    assert model["classes"] == ["daisy", "rose", "tulip"]
    assert model["sample_shape"] == [3, 32, 32]
    assert model["sampling"]["steps"] == 4
    assert model["sampling"]["guidance"]["method"] == "ccfg"
    assert model["levels"] == [
        {"level": 1, "budget": 0.25, "latency_ms": 1500.0, "quality": None},
        {"level": 2, "budget": 0.5, "latency_ms": 2000.0, "quality": None},
        {"level": 3, "budget": 0.75, "latency_ms": 2500.0, "quality": None},
        {"level": 4, "budget": 1.0, "latency_ms": 3000.0, "quality": None},
    ]


def test_health_is_good_while_the_engine_runs(server: Any) -> None:
    assert server.client.get("/health").json() == {"status": "ok", "model": "tiny", "queue_length": 0, "running": 0}
    for route in ("/liveness", "/readiness", "/v2/health/live", "/v2/health/ready"):
        assert server.client.get(route).json() == {"status": "ok"}


def test_requests_are_counted_by_route_and_outcome(start_server: Any) -> None:
    server = start_server()
    server.generate({"label": "tulip", "n": 2, "budget": 0.5})
    server.generate({"label": "tulip", "budget": 1})
    server.generate({"label": "nothing"})
    server.client.get("/v1/models")
    for path in ("/a", "/b"):
        server.client.get(path)
    assert server.metric('elit_requests_total{outcome="ok",route="/v1/generate"}') == 2
    assert server.metric('elit_requests_total{outcome="invalid",route="/v1/generate"}') == 1
    assert server.metric('elit_requests_total{outcome="ok",route="/v1/models"}') == 1
    assert server.metric('elit_requests_total{outcome="invalid",route="other"}') == 2
    assert server.metric('elit_request_seconds_count{route="/v1/generate"}') == 3
    assert server.metric("elit_queue_length") == 0


def test_budgets_are_counted_by_who_chose_them_and_times_by_stage(start_server: Any) -> None:
    server = start_server()
    server.generate({"label": "tulip", "n": 2, "budget": 0.5})
    answer = server.generate({"label": "tulip", "latency_ms": 30_000}).json()
    assert server.metric('elit_granted_budget_bucket{chosen_by="caller",le="0.375"}') == 0
    assert server.metric('elit_granted_budget_bucket{chosen_by="caller",le="0.5"}') == 2
    assert server.metric('elit_granted_budget_sum{chosen_by="caller"}') == 1
    assert server.metric('elit_granted_budget_sum{chosen_by="server"}') == answer["images"][0]["budget"]
    for stage in ("queue", "compute", "encode"):
        assert server.metric(f'elit_image_seconds_count{{stage="{stage}"}}') == 3
        seconds = server.metric(f'elit_image_seconds_sum{{stage="{stage}"}}')
        assert seconds >= answer[f"{stage}_ms"] / 1000 > 0


def test_the_server_says_what_it_serves_and_whether_it_takes_requests(start_server: Any) -> None:
    server = start_server()
    (served,) = re.findall(r"^elit_model_info\{(.*)\} 1\.0$", server.client.get("/metrics").text, re.MULTILINE)
    assert 'model="tiny"' in served
    assert f'hash="{server.pipeline.model_hash}"' in served
    assert 'device="cpu"' in served
    assert server.metric("elit_queue_limit") == 64
    assert server.metric("elit_ready") == 1
    server.worker.stop()
    assert server.metric("elit_ready") == 0


def test_what_has_not_happened_yet_is_counted_as_0(server: Any) -> None:
    text = server.client.get("/metrics").text
    model = f'model="{server.pipeline.config.name}"'
    for series in (
        f'elit_refusals_total{{{model},reason="queue_full"}} ',
        f'elit_generations_total{{{model},outcome="expired"}} ',
        f'elit_image_failures_total{{cause="nan",{model}}} ',
        'elit_requests_total{outcome="failed",route="/v1/generate"} ',
    ):
        assert f"\n{series}" in text


def test_a_caller_who_leaves_in_the_middle_of_a_body_is_no_failure_of_the_server(start_server: Any) -> None:
    server = start_server()
    with socket.create_connection(("127.0.0.1", server.client.base_url.port)) as caller:
        caller.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n{")
    counted = 'elit_requests_total{outcome="cancelled",route="/v1/generate"}'
    for _ in range(1000):
        if server.metric(counted):
            break
    assert server.metric(counted) == 1
    assert server.metric('elit_requests_total{outcome="failed",route="/v1/generate"}') == 0


def test_latency_buckets_resolve_targets_below_300_ms(server: Any) -> None:
    server.client.get("/health")
    text = server.client.get("/metrics").text
    edges = {float(edge) for edge in re.findall(r'elit_request_seconds_bucket\{le="([\d.]+)"', text)}
    assert len([edge for edge in edges if edge <= 0.3]) >= 10


def test_two_servers_in_one_process_count_apart(start_server: Any) -> None:
    first, second = start_server(), start_server()
    first.client.get("/health")
    assert second.metric('elit_requests_total{outcome="ok",route="/health"}') == 0


def test_the_docs_page_needs_no_outside_host(server: Any) -> None:
    page = server.client.get("/docs")
    assert page.status_code == 200
    references = re.findall(r"""(?:src|href)=["']([^"']+)["']|url: '([^']+)'""", page.text)
    urls = [urljoin(f"{server.url}/docs", one or other) for one, other in references]
    assert len(urls) >= 4
    for url in urls:
        assert urlsplit(url).netloc == urlsplit(server.url).netloc
        assert server.client.get(url).status_code == 200
    assert '"validatorUrl": null' in page.text
    assert not re.search(r"https?://", page.text)


def test_the_openapi_document_has_an_example_that_works(server: Any) -> None:
    document = server.client.get("/openapi.json").json()
    examples = document["components"]["schemas"]["GenerateRequest"]["examples"]
    assert examples
    for example in examples:
        assert server.generate({**example, "latency_ms": 30_000}).status_code == 200
    answers = document["paths"]["/v1/generate"]["post"]["responses"]
    bare = {"image/png", "image/jpeg", "image/webp", "application/x-safetensors"}
    assert set(answers["200"]["content"]) == {"application/json", *bare}
    assert set(answers) == {"200", "400", "404", "406", "413", "415", "422", "500", "503", "504"}


def test_the_examples_can_be_planned_and_the_statuses_of_a_plan_are_documented(server: Any) -> None:
    document = server.client.get("/openapi.json").json()
    for example in document["components"]["schemas"]["GenerateRequest"]["examples"]:
        assert server.client.post("/v1/plan", json=example).status_code == 200
    answers = document["paths"]["/v1/plan"]["post"]["responses"]
    assert set(answers) == {"200", "400", "404", "413", "415", "422", "503"}


def test_the_examples_for_openai_s_route_work_and_its_statuses_are_documented(server: Any) -> None:
    document = server.client.get("/openapi.json").json()
    examples = document["components"]["schemas"]["ImagesRequest"]["examples"]
    assert examples
    for example in examples:
        assert server.client.post("/v1/images/generations", json=example).status_code == 200
    answers = document["paths"]["/v1/images/generations"]["post"]["responses"]
    assert set(answers) == {"200", "400", "404", "413", "415", "500", "503", "504", "default"}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (Settings(model="garden64", random_weights="elit-dit-b/2"), "random_weights"),
        (Settings(model="garden64", resolution=512), "resolution"),
        (Settings(random_weights="elit-dit-b/2", resolution=100), "resolution"),
        (Settings(random_weights="elit-dit-z/2"), "model"),
    ],
)
def test_random_weights_go_with_a_preset_a_resolution_and_no_model(settings: Settings, field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        load_and_measure(settings)
    assert refusal.value.field == field


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(InvalidInput) as refusal:
        bind("127.0.0.1", other.getsockname()[1])
    assert refusal.value.field == "port"


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(InvalidInput) as refusal:
        bind("192.0.2.1", 0)
    assert refusal.value.field == "host"


def test_the_serve_command_says_its_url_and_serves_until_interrupted(tiny_model_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "elit_serve.cli", "serve", str(tiny_model_dir), "--port", "0", "--threads", "1"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        line = run.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + (run.stderr.read() if run.stderr else "")
        assert httpx.get(f"{found[0]}/health").status_code == 200
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=300)
        assert run.returncode == 0
        lines = errors.splitlines()
        assert all("elit_serve.engine.profile.profiler: measuring" in line for line in lines), (
            "only that a first start measures"
        )


def test_a_missing_model_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "elit_serve.cli", "serve", str(tmp_path / "none"), "--port", "0"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("error: model: ")
    assert run.stderr.count("\n") == 1
