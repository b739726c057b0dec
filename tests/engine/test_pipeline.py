"""Labels, seeds and plans to pictures: reproducible alone, in a batch, and from the facts in the file."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import elit_serve
from elit_serve.engine.checkpoint import write_checkpoint
from elit_serve.engine.pipeline import Pipeline, choose_device, save_image
from elit_serve.errors import GenerationFailed, InvalidInput
from elit_serve.files.config import ModelConfig
from elit_serve.pictures import read_facts
from elit_serve.plans.bounds import MAX_SEED, MAX_STEPS
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan


@pytest.fixture(scope="module")
def pipeline(shared_tiny_model_dir: Path) -> Pipeline:
    return Pipeline.load(shared_tiny_model_dir, device="cpu")


def psnr_db(first: torch.Tensor, second: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of pictures in [0, 1]."""
    error = float((first - second).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


@pytest.mark.parametrize("method", ["none", "cfg", "ag", "ccfg"])
def test_a_picture_is_the_same_alone_and_in_a_batch(pipeline: Pipeline, method: str) -> None:
    plan = pipeline.plan(levels=[4, 4, 2, 2], guidance=pipeline.guidance(method=method, scale=1.5, weak_budget=0.25))
    batch = pipeline.sample([pipeline.conditions[index] for index in (0, 1, 2, 1)], [5, 6, 7, 8], plan)
    for i, (class_id, seed) in enumerate(zip([0, 1, 2, 1], [5, 6, 7, 8], strict=True)):
        alone = pipeline.sample([pipeline.conditions[class_id]], [seed], plan)[0]
        assert float((alone - batch[i]).abs().max()) < 1e-4


def test_in_bfloat16_a_batch_changes_a_picture_by_less_than_40_db(shared_tiny_model_dir: Path) -> None:
    pipeline = Pipeline.load(shared_tiny_model_dir, device="cpu", dtype="bfloat16")
    plan = pipeline.plan()
    batch = pipeline.sample(pipeline.conditions, [5, 6, 7], plan)
    for i in range(3):
        assert psnr_db(pipeline.sample([pipeline.conditions[i]], [5 + i], plan)[0], batch[i]) >= 40


def test_repeating_a_request_gives_the_same_bytes(pipeline: Pipeline, shared_tiny_model_dir: Path) -> None:
    first = pipeline.generate("tulip", budget=0.5, seed=7).encode()
    assert pipeline.generate("tulip", budget=0.5, seed=7).encode() == first
    reloaded = elit_serve.load(shared_tiny_model_dir, device="cpu")
    assert reloaded.generate("tulip", budget=0.5, seed=7).encode() == first


def test_seed_class_and_budget_each_change_the_picture(pipeline: Pipeline) -> None:
    base = np.asarray(pipeline.generate("tulip", seed=7).image)
    for other in (
        pipeline.generate("tulip", seed=8),
        pipeline.generate("rose", seed=7),
        pipeline.generate("tulip", seed=7, budget=0.25),
        pipeline.generate("tulip", seed=7, steps=3),
    ):
        assert not np.array_equal(base, np.asarray(other.image))


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "jpeg"])
def test_the_facts_in_a_file_make_its_picture_again(pipeline: Pipeline, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    plan = pipeline.plan(levels=[1, 4, 4, 2], guidance=Guidance(method="cfg", scale=1.5, interval=(0.2, 0.9)))
    picture = pipeline.run([pipeline.conditions[2]], [11], plan)[0]
    picture.save(path)
    facts = read_facts(path.read_bytes())
    assert facts == picture.facts
    assert facts is not None
    assert facts["model_hash"] == pipeline.model_hash
    assert facts["levels"] == [1, 4, 4, 2]
    guidance = facts["guidance"]
    again = pipeline.generate(
        facts["label"],  # type: ignore[arg-type]
        seed=facts["seed"],  # type: ignore[arg-type]
        levels=facts["levels"],  # type: ignore[arg-type]
        guidance=Guidance(**{**guidance, "interval": tuple(guidance["interval"])}),  # type: ignore[dict-item, index]
    )
    assert np.array_equal(np.asarray(again.image), np.asarray(picture.image))


def test_a_picture_has_the_models_size_and_is_rounded_not_cut(pipeline: Pipeline) -> None:
    plan = pipeline.plan()
    exact = pipeline.sample(pipeline.conditions[:1], [0], plan)[0]
    with Image.open(io.BytesIO(pipeline.run(pipeline.conditions[:1], [0], plan)[0].encode())) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert exact.shape == pixels.shape == (3, 32, 32)
    assert float((pixels / 255 - exact).abs().max()) <= 0.5 / 255 + 1e-6


def test_defaults_come_from_the_model(pipeline: Pipeline) -> None:
    plan = pipeline.plan()
    assert plan == Plan(levels=(4,) * 4, guidance=Guidance(method="ccfg", scale=2.0, weak_level=1))
    assert pipeline.plan(budget=0.5, steps=3).levels == (2, 2, 2)
    assert pipeline.guidance(scale=3.0) == Guidance(method="ccfg", scale=3.0, weak_level=1)
    assert pipeline.guidance(weak_budget=0.5, interval=(0, 0.5)).weak_level == 2


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"budget": 0.0}, "budget"),
        ({"budget": 0.5, "levels": [2]}, "budget"),
        ({"steps": 3, "levels": [2]}, "steps"),
        ({"levels": [2, 5]}, "levels"),
        ({"levels": []}, "levels"),
        ({"levels": [1] * (MAX_STEPS + 1)}, "levels"),
        ({"steps": 0}, "steps"),
        ({"steps": MAX_STEPS + 1}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": MAX_SEED + 1}, "seed"),
        ({"label": "orchid"}, "label"),
        ({"label": 3}, "label"),
        ({"label": "-1"}, "label"),
        ({"guidance": Guidance(method="ccfg", scale=2, weak_level=9)}, "guidance.weak_level"),
        ({"guidance": Guidance(method="ag", scale=2, weak_level=4)}, "guidance.weak_level"),
    ],
)
def test_bad_requests_are_refused_by_field(pipeline: Pipeline, arguments: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        pipeline.generate(**({"label": "tulip"} | arguments))  # type: ignore[arg-type]
    assert caught.value.field == field


def test_broken_weights_fail_the_request(tiny_config: ModelConfig, shared_tiny_model_dir: Path, tmp_path: Path) -> None:
    weights = load_file(shared_tiny_model_dir / "model.safetensors")
    weights["final.linear.bias"] = weights["final.linear.bias"] + math.nan
    write_checkpoint(tmp_path / "broken", tiny_config, weights)
    with pytest.raises(GenerationFailed, match="NaN"):
        Pipeline.load(tmp_path / "broken", device="cpu").generate("rose")


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "meta", "cpu:zero", ""])
def test_devices_that_are_not_here_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="device"):
        choose_device(name)


def test_an_unknown_dtype_is_refused(shared_tiny_model_dir: Path) -> None:
    with pytest.raises(InvalidInput, match="float32, bfloat16, float16"):
        Pipeline.load(shared_tiny_model_dir, dtype="int4")


def test_a_picture_is_saved_under_a_known_suffix_or_not_at_all(pipeline: Pipeline, tmp_path: Path) -> None:
    picture = pipeline.generate("rose")
    for name in ("picture.gif", "picture", "nowhere/picture.png"):
        with pytest.raises(InvalidInput, match="output"):
            picture.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_too_large_for_its_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"it cannot be encoded: .*16383") as refusal:
        save_image(Image.new("RGB", (4, 17_000)), tmp_path / "sheet.webp")
    assert refusal.value.field == "output"
    assert not (tmp_path / "sheet.webp").exists()
