"""A published checkpoint becomes a model that computes what the published code computes, and is served."""

from __future__ import annotations

import hashlib
import io
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from autoencoders import save_kl, save_tiny
from PIL import Image
from published import random_weights, save_published
from safetensors.torch import load, load_file
from torch import Tensor
from typer.testing import CliRunner

from elit_serve.catalogue import read_config
from elit_serve.cli import app
from elit_serve.engine.checkpoint import load_checkpoint
from elit_serve.engine.conditions import ClassConditions
from elit_serve.engine.pipeline import Pipeline
from elit_serve.files.config import ModelConfig
from elit_serve.importing.classes import class_names
from elit_serve.importing.command import import_model
from elit_serve.importing.sit import Split
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable

WritePublished = Callable[..., Path]
HEADS = Split(num_heads=4)
LATENT = "application/x-safetensors"
COST = CostTable(
    steps_ms={(StepKind("16x16", level, weak), 1): 100.0 for level in (1, 4, 16) for weak in (None, 1)},
    overhead_ms=10.0,
)


def imported(file: Path, out: Path, **options: Any) -> ModelConfig:
    given = {"source": "random weights", "license_text": "none", "split": HEADS, "dtype": "float32", **options}
    return import_model(file, out, **given)


@pytest.mark.parametrize("level", [16, 8, 4, 1])
def test_velocities_are_those_of_the_published_code(
    write_published: WritePublished, published: dict[str, Tensor], tmp_path: Path, level: int
) -> None:
    """Their time runs from data to noise, and so does their velocity; the third sample has no class."""
    imported(write_published(), tmp_path / "tiny")
    model = load_checkpoint(tmp_path / "tiny").model
    x, t, label = (published[f"vectors.{name}"] for name in ("x", "t", "y"))
    theirs = published[f"vectors.velocity_{level}"]
    ours = model(x, 1 - t, label, level)
    assert float((ours + theirs).norm() / theirs.norm()) < 1e-5
    assert model.null_like(label)[2] == label[2]


def test_the_directory_says_what_it_is_and_where_it_comes_from(write_published: WritePublished, tmp_path: Path) -> None:
    file = write_published()
    config = imported(file, tmp_path / "tiny", dtype="bfloat16", source="a hub", license_text="for tests")
    assert config == read_config(tmp_path / "tiny")
    assert config.backbone.kind == "elit-sit"
    assert config.backbone.fields["interface"] == {"window": [4, 4], "head": 2, "core": 3, "tail": 1}
    assert config.levels == tuple(range(1, 17))
    assert config.shapes == {"16x16": (4, 16, 16)}
    assert config.classes == tuple("0123456789")
    assert config.sampling.steps == 50
    assert config.sampling.guidance == Guidance(method="ccfg", scale=4.0, weak_level=1)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    origin = {"file": "published.pt", "sha256": digest, "averaged": True, "steps": 7}
    assert config.provenance == {"source": "a hub", "license": "for tests", "imported_from": origin}
    assert {tensor.dtype for tensor in load_file(tmp_path / "tiny" / "model.safetensors").values()} == {torch.bfloat16}


def test_the_command_imports_what_is_then_served(
    write_published: WritePublished, tmp_path: Path, start_server: Any
) -> None:
    """Without an autoencoder the answer is the sample itself."""
    (tmp_path / "names.txt").write_text("".join(f"class {index}\n" for index in range(10)))
    command = ["import", str(write_published()), str(tmp_path / "tiny"), "--heads", "4", "--levels", "1,4,16"]
    command += ["--source", "random weights", "--license", "none", "--classes", str(tmp_path / "names.txt")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "model.safetensors" in done.stdout
    pipeline = Pipeline.load(tmp_path / "tiny", device="cpu")
    assert pipeline.config.levels == (1, 4, 16)
    answer = start_server(pipeline, cost=COST).generate({"label": "class 3", "steps": 2, "budget": 0.25}, accept=LATENT)
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Elit-Levels"] == "4,4"
    assert load(answer.content)["latent"].shape == (4, 16, 16)


@pytest.mark.parametrize(("side", "group"), [(6, 3), (8, 2)])
def test_a_file_of_other_sizes_needs_nothing_else(tmp_path: Path, side: int, group: int) -> None:
    """Another width, depth, patch, window, number of channels and place of Read."""
    weights = random_weights(dim=48, depth=9, patch=4, channels=16, side=side, latents=group * group, num_classes=1000)
    file = save_published(tmp_path / "other.pt", weights, args=Namespace(encoder_depth=4, elit_group_size=group))
    config = imported(file, tmp_path / "other", split=Split(num_heads=3))
    assert config.shapes == {f"{4 * side}x{4 * side}": (16, 4 * side, 4 * side)}
    assert config.backbone.fields["interface"] == {"window": [group, group], "head": 4, "core": 3, "tail": 2}
    assert (config.levels, len(config.classes)) == (tuple(range(1, group * group + 1)), 1000)
    model = load_checkpoint(tmp_path / "other").model
    x, t, label = torch.randn(2, 16, 4 * side, 4 * side), torch.tensor([0.2, 0.7]), torch.tensor([3, 1000])
    velocities = [model(x, t, label, level) for level in (1, group * group)]
    assert all(velocity.isfinite().all() for velocity in velocities)
    assert not torch.allclose(*velocities)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_bare_state_dict_and_wrapped_names_are_read_too(
    write_published: WritePublished, weights: dict[str, Tensor], tmp_path: Path, prefix: str
) -> None:
    whole = imported(write_published(), tmp_path / "whole")
    torch.save({prefix + name: tensor for name, tensor in weights.items()}, tmp_path / "bare.pt")
    split = Split(num_heads=4, head=2)
    bare = imported(tmp_path / "bare.pt", tmp_path / "bare", split=split)
    assert bare.weights.files == whole.weights.files
    assert bare.provenance["imported_from"]["averaged"] is False


def test_a_model_that_was_trained_at_one_budget_has_no_weak_pass_at_another(
    write_published: WritePublished, tmp_path: Path
) -> None:
    config = imported(write_published(), tmp_path / "one", levels=(16,))
    assert config.levels == (16,)
    assert config.sampling.guidance == Guidance(method="cfg", scale=4.0)


def test_weights_may_be_written_in_several_files(write_published: WritePublished, tmp_path: Path) -> None:
    whole = imported(write_published(), tmp_path / "whole")
    parts = imported(write_published(), tmp_path / "parts", max_shard_bytes=300_000)
    assert (len(whole.weights.files), len(parts.weights.files) > 5) == (1, True)
    states = [load_checkpoint(tmp_path / name).model.state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_plain_sit_is_imported_as_such(
    write_published: WritePublished, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    plain = {name: tensor for name, tensor in weights.items() if "token_editor" not in name}
    config = imported(write_published(ema=plain), tmp_path / "plain")
    assert (config.backbone.kind, config.levels) == ("sit", (1,))
    assert config.sampling.guidance == Guidance(method="cfg", scale=4.0)
    model = load_checkpoint(tmp_path / "plain").model
    velocity = model(torch.randn(1, 4, 16, 16), torch.tensor([0.5]), torch.tensor([3]))
    assert velocity.isfinite().all()
    assert velocity.any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_behind_an_autoencoder_it_answers_pictures_and_previews(
    write_published: WritePublished, tmp_path: Path, start_server: Any
) -> None:
    folder, tiny = save_kl(tmp_path / "vae", blocks=4), save_tiny(tmp_path / "taesd", blocks=4)
    imported(write_published(), tmp_path / "tiny", autoencoder=folder, preview_autoencoder=tiny)
    server = start_server(Pipeline.load(tmp_path / "tiny", device="cpu"), cost=COST)
    answer = server.generate({"label": 3, "steps": 2, "budget": 0.25}, accept="image/png")
    assert answer.status_code == 200, answer.text
    assert Image.open(io.BytesIO(answer.content)).size == (128, 128)
    assert "elit_decode_seconds_count" in server.client.get("/metrics").text


def test_a_thousand_classes_are_imagenets() -> None:
    names = ClassConditions(class_names(1000, None), model="imagenet")
    assert len(names) == 1000
    for label, class_id in {"tench": 0, "Tinca tinca": 0, "golden retriever": 207, "red panda": 387}.items():
        assert names.named(label).class_id == class_id
    assert names.named("volcano").class_id == 980
    assert [each.name for each in names if each.name.startswith("crane")] == ["crane (bird)", "crane (machine)"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_autoencoder_is_copied_in(write_published: WritePublished, tmp_path: Path) -> None:
    folder, tiny = save_kl(tmp_path / "vae", blocks=4), save_tiny(tmp_path / "taesd", blocks=4)
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    config = imported(write_published(), tmp_path / "tiny", autoencoder=folder, preview_autoencoder=tiny)
    assert (config.autoencoder.kind, config.autoencoder.factor) == ("diffusers", 8)
    for name in ("autoencoder", "preview_autoencoder"):
        copied = sorted(path.name for path in (tmp_path / "tiny" / name).iterdir())
        assert copied == ["config.json", "diffusion_pytorch_model.safetensors"]
