"""Attention on the command line: what lies in the folder, and that the right pixels light up."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from elit_serve.engine.checkpoint import spec_of, write_checkpoint
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.report.attention_maps import (
    halved_levels,
    overlay,
    record_reads,
    write_attention,
)
from elit_serve.evaluation.report.sheets import evenly
from elit_serve.files.config import ModelConfig
from elit_serve.nn import DiTSpec, ElitDiTSpec, InterfaceSpec, build


@pytest.fixture(scope="module")
def pipeline(shared_tiny_model_dir: Path) -> Pipeline:
    return Pipeline.load(shared_tiny_model_dir, device="cpu")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "elit_serve.cli", "generate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_writes_maps_of_several_levels_and_steps(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "deep" / "reads", tmp_path / "rose.png"
    done = run(tiny_model_dir, "--label", "rose", "--seed", "3", "-o", output, "--attention", folder)
    assert done.returncode == 0, done.stderr
    assert run(tiny_model_dir, "--label", "rose", "--seed", "3", "-o", tmp_path / "alone.png").returncode == 0
    assert output.read_bytes() == (tmp_path / "alone.png").read_bytes()  # looking changes nothing
    facts = json.loads((folder / "attention.json").read_text())
    assert [level["level"] for level in facts["levels"]] == [4, 2, 1]
    assert [line.split()[0] for line in done.stderr.splitlines() if line.strip()[:1].isdigit()] == ["4", "2", "1"]
    maps = load_file(folder / "maps.safetensors")
    for level in facts["levels"]:
        assert [step["step"] for step in level["steps"]] == [1, 2, 3, 4]
        for step in level["steps"]:
            probabilities = maps.pop(step["name"])
            assert probabilities.shape == (16, 4, 4)  # Read makes all latents at every level
            torch.testing.assert_close(probabilities.sum(-1), torch.ones(16, 4))
            assert 1 <= step["tokens_per_latent"] <= 4 + 1e-4
            assert 1 <= step["latents_per_token"] <= 4 + 1e-4
            assert -1 / 3 <= step["cosine_after_read"] <= 1
            assert ("cosine_after_core" in step, "rank_after_core" in step) == (level["level"] > 1,) * 2
            assert step["least_read"] <= 1 <= step["most_read"]
            with Image.open(folder / f"{step['name']}.png") as picture:
                assert picture.size == (192, 192)
    assert not maps
    with Image.open(folder / "reads.png") as sheet:
        assert sheet.width > 5 * 192  # the picture and four steps
        assert sheet.height > 3 * 192
    assert (folder / "first-latent.png").is_file()
    assert (folder / "latents.png").is_file()


def test_a_budget_is_looked_at_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    done = run(tiny_model_dir, "--label", "rose", "--budget", "0.5", "-o", tmp_path / "a.png", "--attention", tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "attention.json").read_text())
    assert [level["level"] for level in facts["levels"]] == [2]


def test_the_main_branch_is_recorded_not_the_weak_one(pipeline: Pipeline) -> None:
    plan = pipeline.plan(steps=3)
    assert plan.step_kinds("s")[1].weak_level == 1
    record = record_reads(pipeline, pipeline.conditions[0], 5, plan, [0, 2])
    assert [(read.step, read.level, read.probabilities.shape[1]) for read in record.maps] == [(0, 4, 4), (2, 4, 4)]
    assert record.maps[1].t == pytest.approx(2 / 3)


@pytest.mark.parametrize("reach", ["all", "prefix"])
def test_a_map_shows_what_the_latents_of_the_core_read(tiny_config: ModelConfig, tmp_path: Path, reach: str) -> None:
    spec = spec_of(tiny_config)
    assert isinstance(spec, ElitDiTSpec)
    spec = replace(spec, interface=replace(spec.interface, reach=reach))
    config = ModelConfig.model_validate({**tiny_config.model_dump(), **spec.config_fields()})
    write_checkpoint(tmp_path / reach, config, build(spec).state_dict())
    pipeline = Pipeline.load(tmp_path / reach, device="cpu")
    plan = pipeline.plan(steps=2, guidance=pipeline.guidance(method="none")).at_level(2)
    (seen,) = record_reads(pipeline, pipeline.conditions[0], 5, plan, [1]).maps
    assert seen.probabilities.shape == (16, 4 if reach == "all" else 2, 4)
    torch.testing.assert_close(seen.relative(), seen.probabilities[:, :2].mean(dim=1).flatten() * 4)
    torch.testing.assert_close(seen.relative(1), seen.probabilities[:, 1].flatten() * 4)


def test_a_token_that_is_read_most_lights_its_own_pixels(pipeline: Pipeline) -> None:
    spec = pipeline.spec  # 8 x 8 tokens in windows of 2 x 2, drawn 24 pixels wide each
    picture = Image.new("RGB", (32, 32), (100, 100, 100))
    relative = torch.ones(64)
    relative[4 + 3] = 4.0  # the last token of the second group: row 1, column 3
    relative[16 + 1] = 0.25  # the second of the fifth group: row 2, column 1
    pixels = np.asarray(overlay(picture, relative, spec)).astype(int)
    red, blue = pixels[..., 0], pixels[..., 2]
    centres = {(row, column): (row * 24 + 12, column * 24 + 12) for row in range(8) for column in range(8)}
    orange = [token for token, (y, x) in centres.items() if red[y, x] > blue[y, x] + 50]
    bluish = [token for token, (y, x) in centres.items() if blue[y, x] > red[y, x] + 50]
    assert (orange, bluish) == ([(1, 3)], [(2, 1)])
    assert pixels[12, 12].tolist() == [100, 100, 100]  # uniform leaves the picture as it is
    hot = red > blue + 50
    assert hot[25:47, 73:95].all()
    assert not hot[:24].any()
    assert not hot[48:].any()


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_zeros_between_patches_are_counted_and_the_map_is_of_the_patches(
    tiny_config: ModelConfig, tmp_path: Path, positions: str
) -> None:
    spec = replace(spec_of(tiny_config), zeros_between=1, positions=positions)  # 16 x 16 tokens, 64 groups of 4
    config = ModelConfig.model_validate({**tiny_config.model_dump(), **spec.config_fields()})
    write_checkpoint(tmp_path / "spread", config, build(spec).state_dict())
    done = run(tmp_path / "spread", "--label", "rose", "-o", tmp_path / "a.png", "--attention", tmp_path / "reads")
    assert done.returncode == 0, done.stderr
    maps = load_file(tmp_path / "reads" / "maps.safetensors")
    assert maps["level-04-step-001"].shape == (64, 4, 4)
    facts = json.loads((tmp_path / "reads" / "attention.json").read_text())
    assert facts["zeros_of_tokens"] == 0.75
    for step in facts["levels"][0]["steps"]:
        on_zeros = maps[step["name"]][:, :, 1:].sum(dim=-1).mean()  # the first of each window is real
        assert step["share_on_zeros"] == pytest.approx(float(on_zeros), abs=1e-5)
    with Image.open(tmp_path / "reads" / "level-04-step-001.png") as shown:
        assert shown.size == (192, 192)


def test_what_is_read_of_zeros_lights_no_pixel(pipeline: Pipeline) -> None:
    spec = replace(pipeline.spec, zeros_between=1, interface=replace(pipeline.spec.interface, window=(4, 4)))
    relative = torch.ones(256)  # 16 groups of 16 tokens; each group is 2 x 2 patches, drawn 24 pixels wide each
    relative[16 + 1] = 4.0  # of the second group the second token: zeros
    relative[16 + 10] = 4.0  # and the third of its third row: the patch in row 1, column 3 of the picture
    pixels = np.asarray(overlay(Image.new("RGB", (32, 32), (10, 10, 10)), relative, spec)).astype(int)
    hot = pixels[..., 0] > pixels[..., 2] + 50
    assert hot[25:47, 73:95].all()
    assert hot.sum() <= 24 * 24
    on_lines = [x for x in range(192) if (pixels[[5, 30, 55], x] > 50).all()]
    assert on_lines == [48, 96, 144]  # lines part the groups


def test_halves_and_steps() -> None:
    assert halved_levels(range(1, 17)) == [16, 8, 4, 2, 1]
    assert halved_levels([12, 6, 4]) == [12, 6]
    assert evenly(40, 5) == [0, 10, 20, 29, 39]
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(1, 5) == [0]


@pytest.mark.parametrize(
    ("autoencoder", "elastic", "why"), [("pixels", False, "plain DiT"), ("none", True, "autoencoder")]
)
def test_a_model_without_reads_or_pictures_is_refused(
    tiny_config: ModelConfig, tmp_path: Path, autoencoder: str, elastic: bool, why: str
) -> None:
    interface = InterfaceSpec(window=(2, 2), head=1, core=1, tail=0)
    fields = {
        "channels": 3,
        "height": 8,
        "width": 8,
        "patch": 2,
        "dim": 16,
        "depth": 2,
        "num_heads": 1,
        "num_classes": 3,
    }
    spec = ElitDiTSpec(**fields, interface=interface) if elastic else DiTSpec(**fields)
    config = tiny_config.model_copy(
        update={
            **vars(ModelConfig.model_validate({**tiny_config.model_dump(), **spec.config_fields(), "levels": [1]})),
            "levels": (1,),
            "autoencoder": tiny_config.autoencoder.model_copy(update={"kind": autoencoder}),
            "sampling": tiny_config.sampling.model_copy(
                update={"guidance": replace(tiny_config.sampling.guidance, method="none", scale=1.0)}
            ),
        }
    )
    write_checkpoint(tmp_path / "other", config, build(spec).state_dict())
    other = Pipeline.load(tmp_path / "other", device="cpu")
    with pytest.raises(InvalidInput, match=why) as caught:
        write_attention(
            other, other.plan(), condition=other.conditions[0], seed=0, levels=[1], folder=tmp_path / "reads"
        )
    assert caught.value.field == "attention"
    assert not (tmp_path / "reads").exists()


def test_a_folder_that_cannot_be_made_stops_before_sampling(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    done = run(tiny_model_dir, "--label", "rose", "-o", tmp_path / "a.png", "--attention", file)
    assert done.returncode == 2
    assert done.stderr.startswith("error: attention: ")
    grid = run(tiny_model_dir, "--label", "rose", "--grid", "-o", tmp_path / "a.png", "--attention", tmp_path / "x")
    assert grid.returncode == 2
    assert not (tmp_path / "a.png").exists()
