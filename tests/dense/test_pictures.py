"""What an imported folder makes is what diffusers' own pipeline makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dense.conftest import Made
from dense.folders import FAMILIES
from dense.theirs import their_picture
from torch import Tensor

from elit_serve.engine.autoencoders import choose_autoencoders, open_autoencoder
from elit_serve.engine.checkpoint import load_checkpoint
from elit_serve.engine.conditions.text import TextCondition, TextConditions
from elit_serve.engine.executor import offline
from elit_serve.engine.pixels import from_signed
from elit_serve.engine.text_encoders.diffusers import DiffusersEncoder
from elit_serve.files.config import TextConfig
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan

CPU = torch.device("cpu")
PROMPT, NEGATIVE, SEED = "a small red tulip", "the rose on grass", 3


def our_picture(model: Path, prompt: str, negative: str, *, steps: int, scale: float, seed: int) -> Tensor:
    """[3, H, W] in [0, 1]"""
    checkpoint = load_checkpoint(model)
    config = checkpoint.config
    assert isinstance(config.conditions, TextConfig)
    encoder = DiffusersEncoder(model, config.conditions.dim, config.conditions.max_tokens, CPU)
    conditions = TextConditions(config.conditions, model=config.name, encoder=encoder)
    drawing = offline.BareModel(
        model=checkpoint.model, device=CPU, conditions=conditions, shapes=(config.default_shape,)
    )
    guidance = Guidance(method="cfg", scale=scale) if scale > 1 else Guidance()
    plan = Plan(levels=(1,) * steps, guidance=guidance, time_shift=config.sampling.time_shift)
    chosen = choose_autoencoders(config, model)
    with torch.inference_mode():
        told = TextCondition(prompt, negative or None)
        samples = offline.samples_of(drawing, [told], [seed], plan, config.default_shape)
        return from_signed(open_autoencoder(chosen.config, chosen.folder, CPU).decode(samples))[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("steps", "scale", "negative"), [(5, 4.0, ""), (3, 2.0, NEGATIVE), (2, 1.0, ""), (8, 1.0, "")])
def test_a_picture_is_that_of_diffusers_by_the_same_seed(
    family: str, steps: int, scale: float, negative: str, model_of: Made
) -> None:
    """To float tolerance: noise, text, time grid, guidance, every step and the autoencoder are the same."""
    theirs = their_picture(family, PROMPT, negative, steps=steps, scale=scale, seed=SEED)
    ours = our_picture(model_of(family), PROMPT, negative, steps=steps, scale=scale, seed=SEED)
    assert theirs.std() > 0.02
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
