"""Heads and bodies that are made to cost much cost the server little, and keep nobody else from being answered."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlsplit

import httpx
import pytest

from elit_serve.bench.soak.ledger import read_samples

ROUTES = ("/v1/generate", "/v1/plan", "/v1/jobs", "/v1/images/generations")
UNKNOWN = {f"field{i}": 0 for i in range(60_000)}
COSTLY: dict[str, str] = {
    "unknown fields": json.dumps(UNKNOWN),
    "unknown fields inside": json.dumps({"guidance": UNKNOWN}),
    "a long name": json.dumps({"budget" * 150_000: 1}),
    "long names": json.dumps({f"{i}{'budget' * 500}": 1 for i in range(300)}),
    "lists in a list": f'{{"label": [{",".join(["[]"] * 300_000)}]}}',
    "objects in a list": f'{{"label": [{",".join(["{}"] * 300_000)}]}}',
    "lists in lists": f'{{"label": {"[" * 500_000}{"]" * 500_000}}}',
    "numbers": json.dumps({"levels": [1] * 300_000}),
    "words": json.dumps({"levels": ["1"] * 180_000}),
    "long numbers": f'{{"levels": [{",".join(["1" * 4300] * 230)}]}}',
    "a long fraction": f'{{"budget": 0.{"1" * 1_000_000}}}',
    "the same field": "{" + ",".join(['"budget": "x"'] * 70_000) + "}",
    "a long text": json.dumps({"label": "\ud800" * 170_000}),
}


def cpu_seconds(url: str) -> float:
    return read_samples(httpx.get(f"{url}/metrics", timeout=60).text)["process_cpu_seconds_total"]


@pytest.mark.parametrize("route", ROUTES)
def test_a_large_invalid_body_costs_little_more_than_reading_it(tiny_server_url: str, route: str) -> None:
    with httpx.Client(base_url=tiny_server_url, timeout=60) as client:
        for name, body in COSTLY.items():
            before = cpu_seconds(tiny_server_url)
            answer = client.post(route, content=body, headers={"Content-Type": "application/json"})
            assert 400 <= answer.status_code < 500, name
            assert len(answer.content) < 20_000, name
            assert cpu_seconds(tiny_server_url) - before < 0.3, name


def post(route: str, body: bytes, *lines: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n" % route.encode()
    return head + b"".join(line + b"\r\n" for line in lines) + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


GET = b"GET /v1/models HTTP/1.1\r\nHost: here\r\n"
CHUNKED = GET.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\n"
HEADS: list[bytes] = [
    GET + b"X: " + b"x" * 300_000,
    GET + b"a:b\r\n" * 20_000,
    b"GET /" + b"x" * 300_000,
    b"\r\n" * 100_000,
    CHUNKED + b"0\r\n" + b"a:b\r\n" * 20_000,
    CHUNKED + b"1;x=" + b"x" * 300_000,
    CHUNKED + b"1\r\n \r\n" * 50_000,
    CHUNKED + b"7\r\n       \r\n" * 20_000,
    (GET + b"\r\n") * 200,
    b"GET /version HTTP/1.1\r\n\r\n" * 500,
    GET + b"Accept: " + b"a/b;q=0.1," * 6_000 + b"\r\n\r\n",
    post("/v1/generate", b'{"label": "x"}', b"Accept: " + b"a," * 30_000),
    post("/v1/generate", b'{"label": "x"}', b"X-Forwarded-For: " + b"127.0.0.1," * 6_000),
    post("/v1/generate", b'{"label": "x"}', b"Connection: upgrade", b"Upgrade: h2c"),
    post("/v1/generate", b'{"label": "x"}', b"Content-Type: " + b'a;"' * 20_000),
    GET + b"Origin: " + b"x" * 60_000 + b"\r\n\r\n",
    b"GET /v1/jobs?" + b"a&" * 30_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /static/" + b"../" * 20_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /static/page.js HTTP/1.1\r\nRange: bytes=" + b"0-1," * 15_000 + b"\r\n\r\n",
    b"\x16\x03\x01" + bytes(range(256)) * 100,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT here:80 HTTP/1.1\r\n\r\n",
]
SMALL = [b"{", b'{"label": 3e999999}', b'{"label": {"a": {}}}', b'{"labl": "tulip"}', b"[" * 10_000, b"\xff\xfe{"]


def attack(port: int, seed: int, count: int) -> None:
    """So many on connections of their own: one of ten is large, the others are heads or small bodies; of one of ten the
    sender leaves before he has sent it whole."""
    draw = random.Random(seed)
    large = [body.encode() for body in COSTLY.values()]
    for _ in range(count):
        route, kind = draw.choice(ROUTES), draw.random()
        body = draw.choice(large if kind < 0.1 else SMALL)
        request = draw.choice(HEADS) if kind > 0.6 else post(route, body)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as caller:
            if draw.random() < 0.1:
                caller.sendall(request[: draw.randrange(len(request))])
            else:
                caller.sendall(request)
                caller.recv(1 << 16)


@contextlib.contextmanager
def probed(port: int) -> Iterator[list[float]]:
    """How long `/liveness` took to answer, in ms, each time that it was asked within the block; known at its end."""
    probe = [sys.executable, Path(__file__).with_name("liveness_probe.py"), str(port)]
    took_ms: list[float] = []
    with subprocess.Popen(probe, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield took_ms
        took_ms += json.loads(process.communicate()[0])


def p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


NUM_STORMS = 4
STORM_REQUESTS = 2_500
ATTACKERS = 8


def storm(port: int, number: int) -> None:
    share = STORM_REQUESTS // ATTACKERS
    with ThreadPoolExecutor(ATTACKERS) as attackers:
        begun = [attackers.submit(attack, port, number * ATTACKERS + i, share) for i in range(ATTACKERS)]
        for attacker in begun:
            attacker.result()


def resident_bytes(url: str) -> float:
    return read_samples(httpx.get(f"{url}/metrics", timeout=60).text)["process_resident_memory_bytes"]


@pytest.mark.slow
@pytest.mark.quiet
def test_who_asks_for_health_waits_for_none_of_ten_thousand(tiny_server_url: str) -> None:
    port = urlsplit(tiny_server_url).port
    assert port is not None
    # how many others want each core while the server does: hardly one on a quiet machine
    others = os.getloadavg()[0] / (os.cpu_count() or 1)
    resident: list[float] = []
    with probed(port) as took_ms:
        for number in range(NUM_STORMS):
            storm(port, number)
            resident.append(resident_bytes(tiny_server_url))
    print(f"{len(took_ms)} asked beside {others:.1f} others:", end=" ")  # noqa: T201
    print(f"p50 {median(took_ms):.0f}, p99 {p99(took_ms):.0f}, max {max(took_ms):.0f} ms;", end=" ")  # noqa: T201
    print(f"memory {[round(size / 2**20) for size in resident]} MiB")  # noqa: T201
    assert p99(took_ms) < 200 * (1 + others)
    # What is held adds with every storm. The allocator's heap grows with the highest of them, and not with each.
    assert min(after / before for before, after in pairwise(resident)) < 1.01
    assert resident[3] < 1.05 * resident[1]
