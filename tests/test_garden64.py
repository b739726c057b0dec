"""The bundled model: it loads, its levels cost what they should, and it says where it comes from."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

import elit_serve
from elit_serve.catalogue import resolve_model
from elit_serve.engine.pipeline import Pipeline
from elit_serve.pictures import read_facts


@pytest.fixture(scope="module")
def garden64() -> Pipeline:
    return elit_serve.load("garden64", device="cpu")


def test_it_is_small_enough_to_travel_in_the_wheel() -> None:
    weights = resolve_model("garden64") / "model.safetensors"
    assert weights.stat().st_size <= 40_000_000


def test_it_names_its_photographs_authors() -> None:
    folder = resolve_model("garden64")
    for text in ((folder / "config.json").read_text(), (folder / "README.md").read_text()):
        assert "CC BY 2.0" in text
        assert "Marcus Klasson" in text


def test_guided_sampling_at_the_lowest_level_takes_less_than_half_the_flops_of_the_full_one(
    garden64: Pipeline,
) -> None:
    spec, weak = garden64.spec, garden64.config.sampling.guidance.weak_level
    costs = [spec.flops(level).executed + spec.flops(min(weak, level)).executed for level in garden64.config.levels]
    assert costs == sorted(costs)
    assert costs[0] <= 0.45 * costs[-1]


def test_a_class_and_a_budget_give_a_picture_that_can_be_made_again(garden64: Pipeline) -> None:
    picture = garden64.generate("tulip", budget=0.25, seed=7, steps=8)
    data = picture.encode("png")
    facts = read_facts(data)
    assert facts is not None
    again = garden64.generate(str(facts["label"]), levels=[4] * 8, seed=7)
    assert again.encode("png") == data
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (64, 64)
        assert len(image.getcolors(maxcolors=64 * 64) or []) > 1000  # a photograph, not a flat field


def test_in_bfloat16_a_picture_does_not_depend_on_its_batch() -> None:
    pipeline = elit_serve.load("garden64", device="cpu", dtype="bfloat16")
    plan = pipeline.plan(budget=1 / 16, steps=8)
    tulip, rose = pipeline.conditions.named("tulip"), pipeline.conditions.named("rose")
    together = pipeline.sample([rose, tulip], [3, 7], plan)[1]
    alone = pipeline.sample([tulip], [7], plan)[0]
    psnr_db = -10 * torch.log10((together - alone).square().mean().clamp_min(1e-12))
    assert psnr_db >= 40
