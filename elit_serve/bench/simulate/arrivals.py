"""When requests arrive: recorded traces and drawn ones, as specs of one line; knows nothing of what is requested.

A spec is a file or a drawn process:

    PATH                      an Azure trace (CSV with a TIMESTAMP column), the arrival log of a server (a line of JSON
                              per request), or a plain list of seconds, one per line
    poisson                   independent arrivals
    gamma:cv=4                independent gaps with this coefficient of variation
    ramp:from=0.5,to=1.5      Poisson, whose rate goes from 0.5 to 1.5 times the mean, linearly in time (as proportion)
    step:to=10,share=0.1      Poisson, whose rate is 10 times as high in a tenth of the time, in the middle
    on-off:burst=20,share=0.25
                              a train of bursts: Poisson for a quarter of the time, and nobody in between; a burst has
                              20 arrivals on average, and lengths of bursts and pauses are exponentially distributed

A seed draws a window from a file, or a sample of a process; the window is then stretched to the wanted mean rate, so
that a file and a process are at the same load when they are asked for the same rate.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Protocol

from pydantic import ValidationError

from elit_serve.errors import InvalidInput
from elit_serve.files.arrival_log import LoggedRequest
from elit_serve.files.opening import read_text

TIMESTAMP = "TIMESTAMP"
MAX_TRACE_BYTES = 1 << 30
SPECS = "a file, poisson, gamma:cv=C, ramp:from=A,to=B, step:to=F,share=S or on-off:burst=N,share=S"


class Arrivals(Protocol):
    """A source of arrival times."""

    def draw(self, count: int, rng: Random) -> Sequence[float]:
        """`count` times, rising, in a unit of the source's own."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """times_s: rising seconds, as recorded. targets_ms: one for each, None without; empty if they are not recorded.
    `name` is for messages.
    """

    name: str
    times_s: tuple[float, ...]
    targets_ms: tuple[float | None, ...] = ()

    def draw(self, count: int, rng: Random) -> Sequence[float]:
        window = self.times_s[self.window(count, rng)]
        if window[-1] <= window[0]:
            raise InvalidInput("requests", count, f"{count} arrivals of {self.name} fall on one moment; take more")
        return window

    def window(self, count: int, rng: Random) -> slice:
        """Which arrivals are drawn."""
        if count > len(self.times_s):
            raise InvalidInput("requests", count, f"{self.name} holds {len(self.times_s)} arrivals")
        first = rng.randrange(len(self.times_s) - count + 1)
        return slice(first, first + count)


@dataclass(frozen=True, kw_only=True)
class Gamma:
    """Independent gamma gaps; cv is their standard deviation over their mean, so 1 is Poisson."""

    cv: float

    def __post_init__(self) -> None:
        if not 0 < self.cv <= 100:
            raise InvalidInput("trace", f"gamma:cv={self.cv:g}", "cv above 0 and at most 100")

    def draw(self, count: int, rng: Random) -> Sequence[float]:
        shape = 1 / self.cv**2
        times = [0.0]
        for _ in range(count - 1):
            times.append(times[-1] + rng.gammavariate(shape, 1 / shape))
        return times


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """Poisson arrivals whose rate goes linearly from `start` to `end` (only their ratio matters)."""

    start: float
    end: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start + self.end) and min(self.start, self.end) >= 0 < self.start + self.end):
            raise InvalidInput("trace", f"ramp:from={self.start:g},to={self.end:g}", "rates from 0, not both 0")

    def draw(self, count: int, rng: Random) -> Sequence[float]:
        steady = Gamma(cv=1.0).draw(count, rng)
        return [self._when(time / steady[-1]) for time in steady]

    def _when(self, share: float) -> float:
        """The time in [0, 1] by which `share` of all arrivals are expected: start·t + (end − start)·t²/2 = area."""
        area, rise = share * (self.start + self.end) / 2, self.end - self.start
        root = math.sqrt(max(0.0, self.start**2 + 2 * rise * area))
        return 2 * area / (self.start + root) if area else 0.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """Poisson arrivals whose rate is `to` times as high for this share of the time, in the middle of the window."""

    to: float
    share: float

    def __post_init__(self) -> None:
        if not (0 < self.to <= 1000 and 0 < self.share < 1):
            raise InvalidInput(
                "trace", f"step:to={self.to:g},share={self.share:g}", "to above 0, share between 0 and 1"
            )

    def draw(self, count: int, rng: Random) -> Sequence[float]:
        steady = Gamma(cv=1.0).draw(count, rng)
        return [self._when(time / steady[-1]) for time in steady]

    def _when(self, arrived: float) -> float:
        """The time in [0, 1] by which this share of all arrivals is expected."""
        before = (1 - self.share) / 2
        expected = arrived * (1 + (self.to - 1) * self.share)
        in_step = max(0.0, min(expected - before, self.to * self.share))
        return expected - in_step + in_step / self.to


@dataclass(frozen=True, kw_only=True)
class OnOff:
    """A train of bursts: Poisson arrivals for `share` of the time, and none between; a burst is so many on average."""

    burst: float
    share: float

    def __post_init__(self) -> None:
        if not (1 <= self.burst <= 1e6 and 0 < self.share < 1):
            spec = f"on-off:burst={self.burst:g},share={self.share:g}"
            raise InvalidInput("trace", spec, "burst from 1, share between 0 and 1")

    def draw(self, count: int, rng: Random) -> Sequence[float]:
        times: list[float] = []
        began = 0.0
        while len(times) < count:
            ends = began + rng.expovariate(1 / (self.burst * self.share))
            time = began + rng.expovariate(1 / self.share)
            while time < ends and len(times) < count:
                times.append(time)
                time += rng.expovariate(1 / self.share)
            began = ends + rng.expovariate(1 / (self.burst * (1 - self.share)))
        return times


def open_arrivals(spec: str) -> Arrivals:
    """The source that a spec names. Raises `InvalidInput` naming what is wrong with it."""
    name, _, arguments = spec.partition(":")
    if name in _PROCESSES:
        fields, make = _PROCESSES[name]
        return make(_numbers(spec, arguments, fields))
    return read_arrivals(Path(spec))


def read_arrivals(file: Path) -> Recorded:
    """An Azure trace, a server's arrival log or a list of seconds."""
    try:
        lines = [line for line in read_text(file, MAX_TRACE_BYTES).splitlines() if line.strip()]
    except (FileNotFoundError, IsADirectoryError):
        raise InvalidInput("trace", str(file), SPECS) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("trace", str(file), f"it cannot be read: {error}") from None
    recorded = _reader(lines[0] if lines else "")(file, lines)
    if len(recorded.times_s) < 2:
        raise InvalidInput("trace", str(file), "at least two arrivals")
    return recorded


def arrival_times(source: Arrivals, *, count: int, rate_per_s: float, seed: int) -> tuple[float, ...]:
    """`count` seconds from 0 whose mean gap is 1/rate_per_s; the same seed gives the same pattern at every rate."""
    if count < 2:
        raise InvalidInput("requests", count, "at least 2")
    drawn = source.draw(count, _rng(seed))
    stretch = (count - 1) / rate_per_s / (drawn[-1] - drawn[0])
    return tuple(stretch * (time - drawn[0]) for time in drawn)


def recorded_targets_ms(source: Arrivals, *, count: int, seed: int) -> tuple[float | None, ...]:
    """The targets that came with the arrivals which `arrival_times` draws for the same seed; None for those without."""
    if not isinstance(source, Recorded) or not source.targets_ms:
        raise InvalidInput("recorded-targets", True, "only the arrival log of a server has targets; give --slo-scale")
    return source.targets_ms[source.window(count, _rng(seed))]


def _rng(seed: int) -> Random:
    return Random(f"arrivals {seed}")


def _reader(first_line: str) -> Callable[[Path, Sequence[str]], Recorded]:
    if first_line.startswith("{"):
        return _logged
    return _timestamps if TIMESTAMP in first_line.split(",") else _seconds


def _logged(file: Path, lines: Sequence[str]) -> Recorded:
    """A request for n pictures is n arrivals at once."""
    requests: list[LoggedRequest] = []
    for line in lines:
        try:
            request = LoggedRequest.model_validate_json(line)
        except ValidationError:
            raise InvalidInput("trace", line, f'{file.name} needs lines as {{"arrived_s": 12.5, "n": 1}}') from None
        requests += [request] * request.n
    requests.sort(key=lambda request: request.arrived_s)
    return Recorded(
        name=file.name,
        times_s=tuple(request.arrived_s for request in requests),
        targets_ms=tuple(request.latency_ms for request in requests),
    )


def _timestamps(file: Path, lines: Sequence[str]) -> Recorded:
    try:
        stamps = [row[TIMESTAMP] for row in csv.DictReader(lines)]
    except csv.Error as error:
        raise InvalidInput("trace", str(file), f"it is no CSV: {error}") from None
    times = [_parsed(file, stamp, lambda text: datetime.fromisoformat(text).timestamp()) for stamp in stamps]
    return Recorded(name=file.name, times_s=tuple(sorted(times)))


def _seconds(file: Path, lines: Sequence[str]) -> Recorded:
    return Recorded(name=file.name, times_s=tuple(sorted(_parsed(file, line, float) for line in lines)))


def _parsed(file: Path, text: str | None, parse: Callable[[str], float]) -> float:
    try:
        value = parse(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidInput("trace", text, f"{file.name} needs a {TIMESTAMP} column of dates, or seconds, one per line")
    return value


def _numbers(spec: str, arguments: str, fields: tuple[str, ...]) -> Mapping[str, float]:
    pairs = [part.partition("=") for part in arguments.split(",") if part]
    try:
        values = {name: float(value) for name, _, value in pairs}
    except ValueError:
        raise InvalidInput("trace", spec, SPECS) from None
    if set(values) != set(fields) or len(pairs) != len(fields):
        raise InvalidInput("trace", spec, SPECS)
    return values


_PROCESSES: Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[str, float]], Arrivals]]] = {
    "poisson": ((), lambda _: Gamma(cv=1.0)),
    "gamma": (("cv",), lambda given: Gamma(cv=given["cv"])),
    "ramp": (("from", "to"), lambda given: Ramp(start=given["from"], end=given["to"])),
    "step": (("to", "share"), lambda given: Step(to=given["to"], share=given["share"])),
    "on-off": (("burst", "share"), lambda given: OnOff(burst=given["burst"], share=given["share"])),
}
