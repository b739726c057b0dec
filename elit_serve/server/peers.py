"""The other processes of one server, which are asked for what only one of them has."""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.parse import quote

import aiohttp
from starlette.requests import Request
from starlette.responses import Response

logger = logging.getLogger(__name__)

ASKED = "x-elit-asked"  # by another process, so that nobody asks back
TIMEOUT = aiohttp.ClientTimeout(total=10)
PASSED_ON = ("authorization", "content-type")


class Peers:
    """folder: where each listens on a socket of its own, this process on `own`."""

    def __init__(self, folder: Path, own: Path) -> None:
        self._folder = folder
        self._own = own

    async def answer_to(self, request: Request) -> Response | None:
        """The answer of the first that does not say 404; None if all do, or a peer asks itself."""
        if ASKED in request.headers:
            return None
        for path in sorted(self._folder.glob("*-*.sock")):
            if path != self._own and (answer := await self._ask(path, request)) is not None:
                return answer
        return None

    @staticmethod
    async def _ask(path: Path, request: Request) -> Response | None:
        headers = {name: value for name, value in request.headers.items() if name in PASSED_ON}
        try:
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), timeout=TIMEOUT) as session,
                session.request(
                    request.method, f"http://peer{quote(request.url.path)}", headers={**headers, ASKED: "1"}
                ) as answer,
            ):
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            logger.info("a process of this server does not answer: %s", error)
            return None
        return None if answer.status == 404 else Response(body, answer.status, media_type=answer.content_type)
