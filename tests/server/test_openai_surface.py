"""What OpenAI's client finds beside pictures: models, routes that are not served, and what it may send again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.server.settings import Settings

CHEAP = CostTable(
    steps_ms={(StepKind("32x32", level, weak), 1): 1.0 * level for level in (1, 2, 3, 4) for weak in (None, 1, level)},
    overhead_ms=1.0,
)
SERVED = "GET /v1/models, GET /v1/models/NAME, POST /v1/images/generations"


def client_of(server: Any, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", **{"api_key": "none is needed", "max_retries": 0, **options})


@pytest.fixture
def client(server: Any) -> Iterator[OpenAI]:
    with client_of(server) as made:
        yield made


def test_the_model_is_listed_and_retrieved_by_its_name(client: OpenAI) -> None:
    (listed,) = client.models.list()
    retrieved = client.models.retrieve(listed.id)
    assert retrieved == listed
    assert (listed.id, listed.object, listed.owned_by) == ("tiny", "model", "elit-serve")
    assert 0 <= time.time() - listed.created < 3600


def test_another_model_is_told_which_one_is_served(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has tiny") as refused:
        client.models.retrieve("gpt-image-1")
    assert (refused.value.param, refused.value.code) == ("model", "model_not_found")


UNSERVED: list[Any] = [
    lambda client: client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a tulip"}]),
    lambda client: client.completions.create(model="tiny", prompt="a tulip"),
    lambda client: client.embeddings.create(model="tiny", input="a tulip"),
    lambda client: client.responses.create(model="tiny", input="a tulip"),
    lambda client: client.images.edit(image=b"picture", prompt="tulip"),
    lambda client: client.post("/images/variations", body={"image": "picture"}, cast_to=object),
    lambda client: client.files.list(),
    lambda client: client.audio.speech.create(model="tiny", voice="alloy", input="tulip"),
    lambda client: client.moderations.create(input="tulip"),
    lambda client: client.batches.list(),
]


@pytest.mark.parametrize("call", UNSERVED)
def test_what_is_not_served_says_what_is(client: OpenAI, call: Any) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        call(client)
    assert (refused.value.code, refused.value.type) == ("not_found", "invalid_request_error")
    assert SERVED in refused.value.message


def test_a_method_that_is_not_served_says_which_are(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.models.delete("tiny")
    assert (refused.value.status_code, refused.value.code) == (405, "method_not_allowed")
    assert "GET" in refused.value.response.headers["Allow"]
    assert SERVED in refused.value.message


def test_routes_of_our_own_keep_their_own_shape(server: Any) -> None:
    for path in ("/v1/nothing", "/v1/jobs/" + 32 * "0", "/v1/chats"):
        answer = server.client.get(path)
        assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")


def test_what_came_too_late_is_not_asked_for_again(start_server: Any, held: Any, eventually: Any) -> None:
    """OpenAI's client would repeat any other 5xx by itself."""
    server = start_server(settings=Settings(response_ms=0), executor=held, cost=CHEAP)
    with client_of(server, max_retries=3) as client, ThreadPoolExecutor(1) as callers:
        late = callers.submit(client.images.generate, prompt="rose", extra_body={"latency_ms": 60_000})
        eventually(lambda: server.health()["running"] == 1)
        server.clock.advance(61)  # while the device stands still
        server.executor.may_run.set()
        error = late.exception(60)
    assert isinstance(error, openai.InternalServerError)
    assert (error.status_code, error.code) == (504, "deadline_exceeded")
    assert error.response.headers["x-should-retry"] == "false"
    assert server.metric('elit_requests_total{outcome="expired",route="/v1/images/generations"}') == 1


@pytest.mark.parametrize("prompt", ["Tulip", " TULIP ", "\uff34\uff55\uff4c\uff49\uff50", "tulip"])
def test_a_prompt_names_a_class_in_any_case_and_form_of_unicode(server: Any, prompt: str) -> None:
    """The third is in full-width letters."""
    openai_s = server.client.post("/v1/images/generations", json={"prompt": prompt, "seed": 1})
    ours = [server.generate({field: prompt, "seed": 1}) for field in ("prompt", "label")]
    assert [answer.status_code for answer in (openai_s, *ours)] == [200, 200, 200]
    assert {answer.json()["label"] for answer in ours} | {openai_s.json()["elit"]["label"]} == {"tulip"}


@pytest.mark.parametrize(
    "prompt",
    ["9" * 5000, "-1", "1" * 19, "\u0662", "\u00b2", "\u0301\u0316" * 15_000, "\U0001f337" * 30_000],
    ids=["5000 digits", "negative", "huge", "Arabic digits", "superscript", "combining marks", "pictograms"],
)
def test_a_prompt_that_is_no_class_is_an_error_of_the_caller(server: Any, prompt: str) -> None:
    refused = server.client.post("/v1/images/generations", json={"prompt": prompt})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")


def test_numbers_of_5000_digits_are_errors_of_the_caller_wherever_they_stand(server: Any) -> None:
    digits = "9" * 5000

    def status(method: str, path: str, **options: Any) -> int:
        answer: httpx.Response = server.client.request(method, path, **options)
        return answer.status_code

    assert status("GET", f"/v1/jobs?limit={digits}") == 422
    assert status("GET", f"/v1/jobs/{32 * '0'}/images/{digits}") == 422
    assert status("GET", f"/v1/models/{digits}") == 404
    assert status("POST", "/v1/jobs", json={"label": "rose", "webhook": {"url": f"http://a:{digits}/"}}) == 422
    assert status("POST", "/v1/generate", json={"label": digits}) == 422
    json = {"Content-Type": "application/json"}
    for field in ("label", "seed", "n", "steps", "budget"):
        body = f'{{"label": "rose", "{field}": {digits}}}'
        assert status("POST", "/v1/generate", content=body, headers=json) in (400, 422)
