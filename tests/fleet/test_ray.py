"""Replicas that Ray Serve runs: real processes behind a real server."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fleet_process import Served, command_of, descendants, read, serving_fleet

from tests.simulating import latency

pytestmark = [pytest.mark.slow, pytest.mark.quiet]  # a Ray of two replicas takes half a minute to start

BODY = {"label": "tulip", "seed": 7, "budget": 0.5}


def listening(pids: list[int]) -> list[str]:
    """The addresses on which these processes accept connections, in hexadecimal as /proc has them."""
    links = [read_link(link) for pid in pids for link in Path(f"/proc/{pid}/fd").glob("*")]
    inodes = {found[1] for link in links if (found := re.fullmatch(r"socket:\[(\d+)\]", link))}
    lines = [line.split() for name in ("tcp", "tcp6") for line in read(Path(f"/proc/net/{name}")).decode().splitlines()]
    return [fields[1].split(":")[0] for fields in lines if fields[3] == "0A" and fields[9] in inodes]


def read_link(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


@pytest.fixture(scope="module")
def served(shared_tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("fleet")
    with serving_fleet(folder, shared_tiny_model_dir, "--replicas", "2", "--device", "cpu", "--threads", "1") as fleet:
        assert "tiny on 2 replicas" in fleet.line
        yield fleet


def test_pictures_are_those_of_a_server_without_replicas(served: Served, tiny_server_url: str) -> None:
    with ThreadPoolExecutor(4) as callers:
        pictures = set(callers.map(lambda _: served.picture(BODY), range(8)))
    alone = httpx.post(f"{tiny_server_url}/v1/generate", json=BODY, headers={"Accept": "image/png"}, timeout=60)
    assert pictures == {alone.content}


def test_refusals_are_those_of_a_server_without_replicas(served: Served, tiny_server_url: str) -> None:
    def told(url: str) -> dict[str, Any]:
        answer = httpx.post(f"{url}/v1/generate", json={**BODY, "latency_ms": 0.5}, timeout=60)
        assert answer.status_code == 422
        return {name: value for name, value in answer.json().items() if name not in ("request_id", "min_latency_ms")}

    def shape(problem: dict[str, Any]) -> str:
        """Without numbers that differ from one moment to the next."""
        pace = r"(, while steps take [\d.]+ times what was measured)?"
        return re.sub(rf"value here is \d+{pace}", "value here is N", repr(problem))

    assert shape(told(str(served.client.base_url))) == shape(told(tiny_server_url))


def test_both_replicas_work_and_everything_that_they_do_is_counted(served: Served) -> None:
    before = all_counted(served)
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda seed: served.picture({"label": "rose", "seed": seed}), range(16)))
    eventually(lambda: counted(served) == before + 16)
    assert served.client.get("/health").json()["status"] == "ok"


def test_a_stream_shows_previews(served: Served) -> None:
    body = {"prompt": "tulip", "stream": True, "partial_images": 2}
    with served.client.stream("POST", "/v1/images/generations", json=body) as answer:
        events = [line for line in answer.iter_lines() if line.startswith("event:")]
    assert len([event for event in events if "partial_image" in event]) == 2
    assert events[-1].endswith("completed")


def test_a_caller_who_leaves_frees_the_replica(served: Served) -> None:
    with pytest.raises(httpx.ReadTimeout):
        served.client.post("/v1/generate", json={"label": "rose", "n": 16, "steps": 50, "budget": 1.0}, timeout=0.2)
    eventually(lambda: served.client.get("/load").json()["server_load"] == 0)


def test_no_address_is_opened_but_the_one_that_is_named(served: Served) -> None:
    addresses = listening([served.process.pid, *descendants(served.process.pid)])
    assert len(addresses) > 3
    assert set(addresses) <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_a_killed_replica_is_replaced_and_nobody_waits_for_it(served: Served) -> None:
    first = served.picture(BODY)
    replicas = served.replicas()
    assert len(replicas) == 2
    with ThreadPoolExecutor(8) as callers:
        answers = [callers.submit(served.picture, BODY) for _ in range(8)]
        os.kill(replicas[0], signal.SIGKILL)
        assert {answer.result(60) for answer in answers} == {first}
    eventually(lambda: len(set(served.replicas()) - {replicas[0]}) == 2)
    eventually(lambda: served.client.get("/metrics").text.count("elit_replica_ready{") == 2)
    assert served.picture(BODY) == first


def test_a_replica_that_hangs_is_passed_over(served: Served) -> None:
    first, hanging = served.picture(BODY), served.replicas()[0]
    os.kill(hanging, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(4) as callers:
            assert set(callers.map(lambda _: served.picture(BODY), range(8))) == {first}
    finally:
        os.kill(hanging, signal.SIGCONT)


def test_it_ends_as_it_is_told_and_leaves_nothing_behind(served: Served) -> None:
    started = descendants(served.process.pid)
    served.process.terminate()
    assert served.process.wait(60) == 0, served.log.read_text(encoding="utf-8")
    eventually(lambda: not any(b"ray" in command_of(pid) for pid in started))


def test_several_processes_are_one_server(shared_tiny_model_dir: Path, tmp_path: Path) -> None:
    options = ("--replicas", "2", "--ingress", "2", "--device", "cpu", "--threads", "1")
    with serving_fleet(tmp_path, shared_tiny_model_dir, *options) as served:
        url = str(served.client.base_url)
        jobs = [job_at(url, seed) for seed in range(4)]
        for job in jobs:  # whichever process is asked
            eventually(lambda job=job: httpx.get(f"{url}/v1/jobs/{job}").json()["state"] == "done")
        first = served.picture(BODY)
        ingresses = [pid for pid in descendants(served.process.pid) if b"elit_serve.fleet.ingress" in command_of(pid)]
        assert len(ingresses) == 2
        eventually(lambda: set(re.findall(r'ingress="(\d)"', httpx.get(f"{url}/metrics").text)) == {"0", "1"})

        os.kill(ingresses[0], signal.SIGKILL)
        with ThreadPoolExecutor(4) as callers:
            assert set(callers.map(lambda _: picture_at(url), range(8))) == {first}
        eventually(lambda: httpx.get(f"{url}/v1/jobs/{jobs[0]}").status_code == 200)
        assert httpx.get(f"{url}/v1/jobs/{jobs[0]}/images/0").status_code == 200
        assert [job_at(url, seed) for seed in range(4)] == jobs, "their keys are known as before"

        served.process.terminate()
        assert served.process.wait(60) == 0, served.log.read_text(encoding="utf-8")
        assert not any(b"elit_serve.fleet.ingress" in command_of(pid) for pid in ingresses)


def job_at(url: str, seed: int) -> str:
    """Sent with a key, so that it is the same one however often it is sent."""
    answer = httpx.post(
        f"{url}/v1/jobs", json={"label": "rose", "seed": seed}, headers={"Idempotency-Key": f"{seed}"}, timeout=60
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.fixture(scope="module")
def simulated(shared_tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One replica or two, where a picture at full budget takes 0.8 s in four steps."""
    folder = tmp_path_factory.mktemp("simulated")
    cost = folder / "cost.json"
    cost.write_text(latency(step_ms=50).model_dump_json(), encoding="utf-8")
    options = ("--simulate", cost, "--replicas", "1-2", "--response-ms", "300")
    with serving_fleet(folder, shared_tiny_model_dir, *options) as fleet:
        yield fleet


def test_replicas_follow_the_load(simulated: Served) -> None:
    assert len(simulated.replicas()) == 1
    is_over = threading.Event()

    def ask_again_and_again() -> set[int]:
        statuses = set()
        while not is_over.is_set():
            body = {"label": 0, "steps": 4, "latency_ms": 2500}
            statuses.add(httpx.post(f"{simulated.url}/v1/generate", json=body, timeout=60).status_code)
        return statuses

    with ThreadPoolExecutor(8) as callers:
        asking = [callers.submit(ask_again_and_again) for _ in range(8)]
        try:
            eventually(lambda: len(simulated.replicas()) == 2)
        finally:
            is_over.set()
        assert set.union(*(each.result() for each in asking)) <= {200, 503}
    eventually(lambda: len(simulated.replicas()) == 1)
    assert simulated.client.get("/readiness").status_code == 200


def test_a_server_whose_raylet_is_killed_tells_its_callers_and_ends(simulated: Served) -> None:
    started = descendants(simulated.process.pid)
    (raylet,) = [pid for pid in started if command_of(pid).split(b"\0")[0].endswith(b"/raylet")]
    with ThreadPoolExecutor(1) as callers:
        body = {"label": 0, "steps": 60, "n": 16, "budget": 1.0}  # three minutes
        answer = callers.submit(httpx.post, f"{simulated.url}/v1/generate", json=body, timeout=60)
        eventually(lambda: simulated.client.get("/load").json()["server_load"] > 0)
        os.kill(raylet, signal.SIGKILL)
        told = answer.result()
    assert (told.status_code, told.json()["type"]) == (503, "urn:elit-serve:engine-stopped")
    assert simulated.process.wait(30) == 1
    assert simulated.log.read_text(encoding="utf-8").count("Ray is gone: the raylet of this machine") == 1
    eventually(lambda: not any(b"ray" in command_of(pid) for pid in started))


def counted(served: Served) -> int:
    """Pictures of which replicas have told, as they do a few times a second."""
    return int(served.client.get("/load").json()["totals"]["pictures"])


def all_counted(served: Served) -> int:
    """The same once replicas have told of all that earlier tests had them make."""
    last = -1
    while (now := counted(served)) != last:
        last = now
        time.sleep(1)
    return now


def picture_at(url: str) -> bytes:
    """On a connection of its own."""
    answer = httpx.post(f"{url}/v1/generate", json=BODY, headers={"Accept": "image/png"}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.content


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
