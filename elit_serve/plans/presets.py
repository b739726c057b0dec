"""The presets of OpenAI's `quality`, as budgets."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

QualityPreset = Literal["low", "medium", "high"]

PRESET_BUDGETS: Mapping[QualityPreset, float] = MappingProxyType({"low": 0.25, "medium": 0.5, "high": 1.0})  # rising
