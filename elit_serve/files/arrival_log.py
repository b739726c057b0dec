"""The arrival log of a server, a line of JSON for each valid request: `serve` writes it, and `simulate --trace` and
`bench --trace` replay it."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, Field


class LoggedRequest(BaseModel):
    """A line. What was not said is null, and what is only told, never replayed, may be missing.

    arrived_s: in Unix time. latency_ms: the target. n: pictures. budget: what is pinned, as a mean over the steps.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    arrived_s: float = Field(allow_inf_nan=False)
    latency_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    n: int = Field(default=1, ge=1, le=1024)
    class_id: int | None = None
    budget: float | None = None
    min_budget: float | None = None
    max_budget: float | None = None
    min_quality: float | None = None
    steps: int | None = None
    size: str | None = None
    best_effort: bool | None = None
    priority: str | None = None

    @property
    def line(self) -> str:
        return json.dumps(self.model_dump(mode="json"))
