"""What an imported folder makes is what diffusers' own pipeline makes, with promises, steps in flight and skips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense.conftest import Made
from dense.folders import FAMILIES, IMPORTED, SIZE, WIDE
from dense.theirs import their_picture
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from elit_serve.catalogue import read_config
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.text_encoders import open_encoder
from elit_serve.files.config import TextConfig
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.skips import NO_SKIPS, SkipRule

PROMPT, NEGATIVE, SEED = "a small red tulip", "the rose on grass", 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("steps", "scale", "negative"), [(5, 4.0, ""), (3, 2.0, NEGATIVE), (2, 1.0, ""), (8, 1.0, "")])
def test_a_picture_is_that_of_diffusers_by_the_same_seed(
    family: str, steps: int, scale: float, negative: str, model_of: Made
) -> None:
    """To float tolerance: noise, text, time grid, guidance, every step and the autoencoder are the same."""
    theirs = their_picture(family, PROMPT, negative, steps=steps, scale=scale, seed=SEED)
    pipeline = Pipeline.load(model_of(family), device="cpu")
    guidance = Guidance(method="cfg", scale=scale) if scale > 1 else Guidance()
    condition = pipeline.conditions.prompted(PROMPT, negative or None)
    (ours,) = pipeline.sample([condition], [SEED], pipeline.plan(steps=steps, guidance=guidance))
    assert theirs.std() > 0.02
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", [family for family in FAMILIES if WIDE in IMPORTED[family].get("sizes", [])])
def test_a_picture_of_another_size_has_the_time_grid_of_that_size(family: str, model_of: Made) -> None:
    theirs = their_picture(family, PROMPT, "", steps=4, scale=4.0, seed=SEED, width=2 * SIZE)
    pipeline = Pipeline.load(model_of(family), device="cpu")
    usual, wide = (
        pipeline.plan(steps=4, guidance=Guidance(method="cfg", scale=4.0), size=size) for size in (None, WIDE)
    )
    assert wide.times != usual.times
    (ours,) = pipeline.sample([pipeline.conditions.prompted(PROMPT)], [SEED], wide, size=WIDE)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    only_wide = Pipeline.load(model_of(family), device="cpu", sizes=[WIDE])
    assert only_wide.plan(steps=4).times == wide.times
    assert only_wide.config.sampling.time_shift == wide.time_shift


def test_layers_of_a_text_encoder_whose_states_nobody_reads_are_not_run(
    model_of: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ran = model_of("flux2-klein"), []
    told = read_config(model).conditions
    assert isinstance(told, TextConfig)
    encoder = open_encoder(told, model, torch.device("cpu"))
    forward = Qwen3DecoderLayer.forward

    def counted(self: Qwen3DecoderLayer, *arguments: Any, **named: Any) -> Any:
        ran.append(self)
        return forward(self, *arguments, **named)

    monkeypatch.setattr(Qwen3DecoderLayer, "forward", counted)
    encoder.encode([PROMPT])
    assert len(ran) == 28  # of 30; its pipeline reads the states behind 9, 18 and 27


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_a_picture_is_near_to_that_in_float32_and_to_that_of_diffusers(family: str, model_of: Made) -> None:
    """On the average over its pixels, as told in models/README.md. What is left of the second is mostly what diffusers'
    own text encoder, noise levels and autoencoder lose in it."""
    theirs = their_picture(family, PROMPT, "", steps=5, scale=4.0, seed=SEED, dtype=torch.bfloat16)
    made = []
    for dtype in ("float32", "bfloat16"):
        pipeline = Pipeline.load(model_of(family), device="cpu", dtype=dtype)
        plan = pipeline.plan(steps=5, guidance=Guidance(method="cfg", scale=4.0))
        made += pipeline.sample([pipeline.conditions.prompted(PROMPT)], [SEED], plan)
    exact, ours = made
    assert 1e-5 < (ours - exact).abs().mean() < 0.004
    assert (ours - theirs).abs().mean() < 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_other_lengths_beside_it_change_nothing(family: str, model_of: Made) -> None:
    pipeline = Pipeline.load(model_of(family), device="cpu")
    conditions = [pipeline.conditions.prompted(prompt, NEGATIVE) for prompt in ("", PROMPT, "a red tulip " * 12)]
    plan = pipeline.plan(steps=2, guidance=Guidance(method="cfg", scale=3.0))
    together = pipeline.sample(conditions, [SEED] * 3, plan)
    alone = [pipeline.sample([condition], [SEED], plan) for condition in conditions]
    assert not torch.allclose(alone[0], alone[2], atol=1e-3)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_skip_what_hardly_changes(family: str, model_of: Made) -> None:
    """By a rule over how much the timestep embedding changes, as of any other backbone."""
    pipeline = Pipeline.load(model_of(family), device="cpu")
    condition = pipeline.conditions.prompted(PROMPT)
    guidance, rule = Guidance(method="cfg", scale=4.0), SkipRule(threshold=4.0, halves_weak=True)
    whole, skipping = (pipeline.plan(steps=8, guidance=guidance, skips=skips) for skips in (NO_SKIPS, rule))
    assert skipping.skips.core
    assert skipping.skips.weak
    pictures = [pipeline.sample([condition], [SEED], plan) for plan in (whole, skipping)]
    assert not torch.equal(*pictures)
    assert (pictures[0] - pictures[1]).abs().mean() < 0.1
