"""Where webhooks may go, and how they are signed, as https://www.standardwebhooks.com has it.

Only hosts that a setting names are ever spoken to, and no redirect is followed: nobody can have the server fetch what
is not theirs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from elit_serve.errors import InvalidInput
from elit_serve.files.opening import read_text

PREFIX = "whsec_"
MAX_KEY_BYTES = 4096
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """What is connected to. scheme: `http` or `https`."""

    scheme: str
    host: str
    port: int

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"


class WebhookPolicy:
    """Where webhooks may go, and what they are signed with.

    hosts: as HOST, for the default port of the scheme, or HOST:PORT. secret_file: see `Settings`.
    """

    def __init__(self, hosts: Collection[str], secret_file: str | None) -> None:
        if hosts and secret_file is None:
            raise InvalidInput("webhook_secret_file", None, "a file with the secret that webhooks are signed with")
        self._hosts = frozenset(host.lower() for host in hosts)
        self._key = b"" if secret_file is None else _read_key(Path(secret_file))

    def receiver(self, url: str) -> Receiver:
        """Raises `InvalidInput` for an address that webhooks may not go to."""
        receiver = _receiver(url)
        if receiver is None or not self._allows(receiver):
            hosts = ", ".join(sorted(self._hosts)) or "none: this server sends no webhooks"
            raise InvalidInput("webhook.url", url, f"an http or https URL on one of the allowed hosts ({hosts})")
        return receiver

    def _allows(self, receiver: Receiver) -> bool:
        is_default = receiver.port == DEFAULT_PORTS[receiver.scheme]
        return receiver.name in self._hosts or (is_default and receiver.host in self._hosts)

    def headers(self, message_id: str, body: bytes) -> dict[str, str]:
        """The signature is over id, time and body, so that none of them can be exchanged."""
        timestamp = str(int(time.time()))
        signed = hmac.new(self._key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
        return {
            "Content-Type": "application/json",
            "User-Agent": "elit-serve",
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
        }


def _receiver(url: str) -> Receiver | None:
    """None for what is no address that a webhook could have."""
    try:
        parts = urlsplit(url)
        default_port = DEFAULT_PORTS[parts.scheme]  # asked first, so that no other scheme passes with a port
        port = parts.port or default_port
    except (ValueError, KeyError):
        return None
    has_user = "@" in parts.netloc
    if not (url.isascii() and url.isprintable()) or parts.hostname is None or has_user:
        return None
    return Receiver(scheme=parts.scheme, host=parts.hostname, port=port)


def _read_key(file: Path) -> bytes:
    try:
        text = read_text(file, MAX_KEY_BYTES).strip()
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True) if text.startswith(PREFIX) else b""
    except (OSError, UnicodeError, binascii.Error):
        key = b""
    if len(key) < 24:
        raise InvalidInput("webhook_secret_file", str(file), "a file that holds whsec_ and base64 of 24 bytes or more")
    return key
