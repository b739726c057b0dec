"""Who a request comes from."""

from __future__ import annotations

from fastapi import Request


def owner_of(request: Request) -> str | None:
    """The name of the key with which a request came; None where no keys are set."""
    name: str | None = request.state.key_name
    return name
