"""Pictures of prompts over real HTTP: what may be asked, what is answered, and who is told."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from text_models import EXAMPLES, MAX_TOKENS, save_text_model

from elit_serve.catalogue import cost_table
from elit_serve.client import Client, Generation
from elit_serve.clock import MonotonicClock
from elit_serve.engine.conditions import TextCondition
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.texts import text_times
from elit_serve.engine.text_encoders.transformers import TransformersEncoder
from elit_serve.errors import InvalidInput
from elit_serve.files.latency import read_latency
from elit_serve.pictures import read_facts
from elit_serve.plans.bounds import MAX_PROMPT
from elit_serve.server.settings import Settings
from tests.serving import COST, AsPredicted, RunningServer, running
from tests.simulating import latency as paper_latency

pytestmark = pytest.mark.made_by("worker", "fleet")

ROSE = {"prompt": "a rose", "negative_prompt": "thorns", "seed": 7, "budget": 1}


def served(painter: Pipeline, made_by: str, **settings: Any) -> Any:
    chosen = Settings(response_ms=0, **settings)
    return running(painter, chosen, AsPredicted(painter, num_slots=chosen.max_queue + 64), COST, made_by)


@pytest.fixture(scope="module")
def server(painter: Pipeline, made_by: str) -> Iterator[RunningServer]:
    with served(painter, made_by) as started:
        yield started


def picture_of(answer: Any) -> bytes:
    return base64.b64decode(answer.json()["images"][0]["b64_json"])


def test_a_prompt_becomes_a_picture_that_can_be_made_again(server: RunningServer, assert_same_picture: Any) -> None:
    answer = server.generate(ROSE)
    facts = read_facts(picture_of(answer))
    told = {"prompt": "a rose", "negative_prompt": "thorns"}
    assert facts is not None
    assert {name: answer.json()[name] for name in told} == {name: facts[name] for name in told} == told
    assert answer.json()["label"] is answer.json()["class_id"] is None
    plan = server.pipeline.plan(budget=1)
    alone = server.pipeline.run([TextCondition("a rose", "thorns")], [7], plan)[0]
    assert_same_picture(picture_of(answer), alone.image)


def test_what_is_said_is_what_is_made(server: RunningServer) -> None:
    asked = [ROSE, {**ROSE, "prompt": "a tulip"}, {**ROSE, "negative_prompt": "petals"}]
    with ThreadPoolExecutor() as callers:
        files = [picture_of(answer) for answer in callers.map(server.generate, asked)]
    assert len({json.dumps(read_facts(file)) for file in files}) == 3
    assert len(set(map(_pixels, files))) == 3


def _pixels(file: bytes) -> bytes:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(file)).convert("RGB").tobytes()


@pytest.mark.parametrize("prompt", ["", "x" * 10_000, "牡丹 и роза", "rose\0\x07\n\u202e", "👩‍🌾"])
def test_any_text_is_answered(server: RunningServer, prompt: str) -> None:
    answer = server.generate({"prompt": prompt, "budget": 0.25})
    assert (answer.status_code, answer.json()["prompt"]) == (200, prompt)
    facts = read_facts(picture_of(answer))
    assert facts is not None
    assert facts["prompt"] == prompt


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"prompt": "rose", "negative_prompt": "x" * 10_001}, "negative_prompt"),
        ({"label": 1}, "label"),
        ({"label": "rose"}, "label"),
        ({"label": "rose", "prompt": "rose"}, "prompt"),
        ({}, "prompt"),
        ({"negative_prompt": "thorns"}, "prompt"),
        (
            {"prompt": "rose", "negative_prompt": "thorns", "guidance": {"method": "none"}},
            "these pictures are not guided",
        ),
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["rose"]}, "prompt"),
    ],
)
def test_what_is_no_prompt_is_refused(server: RunningServer, body: dict[str, Any], field: str) -> None:
    for path in ("/v1/generate", "/v1/plan", "/v1/jobs"):
        refused = server.client.post(path, json=body)
        assert (refused.status_code, len(refused.content) < 3000) == (422, True)
        assert field in refused.text


def test_half_a_character_is_refused(server: RunningServer) -> None:
    body = b'{"prompt": "rose \\ud83d"}'
    refused = server.client.post("/v1/generate", content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code in (400, 422)


def test_a_class_model_has_no_negative_prompts(start_server: Any) -> None:
    refused = start_server().generate({"prompt": "rose", "negative_prompt": "thorns"})
    assert (refused.status_code, "negative_prompt" in refused.text) == (422, True)


def test_a_bare_picture_has_no_prompt_in_its_headers(server: RunningServer) -> None:
    answer = server.generate({**ROSE, "prompt": "x" * 9000}, accept="image/png")
    assert answer.status_code == 200
    assert not {"x-elit-prompt", "x-elit-label"} & set(answer.headers)
    with Client(server.url) as client:
        bare = client.generate(prompt="a rose", seed=1, budget=0.25, accept="image/png")
    assert (bare.label, bare.prompt) == (None, None)


def test_openais_route_takes_any_prompt(server: RunningServer) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none is needed", max_retries=0, timeout=60)
    beside = {name: ROSE[name] for name in ("negative_prompt", "seed", "budget")}
    (image,) = client.images.generate(prompt="a rose", extra_body=beside).data or []
    assert base64.b64decode(image.b64_json or "") == picture_of(server.generate(ROSE))
    with pytest.raises(Exception, match="prompt"):
        client.images.generate(prompt="x" * 20_000)


def test_a_job_keeps_its_prompt_and_is_stored_once(server: RunningServer, eventually: Any) -> None:
    ids = [
        server.client.post("/v1/jobs", json=ROSE, headers={"Idempotency-Key": "rose"}).json()["id"] for _ in range(2)
    ]
    assert ids[0] == ids[1]
    eventually(lambda: server.client.get(f"/v1/jobs/{ids[0]}").json()["state"] == "done")
    job = server.client.get(f"/v1/jobs/{ids[0]}").json()
    assert job["request"]["prompt"] == job["result"]["prompt"] == "a rose"
    assert server.client.get(f"/v1/jobs/{ids[0]}/images/0").content == picture_of(server.generate(ROSE))
    other = {**ROSE, "prompt": "a tulip"}
    assert server.client.post("/v1/jobs", json=other, headers={"Idempotency-Key": "rose"}).status_code == 422


def test_the_client_asks_by_prompt(server: RunningServer) -> None:
    with Client(server.url) as client:
        assert client.plan(prompt="a rose", negative_prompt="thorns").prompt == "a rose"
        made = client.generate(**ROSE)
        *_, streamed = client.stream(**ROSE)
        (model,) = client.models()
    assert (made.prompt, made.negative_prompt, made.label) == ("a rose", "thorns", None)
    assert isinstance(streamed, Generation)
    assert streamed.images[0].data == made.images[0].data
    assert model.classes == ()
    assert model.prompts is not None
    assert (model.prompts.negative, model.prompts.max_tokens, model.prompts.examples) == (True, MAX_TOKENS, EXAMPLES)


def test_many_prompts_at_once_are_all_made(server: RunningServer) -> None:
    asked = [{"prompt": f"rose {number}", "seed": 1, "steps": 1, "budget": 0.25} for number in range(60)]
    with ThreadPoolExecutor(30) as callers, Client(server.url) as client:
        made = list(callers.map(lambda body: client.generate(**body), asked))
    assert [each.prompt for each in made] == [body["prompt"] for body in asked]


def test_an_encoder_that_fails_fails_its_pictures_alone(server: RunningServer, monkeypatch: Any) -> None:
    encode = TransformersEncoder.encode

    def broken(self: TransformersEncoder, prompts: list[str]) -> Any:
        if "a trap" in prompts:
            raise RuntimeError("no memory")
        return encode(self, prompts)

    monkeypatch.setattr(TransformersEncoder, "encode", broken)
    assert server.generate({"prompt": "a trap"}).status_code == 500
    assert server.generate({"prompt": "a field"}).status_code == 200


@pytest.mark.parametrize(("log_prompts", "shown"), [("off", "a prompt"), ("on", "a secret rose")])
def test_others_see_a_prompt_only_where_settings_say_so(
    painter: Pipeline, start_server: Any, held: Any, eventually: Any, log_prompts: str, shown: str
) -> None:
    server = start_server(painter, Settings(response_ms=0, log_prompts=log_prompts), held)
    with ThreadPoolExecutor() as callers:
        answer = callers.submit(server.generate, {"prompt": "a secret rose"})
        eventually(lambda: bool(server.client.get("/load").json()["in_flight"]))
        assert server.client.get("/load").json()["in_flight"][0]["label"] == shown
        server.executor.may_run.set()
        assert answer.result().json()["prompt"] == "a secret rose"


def test_files_may_be_told_to_hold_no_prompts(painter: Pipeline, made_by: str) -> None:
    with served(painter, made_by, prompts_in_files="off") as server:
        answer = server.generate(ROSE)
    facts = read_facts(picture_of(answer))
    assert facts is not None
    assert facts["seed"] == 7
    assert b"thorns" not in picture_of(answer)
    assert not {"prompt", "negative_prompt"} & facts.keys()
    assert answer.json()["prompt"] == "a rose"


def test_no_log_line_and_no_arrival_holds_a_prompt(
    painter: Pipeline, made_by: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="elit_serve")
    with served(painter, made_by, arrival_log=str(tmp_path / "arrivals.jsonl")) as server:
        server.generate({"prompt": "a secret rose"})
        server.generate({"prompt": "a secret rose", "negative_prompt": "x" * 10_001})
    assert "secret" not in caplog.text
    (line,) = (tmp_path / "arrivals.jsonl").read_text(encoding="utf-8").splitlines()
    assert "secret" not in line
    assert json.loads(line)["class_id"] is None


def test_a_model_without_negatives_says_so(tmp_path: Path, painter: Pipeline) -> None:  # noqa: ARG001 (the table)
    other = Pipeline.load(save_text_model(tmp_path / "painter", negative=False), device="cpu")
    with pytest.raises(InvalidInput, match="painter knows no negative prompts"):
        other.conditions.prompted("rose", "thorns")
    rose, tulip = (other.run([TextCondition(words)], [1], other.plan())[0].image for words in ("a rose", "a tulip"))
    assert rose.tobytes() != tulip.tobytes()


def test_a_prompt_that_is_not_known_takes_its_time_before_a_promise(painter: Pipeline) -> None:
    settings, cost = Settings(response_ms=0), replace(COST, text_ms=500)
    executor = AsPredicted(painter, num_slots=128)
    with running(painter, settings, executor, cost) as server:
        assert server.generate({**ROSE, "prompt": "known words"}).status_code == 200
        known, new = (
            server.client.post("/v1/plan", json={**ROSE, "prompt": prompt, "latency_ms": 60_000}).json()["course"]
            for prompt in ("known words", "new words")
        )
        assert new["latency_ms"] - known["latency_ms"] == pytest.approx(500, abs=50)
        refused = server.generate({**ROSE, "prompt": "other words", "latency_ms": known["latency_ms"] + 400})
        assert (refused.status_code, refused.json()["min_latency_ms"] > known["latency_ms"] + 400) == (422, True)


def test_how_long_prompts_take_is_measured_with_the_longest_and_read_again(
    painter: Pipeline, tmp_path: Path, monkeypatch: Any
) -> None:
    encode, lengths = TransformersEncoder.encode, set()

    def watched(self: TransformersEncoder, prompts: list[str]) -> Any:
        lengths.update(map(len, prompts))
        return encode(self, prompts)

    monkeypatch.setattr(TransformersEncoder, "encode", watched)
    measured = text_times(painter, clock=MonotonicClock(), repeats=1)
    assert all(took_ms > 0 for took_ms in measured.values())
    assert lengths == {MAX_PROMPT}
    latency = paper_latency().model_copy(update={"text_ms": {1: 3.0, 8: 8.0}})
    (tmp_path / "x.json").write_text(latency.model_dump_json(), encoding="utf-8")
    assert cost_table(read_latency(tmp_path / "x.json")).text_ms == 3.0
