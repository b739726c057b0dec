"""What a measured figure depends on beside the plan."""

from __future__ import annotations

import platform
from datetime import UTC, datetime

import torch

import elit_serve
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.profiler import device_name
from elit_serve.text.command_line import command_line


def provenance(pipeline: Pipeline, batch_size: int) -> dict[str, str | int | float]:
    """Command, date, device, number format, batch size and versions."""
    return {
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(pipeline.device),
        "dtype": pipeline.precision,
        "batch_size": batch_size,
        "elit_serve": elit_serve.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
