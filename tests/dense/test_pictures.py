"""What an imported folder makes is what diffusers' own pipeline makes, with promises, steps in flight and skips."""

from __future__ import annotations

import pytest
import torch
from dense.conftest import Made
from dense.folders import FAMILIES
from dense.theirs import their_picture

from elit_serve.engine.pipeline import Pipeline
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
