"""What pictures cost: in every answer, and summed by key."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from elit_serve.engine.pipeline import Pipeline
from elit_serve.nn.flops import step_flops
from elit_serve.pictures import read_facts
from elit_serve.plans.step_kind import StepKind
from elit_serve.server.keys import digest_of, make_key
from elit_serve.server.settings import Settings
from tests.serving import COST

pytestmark = pytest.mark.made_by("worker", "fleet")


def gflops_of(pipeline: Pipeline, *kinds: tuple[int, int | None]) -> float:
    """Of steps: (level, weak level) each."""
    return sum(step_flops(pipeline.spec, StepKind("32x32", level, weak)) for level, weak in kinds) / 1e9


@pytest.fixture
def shared(start_server: Any) -> Any:
    """A server with the keys `one` and `other`."""

    def start(folder: Path, **settings: Any) -> Any:
        keys = [make_key(name, {"sha256": digest_of(name), "scopes": ["admin"]}) for name in ("one", "other")]
        (folder / "keys.toml").write_text("\n".join(key.line() for key in keys))
        return start_server(settings=Settings(keys_file=str(folder / "keys.toml"), response_ms=0, **settings))

    return start


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def test_steps_count_as_they_were_run(server: Any) -> None:
    """Guided only in the second half, by a weak pass at level 1; decoding takes time on the device as well."""
    body = {"label": "rose", "levels": [4, 2, 2, 4], "guidance": {"interval": [0.5, 1]}}
    answer = server.generate(body).json()
    (image,) = answer["images"]
    expected = gflops_of(server.pipeline, (4, None), (2, None), (2, 1), (4, 1))
    assert answer["gflops"] == image["gflops"] == pytest.approx(expected, abs=1e-3)
    stepping_ms = sum(COST.step_ms(StepKind("32x32", level, 1), 1) for level in body["levels"])
    assert stepping_ms < image["device_ms"] < stepping_ms + 1000


def test_a_launch_is_shared_by_those_in_it(server: Any) -> None:
    """Two pictures in a step take twice as long, so each costs what it costs alone."""
    alone, both = (server.generate({"label": "rose", "seed": 3, "budget": 0.5, "n": n}).json() for n in (1, 2))
    for image in both["images"]:
        assert image["gflops"] == alone["gflops"]
        assert 1000 < image["device_ms"] < 2000
    assert both["gflops"] == pytest.approx(2 * alone["gflops"], abs=1e-3)
    assert both["device_ms"] == pytest.approx(sum(image["device_ms"] for image in both["images"]), abs=0.01)


def test_the_file_has_the_part_that_is_always_the_same(server: Any) -> None:
    first, again = (server.generate({"label": "rose", "seed": 3, "budget": 0.5}).json()["images"][0] for _ in range(2))
    assert first["b64_json"] == again["b64_json"]
    facts = read_facts(base64.b64decode(first["b64_json"]))
    assert facts is not None
    assert facts["gflops"] == first["gflops"]
    assert "device_ms" not in facts


def test_openai_s_usage_has_it_and_so_has_each_picture_of_a_stream(server: Any) -> None:
    ask = {"prompt": "rose", "seed": 3, "n": 2, "budget": 0.5}
    answer = server.client.post("/v1/images/generations", json=ask).json()
    usage = answer["usage"]
    assert (usage["gflops"], usage["device_ms"]) == (answer["elit"]["gflops"], answer["elit"]["device_ms"])
    assert usage["gflops"] == pytest.approx(sum(image["gflops"] for image in answer["data"]), abs=1e-3)
    assert usage["output_tokens_details"]["image_tokens"] == usage["output_tokens"]


def test_previews_cost_time_and_no_operations(server: Any) -> None:
    body = {"label": "rose", "seed": 3, "budget": 0.5, "previews": 3}
    job = server.client.post("/v1/jobs", json=body).json()
    with server.client.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
        events.read()
    result = server.client.get(f"/v1/jobs/{job['id']}").json()["result"]
    alone = server.generate({"label": "rose", "seed": 3, "budget": 0.5}).json()
    assert result["gflops"] == result["images"][0]["gflops"] == alone["gflops"]
    assert result["device_ms"] == result["images"][0]["device_ms"] > 1000


def test_costs_are_summed_by_key(shared: Any, tmp_path: Path, eventually: Any) -> None:
    server = shared(tmp_path)
    costs = {}
    for name, n in (("one", 1), ("other", 2)):
        body = {"label": "rose", "budget": 0.5, "n": n}
        costs[name] = server.client.post("/v1/generate", json=body, headers=bearer(name)).json()
    gflops = sum(answer["gflops"] for answer in costs.values())

    def totals() -> Any:
        return server.client.get("/load", headers=bearer("one")).json()["totals"]

    eventually(lambda: totals()["gflops"] == pytest.approx(gflops, abs=2e-3))  # replicas tell it four times a second
    load = totals()
    assert set(load["spent"]) == {"one", "other"}
    for name, answer in costs.items():
        assert load["spent"][name]["gflops"] == pytest.approx(answer["gflops"], abs=1e-3)
        assert load["spent"][name]["device_s"] == pytest.approx(answer["device_ms"] / 1000, abs=1e-3)
    server.client.headers.update(bearer("one"))
    assert server.metric('elit_device_seconds_total{key="other"}') == pytest.approx(load["spent"]["other"]["device_s"])
    assert server.metric('elit_flops_total{key="other"}') == pytest.approx(1e9 * load["spent"]["other"]["gflops"], 1e-3)
    assert server.metric('elit_flops_total{key="(no key)"}') == 0


def test_what_was_given_up_was_spent_all_the_same(start_server: Any, stepwise: Any, eventually: Any) -> None:
    server = start_server(executor=stepwise)
    job = server.client.post("/v1/jobs", json={"label": "rose", "budget": 0.5}).json()
    server.executor.may_run.release(2)
    eventually(lambda: server.executor.num_launched == 3)
    server.client.delete(f"/v1/jobs/{job['id']}")
    server.executor.may_run.release()
    eventually(lambda: server.health()["running"] == 0)
    spent = 1e9 * gflops_of(server.pipeline, *[(2, 1)] * 3)
    eventually(lambda: server.metric('elit_flops_total{key="(no key)"}') == pytest.approx(spent))
    assert server.metric("elit_pictures_total") == 0
