"""Thousands of bodies that are no requests: each gets an answer that says so, and the server is none the worse."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import httpx

from elit_serve.bench.soak.ledger import read_samples

ROUTES = ("/v1/generate", "/v1/plan", "/v1/jobs", "/v1/images/generations")
NUM_BODIES = 4_000  # about twenty of each kind to each route under each type
PIPELINED = 50
CONNECTIONS = 4

GOOD = {"label": "tulip", "n": 2, "seed": 7, "budget": 0.5, "steps": 4, "guidance": {"method": "ccfg", "scale": 2}}
NOT_TEXT: list[Any] = [[], {}, 1.5, True, None, ["tulip"]]
NOT_NUMBERS: list[Any] = ["1", "", [], {}, True, [1], {"n": 1}]
OUTSIDE: list[Any] = [0, -1, -(10**30), 10**30, 2**63, 1e308, float("inf"), float("nan"), -0.5]
WRONG: dict[str, list[Any]] = {
    "label": NOT_TEXT,
    "prompt": [*NOT_TEXT[:-2], 3],
    "n": NOT_NUMBERS + OUTSIDE,
    "latency_ms": NOT_NUMBERS + OUTSIDE[:3] + OUTSIDE[6:8],
    "budget": NOT_NUMBERS + OUTSIDE,
    "steps": NOT_NUMBERS + OUTSIDE,
    "guidance": [3, "ccfg", [], {"scale": "strong"}, {"method": "magic"}, {"interval": [1, 2, 3]}],
    "output_format": ["gif", 3, {}, ""],
    "levels": [[], [0], ["1"], 3, [[1]], [10**40]],
    "\ud800": [1],
    "x" * 500: [None],
    "__proto__": [{}],
}


def cut_short(random: random.Random) -> bytes:
    text = json.dumps(GOOD)
    return text[: random.randrange(len(text))].encode()


def of_wrong_values(random: random.Random) -> bytes:
    fields = random.sample(list(WRONG), random.randint(1, 4))
    return json.dumps({**GOOD, **{field: random.choice(WRONG[field]) for field in fields}}).encode()


def with_a_huge_number(random: random.Random) -> bytes:
    digits = random.choice(["9" * random.randint(20, 6000), f"1e{random.randint(400, 10**6)}", "-" + "1" * 400])
    return f'{{"label": "tulip", "{random.choice(["n", "seed", "budget", "steps"])}": {digits}}}'.encode()


def deeply_nested(random: random.Random) -> bytes:
    depth = random.choice([10, 100, 1_000, 20_000])
    opening, closing = random.choice([("[", "]"), ('{"label":', "}"), ('{"guidance":', "}")])
    inner = random.choice(["", "1", "null", '"tulip"'])
    return (opening * depth + inner + closing * random.choice([0, depth - 1, depth])).encode()


def oddly_encoded(random: random.Random) -> bytes:
    text = json.dumps({**GOOD, "n": 0, "label": "túlip"}, ensure_ascii=False)
    return random.choice(
        [
            text.encode(random.choice(["utf-16", "utf-32", "utf-16-be", "latin-1", "cp1252", "utf-7"])),
            random.randbytes(random.randint(1, 300)),
            b"\xef\xbb\xbf" + text.encode(),
            text.encode().replace(b"tulip", b"\x00\xff\xfe"),
            b'{"label": "\\udfff\\ud800", "n": 0}',
        ]
    )


def no_object(random: random.Random) -> bytes:
    return random.choice(
        [b"", b" ", b"[]", b"3", b"null", b'"tulip"', b"NaN", b"label=tulip", b"<a/>", b"{}{}", b"{,}"]
    )


KINDS: list[Callable[[random.Random], bytes]] = [
    cut_short,
    of_wrong_values,
    with_a_huge_number,
    deeply_nested,
    oddly_encoded,
    no_object,
]


def requests(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """(Route, the whole request)"""
    draw = random.Random(seed)
    for _ in range(count):
        body, route = draw.choice(KINDS)(draw), draw.choice(ROUTES)
        kind = draw.choice(["application/json"] * 6 + ["text/plain", "application/json; charset=latin-1", "nonsense"])
        head = f"POST {route} HTTP/1.1\r\nHost: here\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        yield route, head.encode() + body


def read_answer(stream: BinaryIO) -> tuple[int, dict[str, str], bytes]:
    status = int(stream.readline().split()[1])
    headers: dict[str, str] = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    return status, headers, stream.read(int(headers["content-length"]))


def check(route: str, status: int, headers: dict[str, str], body: bytes) -> None:
    assert 400 <= status < 500, (route, status, body)
    assert headers["x-request-id"]
    told = json.loads(body)
    if route.startswith("/v1/images/"):
        assert headers["content-type"] == "application/json"
        assert told["error"]["message"]
    else:
        assert headers["content-type"] == "application/problem+json"
        assert (told["status"], bool(told["detail"])) == (status, True)


def send_all(url: str, seed: int, count: int) -> None:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as caller:
        stream = caller.makefile("rb")
        sent = list(requests(seed, count))
        for start in range(0, count, PIPELINED):
            batch = sent[start : start + PIPELINED]
            caller.sendall(b"".join(request for _, request in batch))
            for route, _ in batch:
                check(route, *read_answer(stream))
        stream.close()


def resident_bytes(url: str) -> float:
    return read_samples(httpx.get(f"{url}/metrics").text)["process_resident_memory_bytes"]


def test_each_is_told_and_the_server_is_none_the_worse(tiny_server_url: str) -> None:
    send_all(tiny_server_url, seed=CONNECTIONS, count=500)
    before = resident_bytes(tiny_server_url)
    with ThreadPoolExecutor(CONNECTIONS) as callers:
        count = NUM_BODIES // CONNECTIONS
        sent = [callers.submit(send_all, tiny_server_url, seed, count) for seed in range(CONNECTIONS)]
        for connection in sent:
            connection.result(120)
    assert resident_bytes(tiny_server_url) < 1.1 * before
    assert httpx.post(f"{tiny_server_url}/v1/generate", json={"label": "tulip"}, timeout=60).status_code == 200
