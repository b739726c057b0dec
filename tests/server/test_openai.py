"""OpenAI's own client, as it comes from the registry, against a real server."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from elit_serve.clock import MonotonicClock
from elit_serve.engine.executor.slots import Executor, RunningStep
from elit_serve.engine.picture import Picture
from elit_serve.http.access import AccessTable, access
from elit_serve.pictures import read_facts
from elit_serve.plans.step_kind import StepKind
from elit_serve.server.middleware import error_answers
from elit_serve.server.middleware.request_context import RequestContext
from elit_serve.server.settings import Settings

pytestmark = pytest.mark.made_by("worker", "fleet")


def client_of(server: Any) -> OpenAI:
    plain = openai.DefaultHttpxClient(verify=False)  # reads no certificates: many begin
    return OpenAI(base_url=f"{server.url}/v1", api_key="none is needed", max_retries=0, timeout=60, http_client=plain)


@pytest.fixture
def client(server: Any) -> Iterator[OpenAI]:
    with client_of(server) as made:
        yield made


def file_of(image: Any) -> bytes:
    return base64.b64decode(image.b64_json)


def test_the_official_client_gets_its_pictures(client: OpenAI) -> None:
    answer = client.images.generate(
        model="tiny",
        prompt="tulip",
        n=2,
        size="32x32",
        quality="auto",
        background="auto",
        moderation="auto",
        response_format="b64_json",
        output_format="webp",
        user="somebody",
    )
    assert abs(answer.created - time.time()) < 60
    assert (answer.output_format, answer.size, answer.background) == ("webp", "32x32", "opaque")
    assert answer.quality == "high"
    assert answer.data is not None
    assert len({file_of(image) for image in answer.data}) == 2
    for image in answer.data:
        with Image.open(io.BytesIO(file_of(image))) as picture:
            assert (picture.format, picture.size) == ("WEBP", (32, 32))
        facts = read_facts(file_of(image))
        assert facts is not None
        assert facts["label"] == "tulip"


def test_only_a_prompt_is_needed_and_it_may_be_a_class_id(client: OpenAI) -> None:
    (image,) = client.images.generate(prompt="2").data or []
    facts = read_facts(file_of(image))
    assert facts is not None
    assert facts["label"] == "tulip"


def test_the_elastic_fields_travel_in_the_extra_body(server: Any, client: OpenAI) -> None:
    wishes = {"seed": 3, "budget": 0.5, "latency_ms": 30_000, "guidance": {"scale": 3.0}}
    answer = client.images.generate(prompt="rose", extra_body=wishes)
    (image,) = answer.data or []
    same = server.generate({"label": "rose", **wishes}).json()
    assert image.b64_json == same["images"][0]["b64_json"]
    assert image.levels == [2, 2, 2, 2]
    assert answer.quality == "medium"
    assert answer.elit["promised"] is answer.elit["deadline_met"] is True
    assert set(answer.elit) == set(same) - {"images"}


def test_a_url_holds_the_picture_itself(client: OpenAI) -> None:
    asked: dict[str, Any] = {"output_format": "webp", "extra_body": {"seed": 3}}
    (linked,) = client.images.generate(prompt="rose", response_format="url", **asked).data or []
    (image,) = client.images.generate(prompt="rose", response_format="b64_json", **asked).data or []
    assert linked.b64_json is None
    assert linked.url == f"data:image/webp;base64,{image.b64_json}"
    assert linked.seed == image.seed == 3


@pytest.mark.parametrize(("budget", "level", "quality"), [(0.25, 1, "low"), (0.5, 2, "medium"), (0.75, 3, "medium")])
def test_usage_counts_latent_tokens(client: OpenAI, budget: float, level: int, quality: str) -> None:
    """A picture of 32 x 32 pixels has 64 tokens: 16 groups of 4."""
    answer = client.images.generate(prompt="rose", n=2, extra_body={"budget": budget})
    assert [image.level for image in answer.data or []] == [level, level]
    assert answer.quality == quality
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (1, 2 * 16 * level)
    assert answer.usage.total_tokens == 1 + 2 * 16 * level


@pytest.mark.parametrize(("quality", "lowest"), [("low", 1), ("medium", 2), ("high", 4), ("standard", 2), ("hd", 4)])
def test_quality_is_a_floor_and_the_answer_says_what_was_reached(client: OpenAI, quality: Any, lowest: int) -> None:
    """All steps at a level take half a second for it, and the answer one; what is promised keeps something to spare.
    Steps are done sooner than that, so there is time for more and more."""
    asked: dict[str, Any] = {"prompt": "rose", "quality": quality}
    at_ease = client.images.generate(**asked, extra_body={"latency_ms": 3_600_000})
    assert [(image.level, at_ease.quality) for image in at_ease.data or []] == [(4, "high")]
    hurried = client.images.generate(**asked, extra_body={"latency_ms": 1400 + 500 * lowest})
    (image,) = hurried.data or []
    assert image.levels[0] == lowest == min(image.levels)
    assert hurried.quality == ("low" if image.level < 2 else "medium" if image.level < 4 else "high")
    with pytest.raises(openai.BadRequestError, match="smallest feasible"):
        client.images.generate(**asked, extra_body={"latency_ms": 900 + 500 * lowest})


def test_compression_is_the_size_of_the_file(client: OpenAI) -> None:
    sizes = []
    for compression in (5, 60, 100):
        asked: dict[str, Any] = {"output_format": "jpeg", "output_compression": compression}
        (image,) = client.images.generate(prompt="rose", extra_body={"seed": 1}, **asked).data or []
        sizes.append(len(file_of(image)))
    assert sizes == sorted(set(sizes))


def test_a_png_takes_the_compression_that_loses_nothing(client: OpenAI) -> None:
    assert client.images.generate(prompt="rose", output_compression=100).output_format == "png"


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    # arguments beside the prompt, param, code, a part of the message
    ({"prompt": "tulpi"}, "prompt", "invalid_value", "tulip"),
    ({"prompt": "a red rose"}, "prompt", "invalid_value", "rose"),
    ({"prompt": "3"}, "prompt", "invalid_value", "from 0 to 2"),
    ({"prompt": 3}, "prompt", "invalid_type", "valid string"),
    ({"size": "1024x1024"}, "size", "invalid_value", "auto, or a size that is served: 32x32"),
    ({"n": 0}, "n", "invalid_value", "greater than or equal to 1"),
    ({"n": 5}, "n", "invalid_value", "between 1 and 4"),
    ({"quality": "best"}, "quality", "invalid_value", "'low'"),
    ({"quality": "low", "extra_body": {"budget": 1}}, "quality", "invalid_value", "budget says it already"),
    ({"quality": "low", "extra_body": {"min_quality": 0.5}}, "quality", "invalid_value", "min_quality says it already"),
    ({"quality": "hd", "extra_body": {"max_budget": 0.5}}, "quality", "invalid_value", "below max_budget, 0.5"),
    ({"response_format": "url", "stream": True}, "response_format", "invalid_value", "b64_json with stream"),
    ({"output_format": "svg"}, "output_format", "invalid_value", "'png'"),
    ({"output_compression": 50}, "output_compression", "invalid_value", "jpeg or webp"),
    ({"background": "transparent"}, "background", "invalid_value", "'opaque'"),
    ({"partial_images": 2}, "partial_images", "invalid_value", "stream is not true"),
    ({"stream": True, "partial_images": 4}, "partial_images", "invalid_value", "less than or equal to 3"),
    ({"style": "vivid"}, "style", "unknown_parameter", "no such field"),
    ({"extra_body": {"bugdet": 1}}, "bugdet", "unknown_parameter", "did you mean budget?"),
    ({"extra_body": {"label": "rose"}}, "label", "unknown_parameter", "no such field"),
    ({"extra_body": {"budget": 2}}, "budget", "invalid_value", "less than or equal to 1"),
    ({"extra_body": {"latency_ms": 1}}, "latency_ms", "infeasible", "smallest feasible"),
]


@pytest.mark.parametrize(("changes", "param", "code", "message"), REFUSED, ids=lambda part: str(part)[:40])
def test_what_cannot_be_asked_is_a_bad_request_that_names_what_can(
    client: OpenAI, changes: dict[str, Any], param: str, code: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(**{"prompt": "tulip", **changes})
    error = refused.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert message in str(error)


def test_an_infeasible_target_says_which_one_would_do(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="rose", extra_body={"latency_ms": 100})
    assert isinstance(refused.value.body, dict)
    assert 1500 < refused.value.body["min_latency_ms"] < 3000


def test_another_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny") as refused:
        client.images.generate(model="gpt-image-1", prompt="rose")
    assert (refused.value.param, refused.value.code) == ("model", "model_not_found")


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    (error,) = answer.json().values()
    assert {"message", "type", "param", "code"} == set(error)
    return dict(error)


def test_every_error_of_these_routes_has_openai_s_shape(server: Any) -> None:
    path = "/v1/images/generations"
    assert error_of(server.client.get(path), 405)["code"] == "method_not_allowed"
    assert error_of(server.client.post("/v1/images/edits", json={}), 404)["code"] == "not_found"
    cut_off = server.client.post(path, content=b"{", headers={"Content-Type": "application/json"})
    assert "not JSON" in error_of(cut_off, 400)["message"]
    assert error_of(server.client.post(path, json={}), 400)["code"] == "missing_required_parameter"
    assert error_of(server.client.post(path, content=b" " * (2 << 20)), 413)["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("status", "error", "kind", "code"),
    [
        (401, openai.AuthenticationError, "invalid_request_error", "invalid_api_key"),
        (403, openai.PermissionDeniedError, "invalid_request_error", "permission_denied"),
        (429, openai.RateLimitError, "rate_limit_error", "rate_limit_exceeded"),
    ],
)
def test_refusals_by_status_are_openai_s_and_keep_their_headers(
    start_http: Any, status: int, error: type[openai.APIStatusError], kind: str, code: str
) -> None:
    app = FastAPI()
    error_answers.install(app)

    @app.post("/v1/images/generations")
    @access(needs="nothing", errors="openai")
    def refuse() -> None:
        raise HTTPException(status, "no", headers={"Retry-After": "7"})

    app.add_middleware(RequestContext, access=AccessTable(app.routes), clock=MonotonicClock())

    given = TestClient(app).post("/v1/images/generations")
    url = start_http(lambda *_: (given.status_code, dict(given.headers), given.content))
    with (
        OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(error) as refused,
    ):
        client.images.generate(prompt="rose")
    assert (refused.value.type, refused.value.code) == (kind, code)
    assert refused.value.response.headers["Retry-After"] == "7"


def streamed(client: OpenAI, **arguments: Any) -> list[Any]:
    with client.images.generate(prompt="rose", stream=True, **arguments) as events:
        return list(events)


def test_a_stream_shows_what_the_picture_is_becoming(client: OpenAI) -> None:
    asked: dict[str, Any] = {"output_format": "webp", "extra_body": {"seed": 3, "steps": 8, "budget": 0.25}}
    *partial, end = streamed(client, partial_images=3, **asked)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 3
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    assert end.type == "image_generation.completed"
    for event in (*partial, end):
        assert (event.size, event.background, event.output_format) == ("32x32", "opaque", "webp")
        assert abs(event.created_at - time.time()) < 60
        with Image.open(io.BytesIO(file_of(event))) as picture:
            assert (picture.format, picture.size) == ("WEBP", (32, 32))
    assert [event.quality for event in (*partial, end)] == ["auto", "auto", "auto", "low"]
    assert len({file_of(event) for event in (*partial, end)}) == 4
    whole = client.images.generate(prompt="rose", **asked)
    assert whole.data is not None
    assert end.b64_json == whole.data[0].b64_json
    assert whole.usage is not None
    assert end.usage.output_tokens == whole.usage.output_tokens
    assert (end.seed, end.levels) == (3, [1] * 8)


def test_a_stream_of_several_says_which_picture_each_event_is_of(client: OpenAI) -> None:
    events = streamed(client, n=2, partial_images=1, extra_body={"seed": 3, "levels": [1, 4, 4, 4]})
    assert [(event.type.rpartition(".")[2], event.seed) for event in events[2:]] == [("completed", 3), ("completed", 4)]
    assert {(event.type.rpartition(".")[2], event.seed) for event in events[:2]} == {
        ("partial_image", 3),
        ("partial_image", 4),
    }
    assert len({event.b64_json for event in events}) == 4
    assert [event.levels for event in events[2:]] == [[1, 4, 4, 4]] * 2


def test_a_stream_without_partial_images_is_one_event(client: OpenAI) -> None:
    assert [event.type for event in streamed(client)] == ["image_generation.completed"]
    assert [event.type for event in streamed(client, partial_images=0)] == ["image_generation.completed"]


def test_the_asynchronous_client_streams_too(server: Any) -> None:
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            events = await client.images.generate(prompt="rose", stream=True, partial_images=1)
            return [event.type async for event in events]

    assert asyncio.run(ask()) == ["image_generation.partial_image", "image_generation.completed"]


def test_what_is_refused_is_refused_before_the_stream_begins(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        streamed(client, extra_body={"latency_ms": 1})
    assert refused.value.code == "infeasible"


class Failing(Executor):
    """Cannot run steps after the first of a picture."""

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if len(pictures[0].levels) > 1:
            raise RuntimeError("this step cannot be run")
        return super().launch(pictures, kind)


def test_what_fails_in_the_middle_is_an_error_of_the_stream(start_server: Any) -> None:
    server = start_server(executor=Failing)
    with client_of(server) as client, pytest.raises(openai.APIError) as failed:
        streamed(client, partial_images=3)
    assert not isinstance(failed.value, openai.APIStatusError), "the stream had begun"
    assert (failed.value.code, failed.value.type) == ("generation_failed", "server_error")
    assert server.metric('elit_generations_total{outcome="failed"}') == 1
    assert server.metric('elit_generations_total{outcome="cancelled"}') == 0


def test_who_leaves_a_stream_frees_the_device(start_server: Any, held: Any, eventually: Any) -> None:
    server = start_server(executor=held)
    try:
        with client_of(server) as client:
            client.images.generate(prompt="rose", stream=True, partial_images=1).close()
        eventually(lambda: server.metric('elit_generations_total{outcome="cancelled"}') == 1)
        assert server.health()["running"] == server.health()["queue_length"] == 0
    finally:
        server.executor.may_run.set()


def test_a_full_queue_is_a_503_after_which_the_client_comes_back_by_itself(
    start_server: Any, held: Any, eventually: Any
) -> None:
    server = start_server(settings=Settings(response_ms=0, max_queue=1), executor=held)

    def refusals() -> float:
        return float(server.metric('elit_refusals_total{reason="queue_full"}'))

    with client_of(server) as client, ThreadPoolExecutor(3) as callers:
        try:
            callers.submit(server.generate, {"label": "rose"})
            eventually(lambda: server.health()["running"] == 1)
            callers.submit(server.generate, {"label": "rose"})
            eventually(lambda: server.health()["queue_length"] == 1)
            with pytest.raises(openai.InternalServerError) as refused:
                client.images.generate(prompt="rose")
            patient = callers.submit(client.with_options(max_retries=5).images.generate, prompt="rose")
            eventually(lambda: refusals() == 2)
        finally:
            server.executor.may_run.set()
        assert patient.result(60).data
    assert (refused.value.status_code, refused.value.code, refused.value.type) == (503, "queue_full", "server_error")
    assert int(refused.value.response.headers["Retry-After"]) >= 1
