"""API keys: what each may do, and the file that holds their digests. Knows no HTTP and no clock.

Keys are 256 random bits, so a plain SHA-256 is enough to keep them from whoever reads the file.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elit_serve.errors import InvalidInput
from elit_serve.http.access import Scope
from elit_serve.server.setting_sources import read_named_toml
from elit_serve.server.settings import Settings

SCOPES: tuple[Scope, ...] = get_args(Scope)
KEY_PREFIX = "elit-"  # so that scanners for leaked secrets can find them
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Key(BaseModel):
    """One key, as its line in the file has it.

    sha256: of the key, in hexadecimal. scopes: `admin` includes the others.
    requests_per_minute: how many POST requests it may make in the long run; None is no limit.
    burst: how many of these at once; None is a minute's worth.
    share: its weight where keys compete for places in the queue.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    requests_per_minute: float | None = Field(default=None, ge=0.0001, le=1e9, allow_inf_nan=False)
    burst: int | None = Field(default=None, ge=1, le=1_000_000_000)
    share: float = Field(default=1, ge=1e-6, le=1e6, allow_inf_nan=False)

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def line(self) -> str:
        """The key's line in the file."""
        scopes = ", ".join(f'"{scope}"' for scope in SCOPES if scope in self.scopes)
        numbers = {"requests_per_minute": self.requests_per_minute, "burst": self.burst, "share": self.share}
        given = "".join(f", {name} = {value:.15g}" for name, value in numbers.items() if value is not None)
        return f'{self.name} = {{ sha256 = "{self.sha256}", scopes = [{scopes}]{given} }}'


class Keyring:
    """All keys of a server."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    @property
    def shares(self) -> dict[str, float]:
        """By name."""
        return {key.name: key.share for key in self._keys}

    def find(self, token: bytes) -> Key | None:
        """The key that a caller sent; takes as long whichever it is, or none."""
        digest = sha256(token).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def fresh_key() -> str:
    """A new key, to be shown once."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def read_keyring(settings: Settings) -> Keyring | None:
    """The keys of `--api-key`, which may do everything, and of `--keys-file`; None if there are neither.

    Raises `InvalidInput` for what is wrong in the file.
    """
    keys = [
        Key(name=f"api-key-{number}", sha256=digest_of(secret.get_secret_value()), scopes=frozenset({"admin"}))
        for number, secret in enumerate(settings.api_key, start=1)
    ]
    if settings.keys_file is not None:
        keys += read_keys(Path(settings.keys_file))
    for attribute in ("name", "sha256"):
        first: dict[str, str] = {}
        for key in keys:
            other = first.setdefault(getattr(key, attribute), key.name)
            if first[getattr(key, attribute)] is not key.name:
                raise InvalidInput("keys_file", key.name, f"it is the same key as {other}, or has its name")
    return Keyring(keys) if keys else None


def read_keys(path: Path) -> list[Key]:
    """The keys of a file: `name = { sha256 = "...", scopes = ["generate"] }` each."""
    content = read_named_toml(path, "keys_file")
    if not content:
        raise InvalidInput("keys_file", str(path), "a file with at least one key; see elit-serve key")
    return [_read_key(path, name, entry) for name, entry in content.items()]


def make_key(name: str, entry: object) -> Key:
    """A key from its table in the file; raises `InvalidInput`."""
    if not NAME.fullmatch(name):
        raise InvalidInput("name", name, "1 to 64 letters, digits, - and _, the first no sign")
    if not isinstance(entry, dict) or "name" in entry:
        raise InvalidInput(name, "***", 'a table, as { sha256 = "...", scopes = ["generate"] }')
    try:
        return Key.model_validate({**entry, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        value = first["input"] if field in ("scopes", "requests_per_minute", "burst", "share") else "***"
        fields = f"fields are {', '.join(list(Key.model_fields)[1:])}"
        allowed = fields if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise InvalidInput(f"{name}.{field}", value, allowed) from None


def _read_key(path: Path, name: str, entry: object) -> Key:
    try:
        return make_key(name, entry)
    except InvalidInput as error:
        raise InvalidInput(f"{error.field} in {path}", error.value, error.allowed) from None
