"""The records of a load run, a line of JSON for each request: `elit-serve bench --records` writes them, and `elit-serve
served` makes their pictures again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from elit_serve.errors import InvalidInput
from elit_serve.files.opening import read_text
from elit_serve.files.writing import write_whole

MAX_FILE_BYTES = 1 << 30


class RequestEnding(StrEnum):
    """What may become of a request."""

    DONE = "done"
    REFUSED = "refused"
    EXPIRED = "expired"
    FAILED = "failed"


class RequestRecord(BaseModel):
    """One request after its end. Times are seconds of one clock; `*_ms` are the server's own, None if not told.

    reason: the server's code for a request that is not done; `unreachable` without an answer.
    budget: what was granted, as a mean over steps and images.
    label or prompt, seed, size, steps, guidance, skips, levels, strides: make the pictures again; the last two have one
        per step, for each image.
    expected_quality: of the plan at admission; quality: of what was done, as a mean over images.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    planned_s: float
    sent_s: float
    ended_s: float
    latency_ms: float | None
    ending: RequestEnding
    reason: str | None = None
    budget: float | None = None
    queue_ms: float | None = None
    compute_ms: float | None = None
    encode_ms: float | None = None
    total_ms: float | None = None
    label: int | None = None
    prompt: str | None = None
    seed: int | None = None
    size: str | None = None
    steps: int | None = None
    guidance: Mapping[str, Any] | None = None
    skips: Mapping[str, Any] | None = None
    levels: tuple[tuple[int, ...], ...] | None = None
    strides: tuple[tuple[int, ...], ...] | None = None
    expected_quality: float | None = None
    quality: float | None = None

    @property
    def e2el_ms(self) -> float:
        """From the planned arrival to the end."""
        return 1000 * (self.ended_s - self.planned_s)

    @property
    def is_done(self) -> bool:
        return self.ending is RequestEnding.DONE

    @property
    def is_on_time(self) -> bool:
        """Done within its target, by this client's clock; without a target, done."""
        return self.is_done and (self.latency_ms is None or self.e2el_ms <= self.latency_ms)

    @property
    def overhead_ms(self) -> float | None:
        """What the client saw beyond what the server counted: late sending, connecting, transfer, parsing."""
        return None if self.total_ms is None else self.e2el_ms - self.total_ms

    @property
    def added_ms(self) -> float | None:
        """What the client saw beyond waiting for the device, computing and encoding: all that HTTP adds."""
        if self.queue_ms is None or self.compute_ms is None or self.encode_ms is None:
            return None
        return self.e2el_ms - self.queue_ms - self.compute_ms - self.encode_ms

    def line(self, start_s: float) -> str:
        """As the file has it: with derived figures, its times relative to `start_s`."""
        times = {name: getattr(self, name) - start_s for name in ("planned_s", "sent_s", "ended_s")}
        derived = {"e2el_ms": self.e2el_ms, "is_on_time": self.is_on_time}
        return json.dumps({**self.model_dump(mode="json"), **times, **derived})


def write_records(file: Path, records: Sequence[RequestRecord]) -> None:
    """A line for each, times relative to the first planned arrival."""
    start_s = min(record.planned_s for record in records)
    write_whole(file, "".join(record.line(start_s) + "\n" for record in records), field="records")


def read_records(file: Path) -> list[RequestRecord]:
    """All of a file. Raises `InvalidInput` for `records`."""
    try:
        lines = [line for line in read_text(file, MAX_FILE_BYTES).splitlines() if line.strip()]
        return [RequestRecord.model_validate_json(line) for line in lines]
    except OSError as error:
        raise InvalidInput("records", str(file), f"it cannot be read: {error.strerror or error}") from None
    except (ValidationError, UnicodeDecodeError):
        raise InvalidInput("records", str(file), "a file of elit-serve bench --records") from None
