"""The web page at `/`: static files that travel with the package, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from elit_serve.http.access import access

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, kw_only=True)
class StaticFile:
    content: bytes
    media_type: str

    @property
    def headers(self) -> dict[str, str]:
        """A file may be kept, but is asked for again: its name stays when a new version of the server changes it."""
        return {"ETag": f'"{hashlib.sha256(self.content).hexdigest()[:32]}"', "Cache-Control": "no-cache"}


def page_router() -> APIRouter:
    """Routes of the page. Nothing but what is in its folder has a name here, so no path leads out of it."""
    router = APIRouter(include_in_schema=False)
    static = dict(_static_files())

    @router.get("/")
    @access(needs="nothing")
    async def index(request: Request) -> Response:
        return _answer(request, static["index.html"])

    @router.get("/static/{name}")
    @access(needs="nothing")
    async def file(request: Request, name: str) -> Response:
        if name not in static:
            raise HTTPException(404, "there is no such file")
        return _answer(request, static[name])

    return router


def _static_files() -> Iterator[tuple[str, StaticFile]]:
    for path in files("elit_serve.server.page").joinpath("assets").iterdir():
        suffix = path.name.rpartition(".")[2]
        if suffix in MEDIA_TYPES:
            yield path.name, StaticFile(content=path.read_bytes(), media_type=MEDIA_TYPES[suffix])


def _answer(request: Request, file: StaticFile) -> Response:
    headers = file.headers
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if headers["ETag"] in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
