"""Small pictures of the classes."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image


def url_of(class_id: object, model: str = "tiny") -> str:
    return f"/v1/models/{model}/classes/{class_id}/thumbnail"


def test_a_thumbnail_is_made_once_and_kept(start_server: Any, stepwise: Any) -> None:
    server = start_server(executor=stepwise)
    server.executor.may_run.release(4)  # for one picture and no second
    first = server.client.get(url_of(2))
    assert (first.status_code, first.headers["Content-Type"]) == (200, "image/webp")
    assert first.headers["Cache-Control"].startswith("private, max-age=")
    with Image.open(io.BytesIO(first.content)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (32, 32))
    assert server.client.get(url_of(2)).content == first.content
    assert server.executor.num_launched == 4
    assert server.metric('elit_generations_total{outcome="done"}') == 0, "nobody's request"


def test_one_is_made_at_a_time_however_many_are_asked_for(start_server: Any, stepwise: Any, eventually: Any) -> None:
    server = start_server(executor=stepwise)
    with ThreadPoolExecutor(3) as callers:
        asked = [callers.submit(server.client.get, url_of(class_id)) for class_id in range(3)]
        eventually(lambda: server.health()["running"] == 1)
        assert server.health()["queue_length"] == 0
        server.executor.may_run.release(100)
        assert len({answer.result().content for answer in asked}) == 3


def test_a_thumbnail_yields_to_who_waits_for_a_picture(start_server: Any, stepwise: Any, eventually: Any) -> None:
    server = start_server(executor=stepwise)
    with ThreadPoolExecutor(2) as callers:
        thumbnail = callers.submit(server.client.get, url_of(0))
        eventually(lambda: server.executor.num_launched == 1)
        picture = callers.submit(server.generate, {"label": "rose", "budget": 1})
        eventually(lambda: server.health()["queue_length"] == 1)
        server.executor.may_run.release(5)  # the step that runs, and the picture's four
        assert picture.result().status_code == 200
        assert not thumbnail.done()
        server.executor.may_run.release(100)
        assert thumbnail.result().status_code == 200


def test_what_there_is_not_has_no_thumbnail(server: Any) -> None:
    for path, status, what in (
        (url_of(3), 422, "class ids run from 0 to 2"),
        (url_of("rose"), 422, "class_id"),
        (url_of(0, "huge"), 404, "tiny"),
    ):
        answer = server.client.get(path)
        assert (answer.status_code, what in answer.text) == (status, True), answer.text
