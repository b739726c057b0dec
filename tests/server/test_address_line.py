"""What a server says of where it listens."""

from __future__ import annotations

import pytest

from elit_serve.server.run import address_line, bind


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("127.0.0.1", "http://127.0.0.1:{port} (docs: http://127.0.0.1:{port}/docs)"),
        ("0.0.0.0", "http://0.0.0.0:{port} on every address of this machine (docs: http://127.0.0.1:{port}/docs)"),
        ("::", "http://[::]:{port} on every address of this machine (docs: http://[::1]:{port}/docs)"),
        ("::1", "http://[::1]:{port} (docs: http://[::1]:{port}/docs)"),
    ],
)
def test_the_address_is_the_one_that_is_listened_on(host: str, said: str) -> None:
    with bind(host, 0) as listener:
        where, port, *_ = listener.getsockname()
        assert address_line(where, port) == said.format(port=port)


def test_a_name_is_said_as_the_address_that_it_stands_for() -> None:
    """It may stand for several, and one is listened on."""
    with bind("localhost", 0) as listener:
        where, port, *_ = listener.getsockname()
        assert where in ("127.0.0.1", "::1")
        assert "localhost" not in address_line(where, port)
