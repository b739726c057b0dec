"""What a server is started with: the one description from which flags, variables, files and documentation follow.

Imports no torch, so that `elit-serve --help` need not wait for it.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from elit_serve.errors import InvalidInput
from elit_serve.plans.formats import PngCompression
from elit_serve.plans.size import Size

MAX_PREFIX = 256  # characters
MAX_REPLICAS = 1024
MAX_NOISE = 0.3  # of a simulated step: three standard deviations are still a time


def _text_of_number(value: object) -> object:
    """TOML has a number where a flag has text."""
    return str(value) if isinstance(value, int) else value


def _parts(value: object) -> object:
    """A list as a variable holds it: with commas between its parts."""
    return tuple(value.split(",")) if isinstance(value, str) else value


def _all_parts(value: object) -> object:
    """The same of a flag, which may be repeated and have commas too."""
    lists = value if isinstance(value, list | tuple) else (value,)
    return tuple(part for text in lists for part in (text.split(",") if isinstance(text, str) else (text,)))


def _key(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-+\--~]{8,512}", secret.get_secret_value()):
        raise ValueError("a key is 8 to 512 printable ASCII characters without spaces and commas")
    return secret


def _origin(text: str) -> str:
    if text != "*" and not (re.fullmatch(r"https?://[^/\s,]+", text) and _has_host(text)):
        raise ValueError("an origin is * or as https://example.org, without a path")
    return text


def _endpoint(text: str) -> str:
    if not (re.fullmatch(r"https?://[^/\s]+(/\S*)?", text) and _has_host(text)):
        raise ValueError("an endpoint is a URL as http://localhost:4318")
    return text


def _host_and_port(text: str) -> str:
    """IPv6 addresses have more than one colon, and no port here."""
    is_spelled = re.fullmatch(r"[^\s/@?#,]+", text) is not None
    if not is_spelled or (text.count(":") == 1 and not _has_host(f"http://{text}")):
        raise ValueError("a host is HOST or HOST:PORT, without https:// and a path")
    return text


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port beyond 65535, half of the brackets of an address
        return False


def is_prefix(text: str) -> bool:
    """Whether a server may be reached under this path, as /elit or /a/b: it comes into links and pages as it is, so
    there is nothing in it that means something else there."""
    return len(text) <= MAX_PREFIX and re.fullmatch(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+", text) is not None


def _root_path(text: str) -> str:
    path = text.rstrip("/")
    if path and not is_prefix(path):
        raise ValueError("a prefix is a path as /elit, of letters, digits and . _ ~ -")
    return path


def _size(text: str) -> str:
    try:
        return str(Size.read(text))
    except InvalidInput as error:
        raise ValueError(error.allowed) from None


def _replicas(text: str) -> str:
    counts = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text)
    fewest, most = (0, 0) if counts is None else (int(counts[1]), int(counts[2] or counts[1]))
    if not 1 <= fewest <= most <= MAX_REPLICAS:
        raise ValueError(f"a number of replicas as 2, or a range as 1-4; at most {MAX_REPLICAS}")
    return text


def _ray_address(text: str) -> str:
    if text != "auto" and not (re.fullmatch(r"[^\s/@?#,]+:\d+", text) and _has_host(f"http://{text}")):
        raise ValueError("an address of Ray is HOST:PORT, or auto for the one that runs on this machine")
    return text


def _proxy(text: str) -> str:
    if text != "*":
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ValueError("a proxy is an address, a network as 10.0.0.0/8, or *") from None
    return text


DAY_S = 86_400
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FilePath = Annotated[str, Field(min_length=1, max_length=4096)]
ApiKeys = Annotated[tuple[Annotated[SecretStr, AfterValidator(_key)], ...], BeforeValidator(_parts)]
Endpoint = Annotated[str, Field(max_length=4096), AfterValidator(_endpoint)]
Origins = Annotated[
    tuple[Annotated[str, Field(max_length=1024), AfterValidator(_origin)], ...], BeforeValidator(_parts)
]
Hosts = Annotated[
    tuple[Annotated[str, Field(max_length=262), AfterValidator(_host_and_port)], ...], BeforeValidator(_parts)
]
Proxies = Annotated[tuple[Annotated[str, Field(max_length=64), AfterValidator(_proxy)], ...], BeforeValidator(_parts)]
Sizes = Annotated[tuple[Annotated[str, Field(max_length=40), AfterValidator(_size)], ...], BeforeValidator(_all_parts)]
Replicas = Annotated[str, Field(max_length=9), BeforeValidator(_text_of_number), AfterValidator(_replicas)]
RayAddress = Annotated[str, Field(max_length=262), AfterValidator(_ray_address)]
RootPath = Annotated[str, Field(max_length=1024), AfterValidator(_root_path)]


class Settings(BaseModel):
    """All settings of `elit-serve serve`; the descriptions are its help, and the table in README.md beside this.

    Every number has bounds within which a server works: what is beyond them would end it, or mean nothing, later.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values_and_no_nul(cls, value: object) -> object:
        """Python takes true for the number 1, and no path or address has a NUL."""
        if isinstance(value, bool):
            raise ValueError("a number or text, not true or false")
        if isinstance(value, str) and "\0" in value:
            raise ValueError("text without NUL characters")
        return value

    model: FilePath | None = Field(
        default=None, description="A model directory, or a bundled model by name; by default the bundled garden64."
    )
    random_weights: str | None = Field(
        default=None,
        max_length=100,
        description="Instead of a model: a preset such as elit-dit-xl/2 with random weights, to measure speed.",
    )
    resolution: int | None = Field(
        default=None, ge=16, le=8192, description="Pixels per side of --random-weights; by default 256."
    )
    simulate: FilePath | None = Field(
        default=None,
        description="The name of a device, as nvidia-h200, or a latency/<device>.json: nothing is computed, steps take "
        "the time that was measured there, and answers are placeholders marked as such. Needs no weights.",
    )
    simulate_noise: float = Field(
        default=0.0,
        ge=0,
        le=MAX_NOISE,
        allow_inf_nan=False,
        description="Of --simulate: standard deviation of each step's time, as a share of it.",
    )
    simulate_bias: float = Field(
        default=0.0,
        ge=-0.5,
        le=4,
        allow_inf_nan=False,
        description="Of --simulate: 0.1 is a device 10 % slower than the file says.",
    )
    simulate_failures: float = Field(
        default=0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Of --simulate: the share of steps that fail, with every picture in them.",
    )
    autoencoder: FilePath | None = Field(
        default=None,
        description="A folder in diffusers' format, instead of the model's own autoencoder, or for one that has none.",
    )
    preview_autoencoder: FilePath | None = Field(
        default=None,
        description="A folder of a smaller autoencoder for previews, as TAESD; by default the model's own, if it has "
        "one for them.",
    )
    sizes: Sizes = Field(
        default=(),
        description="Sizes of pictures to serve, as 640x384,512x512, of those that the model has; the first is made "
        "where a request names none; by default all. --random-weights has whatever is named here; without an "
        "autoencoder they are of its samples.",
    )
    host: str = Field(
        default="127.0.0.1", min_length=1, max_length=253, description="Address to listen on; 0.0.0.0 is every address."
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    root_path: RootPath | None = Field(
        default=None,
        description="The path under which a proxy shows this server, as /elit, whether it takes it off or not.",
    )
    trusted_proxy: Proxies = Field(
        default=(),
        description="Address or network of a proxy whose X-Forwarded-For, -Proto and -Prefix are believed, or * for "
        "any; may be repeated; by default those of this machine.",
    )
    replicas: Replicas | None = Field(
        default=None,
        description="So many engines behind this server, as processes that Ray Serve keeps running, each on a GPU of "
        "its own where there are any; or a range, as 1-4, in which their number follows the load; needs "
        "elit-serve[ray]. By default one engine in the server's own process.",
    )
    ingress: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes that answer HTTP, with --replicas: one answers some hundred small pictures a second.",
    )
    ray_address: RayAddress | None = Field(
        default=None,
        description="Of a Ray cluster that runs, as HOST:6379, or auto, for --replicas; by default they have a Ray of "
        "their own, which only this machine reaches.",
    )
    device: str | None = Field(
        default=None, max_length=100, description="cpu, cuda or cuda:N; by default a GPU if there is one."
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="Number format of the model; by default bfloat16 on a GPU, float32 on a CPU."
    )
    quantize: Literal["fp8"] | None = Field(
        default=None,
        description="fp8 runs the blocks' large matrix products in float8, on GPUs that have it (compute capability "
        "8.9 or newer); pictures differ slightly, and say fp8 as their dtype.",
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="CPU threads for torch; by default its own choice."
    )
    encoder_threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Threads that turn finished pictures into files; by default one for each CPU, at most 8.",
    )
    png_compression: PngCompression = Field(
        default="fast",
        description="Of PNG files: fast, or small, which takes 12 times as long for files about a tenth smaller.",
    )
    policy: Literal["elastic", "fixed"] = Field(
        default="elastic",
        description="elastic chooses levels anew between steps, and keeps promises; fixed runs every picture at its "
        "highest level and refuses only what is impossible alone, so under load targets are missed.",
    )
    max_batch: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Most pictures in a step; by default as many as the device was measured with.",
    )
    max_queue: int = Field(
        default=64,
        ge=1,
        le=10_000,  # each has a slot in the device's memory
        description="Pictures that may wait for their first step; more get 503 with Retry-After.",
    )
    max_images: int = Field(default=16, ge=1, le=1024, description="Largest n of a request.")
    max_image_steps: int = Field(
        default=1000, ge=1, le=1_024_000, description="Most steps of a request, summed over its pictures."
    )
    max_body_bytes: int = Field(default=1 << 20, ge=1024, le=1 << 30, description="Larger request bodies get 413.")
    max_concurrent_requests: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="HTTP requests for pictures under way at a time, and as many others, those still being sent "
        "included, health apart; where there are more, the one that has been sending for longest gets 503 with "
        "Retry-After, or else the newest.",
    )
    max_streams: int = Field(
        default=256,
        ge=1,
        le=1 << 16,
        description="Streams of server-sent events open at a time, apart from requests; more get 503 with Retry-After.",
    )
    max_streams_per_key: int | None = Field(
        default=None,
        ge=1,
        le=1 << 16,
        description="How many of them one API key may have, by default half; more get 429.",
    )
    idle_seconds: int = Field(
        default=75,  # proxies keep connections for 60 s, and must be the first to give one up
        ge=1,
        le=DAY_S,
        description="How long a connection may stand still, without a whole request or with an answer that is not "
        "read, before it is closed.",
    )
    soft_latency_ms: Positive | None = Field(
        default=None,
        le=1000 * DAY_S,
        description="Target of requests that give none; by default three times what they take alone at full budget.",
    )
    response_ms: NotNegative = Field(
        default=8,  # the 99th percentile under load on an H200's host is 6 to 8.5, the median 4 to 5
        le=60_000,
        description="What HTTP adds to a picture's time, in milliseconds; counted in every prediction. "
        "By default about what 99 of 100 answers take under load.",
    )
    drain_seconds: NotNegative = Field(
        default=30, le=DAY_S, description="How long accepted requests may take to finish at SIGTERM."
    )
    api_key: ApiKeys = Field(
        default=(),
        description="A key that may do everything; may be repeated. "
        "As a flag it is visible to others: rather use a variable.",
    )
    keys_file: FilePath | None = Field(
        default=None, description="A TOML file of keys with scopes, rate limits and shares; see elit-serve key."
    )
    cors_origin: Origins = Field(
        default=(),
        description="An origin whose pages may call this server from a browser, or *; may be repeated.",
    )
    results: FilePath | None = Field(
        default=None,
        description="The folder of jobs and their pictures; by default one in the user's state directory for each "
        "port, and a temporary one with --port 0.",
    )
    database: FilePath | None = Field(
        default=None,
        description="Where jobs are kept: postgresql://... or sqlite:///FILE; by default SQLite in --results.",
    )
    results_bytes: int = Field(
        default=1 << 30,
        ge=0,
        le=1 << 60,
        description="How large the pictures of jobs may be together; the oldest go first.",
    )
    results_seconds: Positive = Field(
        default=DAY_S, le=3650 * DAY_S, description="How long the pictures of a job are kept."
    )
    max_jobs: int = Field(
        default=10_000, ge=1, le=1_000_000_000, description="Jobs that may wait; more get 503 with Retry-After."
    )
    webhook_host: Hosts = Field(
        default=(), description="Where webhooks may go, as HOST or HOST:PORT; may be repeated; by default nowhere."
    )
    webhook_secret_file: FilePath | None = Field(
        default=None, description="A file that holds the secret that webhooks are signed with, whsec_ and base64."
    )
    arrival_log: FilePath | None = Field(
        default=None, description="A file that gets a line of JSON for every valid request, for simulate and bench."
    )
    arrival_log_bytes: int = Field(
        default=64 << 20,
        ge=4096,
        le=1 << 60,
        description="How large that file and its predecessor (.1) may be together.",
    )
    otlp_endpoint: Endpoint | None = Field(
        default=None,
        description="A collector of OpenTelemetry traces, as http://localhost:4318; needs elit-serve[otel].",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="warning", description="Least severity that is logged; info has a line for every request."
    )
    log_format: Literal["text", "json"] = Field(default="text", description="json writes one object a line.")
    log_prompts: Literal["off", "on"] = Field(
        default="off",
        description="on shows prompts, which are personal, to others than their callers: in traces and in the view of "
        "what is being made. No log line has one.",
    )
    prompts_in_files: Literal["on", "off"] = Field(
        default="on", description="off leaves prompts out of the facts inside picture files; answers still have them."
    )

    @property
    def replica_range(self) -> tuple[int, int]:
        """The fewest and the most engines that there are to be."""
        fewest, _, most = (self.replicas or "1").partition("-")
        return int(fewest), int(most or fewest)

    @field_validator("max_streams_per_key")
    @classmethod
    def _within_all(cls, most: int | None, info: ValidationInfo) -> int | None:
        in_all = info.data.get("max_streams")
        if most is not None and in_all is not None and most > in_all:
            raise ValueError(f"at most max_streams, which is {in_all}")
        return most
