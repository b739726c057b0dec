"""`elit-serve key`: makes an API key."""

from __future__ import annotations

from typing import Annotated

import typer

from elit_serve.server.keys import SCOPES, digest_of, fresh_key, make_key


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is; logs show this name.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="SCOPE", help=f"{', '.join(SCOPES)}; may be repeated. Default: generate."),
    ] = None,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="POST requests in the long run. Default: no limit.")
    ] = None,
    burst: Annotated[int | None, typer.Option(help="POST requests at once. Default: a minute's worth.")] = None,
    share: Annotated[float, typer.Option(help="Weight where keys compete for places in the queue.")] = 1,
) -> None:
    """Make an API key for a server.

    It is shown once, on stderr; its line for the file that serve --keys-file reads is printed.
    """
    secret = fresh_key()
    limits = {"requests_per_minute": requests_per_minute, "burst": burst}
    entry = {"sha256": digest_of(secret), "scopes": scope or ["generate"], "share": share}
    entry |= {limit: value for limit, value in limits.items() if value is not None}
    line = make_key(name, entry).line()
    typer.echo(f"the key, which is not shown again: {secret}", err=True)
    typer.echo(line)
