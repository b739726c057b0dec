"""How long the device encodes prompts that it does not know, at most: some encoders take longer for longer ones."""

from __future__ import annotations

from itertools import count
from statistics import median

from elit_serve.clock import Clock
from elit_serve.engine.pipeline import Pipeline
from elit_serve.plans.bounds import MAX_PROMPT

BATCHES = (1, 8)  # prompts; where more begin together each takes less


def text_times(pipeline: Pipeline, *, clock: Clock, repeats: int) -> dict[int, float]:
    """Milliseconds for so many prompts of the greatest length together, medians of `repeats` after one that is not
    counted, on an otherwise idle device. Empty for a model that has no prompts."""
    encoder = pipeline.conditions.encoder
    if encoder is None:
        return {}
    numbers = count()  # so that no prompt comes twice
    example = (f" {pipeline.conditions[0].words}" * MAX_PROMPT)[:MAX_PROMPT]
    found = {}
    for batch in BATCHES:
        took_ms = []
        for _ in range(repeats + 1):
            prompts = [f"{next(numbers)}{example}"[:MAX_PROMPT] for _ in range(batch)]
            started_s = clock.now()
            encoder.encode(prompts).cpu()  # which waits for the device
            took_ms.append(1000 * (clock.now() - started_s))
        found[batch] = median(took_ms[1:])
    return found
