"""Asks a server now and then whether it lives, on a new connection each time, until its standard input ends.

A process of its own, so that nothing but the server and the machine delays it. Writes how long each answer took, in
milliseconds, as a JSON list.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

PAUSE_SECONDS = 0.02


def main(port: int) -> None:
    took_ms = []
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        started_s = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as caller:
            caller.sendall(b"GET /liveness HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
            assert caller.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        took_ms.append(1000 * (time.perf_counter() - started_s))
    sys.stdout.write(json.dumps(took_ms))


if __name__ == "__main__":
    main(int(sys.argv[1]))
