"""A small typed client for an elit-serve server, sync and async; knows HTTP and nothing of models or scheduling.

    >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     generation = client.generate(label="tulip", latency_ms=300)
    ...     pathlib.Path("tulip.png").write_bytes(generation.images[0].data)

An answer that is an error raises `ServerProblem`, no usable answer raises `ServerUnreachable`. Fields that a newer
server adds to its answers are ignored.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Any, Literal, Self, TypedDict, TypeVar, Unpack
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from elit_serve.errors import InvalidInput, ServerProblem, ServerUnreachable

JSON = "application/json"
PROBLEM = "application/problem+json"
TIMEOUT_S = 600.0  # of an answer: a picture may wait in a queue for long
CONNECT_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 4.0  # of idle connections: uvicorn closes them after 5 s, and a request must not meet that
RETRIED_STATUSES = frozenset({429, 503})  # the request was not taken, and may be later


class GuidanceOptions(TypedDict, total=False):
    """What is left out is the model's recommendation."""

    method: Literal["none", "cfg", "ag", "ccfg"]
    scale: float
    weak_budget: float | None
    interval: Sequence[float]


class GenerateOptions(TypedDict, total=False):
    """Fields of `POST /v1/generate`; what is left out or None is the server's choice.

    latency_ms: when the answer must be there. budget, min_budget, max_budget: shares of the latents in (0, 1].
    levels: a level for every step, as an answer reports it. accept: the media type wanted, JSON by default; a
    picture's or a latent's own type gives the file without base64 around it.
    """

    label: str | int | None
    prompt: str | None
    n: int | None
    seed: int | None
    latency_ms: float | None
    budget: float | None
    min_budget: float | None
    max_budget: float | None
    best_effort: bool | None
    priority: Literal["interactive", "batch"] | None
    levels: Sequence[int] | None
    steps: int | None
    guidance: GuidanceOptions | None
    output_format: str | None
    accept: str | None


class Answer(BaseModel):
    """Part of an answer."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


def _decoded(value: object) -> object:
    return base64.b64decode(value) if isinstance(value, str) else value


class Image(Answer):
    """data: the file: an encoded picture, or a latent where the model has no autoencoder. levels: one per step.
    quality: as measured for such pictures, at the mean level.

    Milliseconds as in `Generation`; None where the answer tells them for all images only.
    """

    data: Annotated[bytes, BeforeValidator(_decoded)] = Field(alias="b64_json", repr=False)
    seed: int
    level: float
    budget: float
    levels: tuple[int, ...] = ()
    quality: float | None = None
    queue_ms: float | None = None
    compute_ms: float | None = None
    encode_ms: float | None = None


class Generation(Answer):
    """What was made, and how.

    output_format: png, webp, jpeg or safetensors.
    promised: whether the target was one that the server had to keep.
    deadline_met: None without a target.
    queue_ms, compute_ms, encode_ms: to the first step, from there to the end of the last, from there to the files.
    total_ms: all of the server's time, from arrival to the answer.
    expected_quality: of the plan when it was chosen; None where nothing was measured.
    """

    images: tuple[Image, ...]
    output_format: str
    label: str
    model: str
    model_hash: str = ""
    dtype: str = ""
    steps: int
    guidance: Mapping[str, Any] = {}
    latency_ms: float | None = None
    promised: bool | None = None
    deadline_met: bool | None = None
    queue_ms: float | None = None
    compute_ms: float | None = None
    encode_ms: float | None = None
    total_ms: float | None = None
    expected_quality: float | None = None


class LevelInfo(Answer):
    """latency_ms: of one picture at this level on an idle server, as the server predicts it. quality: as measured."""

    level: int
    budget: float
    latency_ms: float | None = None
    quality: float | None = None


class GuidanceInfo(Answer):
    """As in the model's recommended sampling; times of the interval run from 0 (noise) to 1."""

    method: str = "none"
    scale: float = 1.0
    weak_level: int = 1
    interval: tuple[float, float] = (0.0, 1.0)


class SamplingInfo(Answer):
    """How the model is sampled where a request does not say."""

    steps: int
    time_shift: float = 1.0
    guidance: GuidanceInfo = GuidanceInfo()


class Model(Answer):
    """A model that a server serves; classes by id."""

    id: str
    hash: str = ""
    classes: tuple[str, ...]
    levels: tuple[LevelInfo, ...]
    sampling: SamplingInfo
    device: str = ""
    dtype: str = ""


class ModelList(Answer):
    data: tuple[Model, ...]


class Health(Answer):
    status: str
    model: str
    queue_length: int = 0


@dataclass(frozen=True, kw_only=True)
class Retries:
    """Tries again when the server did not take a request, after the time that it asks for.

    max_wait_s: a server that asks for more is not waited for.
    default_wait_s: the wait where the server does not say.
    """

    max_tries: int = 1
    max_wait_s: float = 60.0
    default_wait_s: float = 1.0

    def wait_s(self, problem: ServerProblem, tries: int) -> float | None:
        """How long to wait after `tries` have failed, or None to give up."""
        wait_s = self.default_wait_s if problem.retry_after_s is None else problem.retry_after_s
        is_worth_it = problem.status in RETRIED_STATUSES and tries < self.max_tries and wait_s <= self.max_wait_s
        return wait_s if is_worth_it else None


NO_RETRIES = Retries()


class Client:
    """Talks to one server; usable from several threads. Only `generate` is tried again."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: Retries = NO_RETRIES,
        max_connections: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = _base_url(url)
        self._http = httpx.Client(timeout=_timeout(timeout_s), limits=_limits(max_connections))
        self._retries = retries
        self._sleep = sleep

    def generate(self, **options: Unpack[GenerateOptions]) -> Generation:
        """Pictures of a class. Blocks until they are there, or raises."""
        return _generation(self._send(_generate_call(options), self._retries))

    def models(self) -> tuple[Model, ...]:
        return _parsed(ModelList, self._send(_Call("GET", "/v1/models"))).data

    def health(self) -> Health:
        """Raises `ServerProblem` when the engine is down."""
        return _parsed(Health, self._send(_Call("GET", "/health")))

    def ready(self) -> bool:
        """Whether to send requests: the server has warmed up, and is not being stopped."""
        try:
            self._send(_Call("GET", "/readiness"))
        except ServerProblem:
            return False
        return True

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _send(self, call: _Call, retries: Retries = NO_RETRIES) -> _Reply:
        tries = 0
        while True:
            tries += 1
            try:
                return _checked(self._reply(call))
            except ServerProblem as problem:
                wait_s = retries.wait_s(problem, tries)
                if wait_s is None:
                    raise
            self._sleep(wait_s)

    def _reply(self, call: _Call) -> _Reply:
        url = self._url + call.path
        try:
            response = self._http.request(call.method, url, json=call.body, headers=call.headers)
        except httpx.HTTPError as error:
            raise _unreachable(url, error) from error
        return _Reply(url, response.status_code, response.reason_phrase, response.headers, response.content)


class AsyncClient:
    """The same for asyncio; any number of requests may be under way at once.

    Over aiohttp: for an answer of 262 KB it takes 0.6 ms of processor time, httpx 2.5 ms.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: Retries = NO_RETRIES,
        max_connections: int | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._url = _base_url(url)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s)
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None
        self._retries = retries
        self._sleep = sleep

    async def generate(self, **options: Unpack[GenerateOptions]) -> Generation:
        """Pictures of a class. A caller that is cancelled leaves, and the server drops its request."""
        return _generation(await self._send(_generate_call(options), self._retries))

    async def models(self) -> tuple[Model, ...]:
        return _parsed(ModelList, await self._send(_Call("GET", "/v1/models"))).data

    async def health(self) -> Health:
        """Raises `ServerProblem` when the engine is down."""
        return _parsed(Health, await self._send(_Call("GET", "/health")))

    async def ready(self) -> bool:
        """Whether to send requests: the server has warmed up, and is not being stopped."""
        try:
            await self._send(_Call("GET", "/readiness"))
        except ServerProblem:
            return False
        return True

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def _send(self, call: _Call, retries: Retries = NO_RETRIES) -> _Reply:
        tries = 0
        while True:
            tries += 1
            try:
                return _checked(await self._reply(call))
            except ServerProblem as problem:
                wait_s = retries.wait_s(problem, tries)
                if wait_s is None:
                    raise
            await self._sleep(wait_s)

    async def _reply(self, call: _Call) -> _Reply:
        if self._session is None:  # aiohttp wants to be opened by the loop that it runs in
            self._session = self._opened()
        url = self._url + call.path
        try:
            async with self._session.request(
                call.method, url, json=call.body, headers=call.headers, allow_redirects=False
            ) as response:
                return _Reply(url, response.status, response.reason or "", response.headers, await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable(url, error) from error

    def _opened(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=self._max_connections or 0, keepalive_timeout=KEEP_ALIVE_S)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=_environment_proxy(self._url),
        )


@dataclass(frozen=True)
class _Call:
    """A request, before any library has it. headers: beyond those of every request."""

    method: Literal["GET", "POST"]
    path: str
    body: Mapping[str, object] | None = None
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class _Reply:
    """An answer, read to its end. headers: their names in any case."""

    url: str
    status: int
    reason: str
    headers: Mapping[str, str]
    content: bytes


def _base_url(text: str) -> str:
    """A server's address without the slash that a path begins with."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput("url", text, "an address such as http://127.0.0.1:8000")
    return str(url).rstrip("/")


def _environment_proxy(url: str) -> str | None:
    """The proxy that the environment names for a server; found once, where aiohttp would ask a thread each time."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _timeout(timeout_s: float) -> httpx.Timeout:
    # Waiting for a free connection is no failure of the server's, so it has no limit of its own.
    return httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None)


def _limits(max_connections: int | None) -> httpx.Limits:
    # All idle connections are kept, so that no request pays for connecting twice.
    return httpx.Limits(max_connections=max_connections, max_keepalive_connections=None)


def _generate_call(options: GenerateOptions) -> _Call:
    fields = {name: value for name, value in options.items() if value is not None}
    accept = str(fields.pop("accept", JSON))
    return _Call("POST", "/v1/generate", body=fields, headers={"Accept": accept})


def _checked(reply: _Reply) -> _Reply:
    """A successful answer, or `ServerProblem`."""
    if 200 <= reply.status < 300:
        return reply
    members = _problem_members(reply)
    code = str(members.get("type", "about:blank")).rpartition(":")[2]
    code = f"http-{reply.status}" if code == "blank" else code
    raise ServerProblem(
        status=reply.status,
        code=code,
        reason=str(members.get("reason", code)),
        detail=str(members.get("detail") or reply.reason),
        min_latency_ms=_number(members.get("min_latency_ms")),
        retry_after_s=_number(reply.headers.get("Retry-After")),
    )


def _problem_members(reply: _Reply) -> Mapping[str, object]:
    try:
        members = json.loads(reply.content) if _media_type(reply) in (PROBLEM, JSON) else {}
    except ValueError:
        members = {}
    return members if isinstance(members, dict) else {}


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):  # Retry-After may also be a date, which our servers do not send
        return None


def _generation(reply: _Reply) -> Generation:
    if _media_type(reply) == JSON:
        return _parsed(Generation, reply)
    return _bare_generation(reply)


def _bare_generation(reply: _Reply) -> Generation:
    """A file without JSON around it tells the same facts in `X-Elit-` headers."""
    facts: dict[str, Any] = {
        name[7:].lower().replace("-", "_"): value
        for name, value in reply.headers.items()
        if name.lower().startswith("x-elit-")
    }
    facts["label"] = unquote(facts.get("label", ""))
    facts["guidance"] = _guidance(facts.get("guidance", "{}"))
    levels = facts.get("levels", "")
    image = {**facts, "b64_json": reply.content, "levels": levels.split(",") if levels else ()}
    output_format = _media_type(reply).rpartition("/")[2].removeprefix("x-")
    try:
        return Generation.model_validate({**facts, "output_format": output_format, "images": (image,)})
    except ValidationError as error:
        raise _not_ours(reply, error) from None


def _guidance(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {}


Parsed = TypeVar("Parsed", bound=Answer)


def _parsed(kind: type[Parsed], reply: _Reply) -> Parsed:
    try:
        return kind.model_validate_json(reply.content)
    except ValidationError as error:
        raise _not_ours(reply, error) from None


def _not_ours(reply: _Reply, error: ValidationError) -> ServerUnreachable:
    first = error.errors(include_input=False)[0]
    field = ".".join(map(str, first["loc"])) or "body"
    return ServerUnreachable(f"{reply.url} did not answer as an elit-serve server does: {field}: {first['msg']}")


def _media_type(reply: _Reply) -> str:
    return str(reply.headers.get("Content-Type", "")).partition(";")[0].strip().lower()


def _unreachable(url: str, error: Exception) -> ServerUnreachable:
    return ServerUnreachable(f"{url}: {error or type(error).__name__}")
