"""Callers in a process of their own, who ask again as soon as they are answered.

`python asking.py URL NUMBER KIND...`: so many callers of each kind, until standard input ends. Writes a line once
everybody has had an answer, and at the end how often each status was seen, as JSON by kind.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

import aiohttp

REQUESTS: dict[str, tuple[str, str, dict[str, object] | None]] = {
    "metrics": ("GET", "/metrics", None),
    "plan": ("POST", "/v1/plan", {"label": "tulip", "latency_ms": 2000}),
    "refused": ("POST", "/v1/generate", {"label": "tulip", "latency_ms": 1}),
    "invalid": ("POST", "/v1/generate", {"label": "nothing"}),
}


async def ask_until_told(url: str, number: int, kinds: list[str]) -> dict[str, Counter[int]]:
    seen: dict[str, Counter[int]] = {kind: Counter() for kind in kinds}
    answered = [asyncio.Event() for _ in range(number * len(kinds))]
    connector = aiohttp.TCPConnector(limit=0)

    async def ask(session: aiohttp.ClientSession, kind: str, has_answer: asyncio.Event) -> None:
        method, path, body = REQUESTS[kind]
        while True:
            async with session.request(method, path, json=body) as answer:
                await answer.read()
                seen[kind][answer.status] += 1
            has_answer.set()

    async with aiohttp.ClientSession(url, connector=connector) as session:
        callers = [asyncio.create_task(ask(session, kinds[i % len(kinds)], event)) for i, event in enumerate(answered)]
        for event in answered:
            await event.wait()
        sys.stdout.write("all have had an answer\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    return seen


if __name__ == "__main__":
    result = asyncio.run(ask_until_told(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
    sys.stdout.write(json.dumps(result) + "\n")
