"""A folder of diffusers becomes a model directory, or is refused with one error that says what is wrong with it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from dense.conftest import Made
from dense.folders import FAMILIES, IMPORTED, MAX_TOKENS
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from elit_serve.catalogue import read_config
from elit_serve.cli import app
from elit_serve.engine.checkpoint import load_checkpoint
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.text_encoders import copy_encoder, open_encoder
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.config import TextConfig
from elit_serve.importing.diffusers_folder import import_folder
from elit_serve.importing.pipelines import Scheduler, shift_of_flux2_klein
from elit_serve.plans.grid import TimeShift, time_grid
from elit_serve.plans.guidance import Guidance

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(model_of: Made, tmp_path: Path) -> Path:
    """As diffusers wrote it."""
    copy = shutil.copytree(model_of("prx"), tmp_path / "tiny")
    (copy / "config.json").unlink()
    return copy


def change(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | fields), encoding="utf-8")


def test_the_command_writes_one_file_and_leaves_all_others(folder: Path) -> None:
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    options = ["--sizes", "16x16,32x24", "--steps", "6", "--source", "here", "--license", "Apache-2.0"]
    run = CliRunner().invoke(app, ["import", str(folder), *options])
    assert run.exit_code == 0, run.output
    config = read_config(folder)
    assert {file for file in folder.rglob("*") if file.is_file()} == {*before, folder / "config.json"}
    assert all(file.read_bytes() == content for file, content in before.items())
    assert config.shapes == {"8x8": (4, 8, 8), "12x16": (4, 12, 16)}
    assert (config.autoencoder.folder, config.autoencoder.factor) == ("vae", 2)
    assert isinstance(config.conditions, TextConfig)
    assert (config.conditions.max_tokens, config.conditions.negative) == (7, True)
    assert config.sampling.steps == 6
    assert config.sampling.guidance == Guidance(method="cfg", scale=4.0)
    assert config.sampling.time_shift == TimeShift(factor=3.0, last=0.003 / 1.002)
    assert config.provenance["license"] == "Apache-2.0"
    assert [*config.weights.files] == [WEIGHTS]
    model = load_checkpoint(folder).model
    theirs = load_file(folder / WEIGHTS)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_a_distilled_one_is_told_that_it_is_not_guided(folder: Path) -> None:
    assert import_folder(folder, scale=1.0).sampling.guidance == Guidance()


def test_one_that_says_itself_that_it_is_distilled_is_not_guided(model_of: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(model_of("flux2-klein"), tmp_path / "tiny")
    usual = read_config(folder).sampling
    assert (usual.steps, usual.guidance) == (50, Guidance(method="cfg", scale=4.0))
    change(folder / "model_index.json", is_distilled=True)
    sampling = import_folder(folder, **IMPORTED["flux2-klein"], replace_ours=True).sampling
    assert (sampling.steps, sampling.guidance) == (4, Guidance())
    with pytest.raises(InvalidInput, match=r"--guidance-scale: 4\.0 is not allowed; 1 or left out"):
        import_folder(folder, **IMPORTED["flux2-klein"], scale=4.0, replace_ours=True)


@pytest.mark.parametrize("num_tokens", [16, 4096, 6000])
@pytest.mark.parametrize("told", [{"use_dynamic_shifting": True, "shift_terminal": 0.02}, {"shift": 3.0}])
def test_the_time_grid_of_klein_depends_on_size_and_steps(num_tokens: int, told: dict[str, Any]) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(**told)
    shift = shift_of_flux2_klein(Scheduler.model_validate_json(theirs.to_json_string()), num_tokens)
    for num_steps in (4, 50):
        mu = compute_empirical_mu(num_tokens, num_steps)
        theirs.set_timesteps(sigmas=[1 - step / num_steps for step in range(num_steps)], mu=mu)
        expected = [1 - sigma for sigma in theirs.sigmas.tolist()]
        assert time_grid(num_steps, shift) == pytest.approx(expected, abs=1e-6)


def test_weights_in_several_files_are_taken_as_their_index_says(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / "transformer" / file)
    shards = {name: file for file, own in parts.items() for name in own}
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}), encoding="utf-8")
    (folder / WEIGHTS).unlink()
    assert [*import_folder(folder).weights.files] == [f"transformer/{file}" for file in sorted(parts)]
    load_checkpoint(folder)
    change(index, weight_map=dict.fromkeys(names, "../../elsewhere.safetensors"))
    with pytest.raises(CheckpointError, match="elsewhere"):
        import_folder(folder, replace_ours=True)


def test_a_folder_that_was_not_imported_says_what_to_do(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="this is a folder of diffusers, which elit-serve import makes a model"):
        load_checkpoint(folder)


def test_what_was_imported_is_not_replaced_unasked(folder: Path) -> None:
    import_folder(folder)
    with pytest.raises(InvalidInput, match="it has a config"):
        import_folder(folder)
    import_folder(folder, replace_ours=True)


@pytest.mark.parametrize(
    ("file", "fields", "problem"),
    [
        ("model_index.json", {"_class_name": "OtherPipeline"}, "'OtherPipeline' is not allowed; one of PRXPipeline, Q"),
        ("transformer/config.json", {"_class_name": "Other"}, "'Other' is not allowed; this pipeline has PRXTransf"),
        ("transformer/config.json", {"depth": 0}, "transformer/config.json: depth: a whole number from 1 to 512"),
        ("transformer/config.json", {"depth": 2}, r"tensor blocks\.2\.\S+ does not belong to this backbone"),
        ("transformer/config.json", {"depth": 4}, r"tensor blocks\.3\.\S+ is missing"),
        ("transformer/config.json", {"new": 1}, "transformer/config.json: new: Extra inputs are not permitted"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIM"}, "scheduler_config.json: _class_name: 'DDIM' is"),
        ("scheduler/scheduler_config.json", {"use_beta_sigmas": True}, "use_beta_sigmas: true is not allowed"),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "PRX has one shift for all sizes"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 1}, "scheduler_config.json: time_shift.last: 1.0"),
    ],
)
def test_what_is_not_as_it_must_be_is_refused(folder: Path, file: str, fields: dict[str, Any], problem: str) -> None:
    change(folder / file, **fields)
    with pytest.raises(CheckpointError, match=problem):
        import_folder(folder)
    assert not (folder / "config.json").exists()


def test_a_published_qwen_image_has_a_name_that_diffusers_ignores_too(model_of: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(model_of("qwen-image"), tmp_path / "tiny")
    change(folder / "transformer" / "config.json", pooled_projection_dim=768)
    written = import_folder(folder, **IMPORTED["qwen-image"], replace_ours=True)
    assert written.backbone == read_config(model_of("qwen-image")).backbone


@pytest.mark.parametrize(
    ("family", "file", "fields", "problem"),
    [
        ("qwen-image", "transformer/config.json", {"zero_cond_t": True}, "zero_cond_t: it must be false, and is true"),
        (
            "qwen-image",
            "transformer/config.json",
            {"attention_head_dim": None},
            "transformer/config.json: dim: Field re",
        ),
        (
            "flux2-klein",
            "transformer/config.json",
            {"attention_head_dim": None},
            "transformer/config.json: dim: Field r",
        ),
        ("flux2-klein", "transformer/config.json", {"guidance_embeds": True}, "it must be false, and is true"),
        ("flux2-klein", "transformer/config.json", {"patch_size": 2}, "patch: 2 is not allowed; 1: its autoencoder"),
        ("flux2-klein", "transformer/config.json", {"out_channels": 8}, "out_channels: Extra inputs"),
        ("flux2-klein", "transformer/config.json", {"num_single_layers": 1}, r"single_transformer_blocks\.1\.\S+ does"),
        ("flux2-klein", "vae/config.json", {"patch_size": [1, 1]}, "config.json: patch_size"),
        ("flux2-klein", "vae/config.json", {"latent_channels": 8}, "it has 32 channels, and the model 16"),
        ("flux2-klein", "scheduler/scheduler_config.json", {"time_shift_type": "linear"}, "of FLUX.2 is exponential"),
        ("z-image", "transformer/config.json", {"siglip_feat_dim": 8}, "siglip_feat_dim: it must be null, and is 8"),
        ("z-image", "transformer/config.json", {"all_f_patch_size": [2]}, r"it must be \[1\], and is \[2\]"),
        (
            "z-image",
            "transformer/config.json",
            {"axes_lens": [64, 32, 32]},
            "max_tokens: 40 is not allowed; at most 32",
        ),
        ("z-image", "transformer/config.json", {"axes_lens": [128, 2, 32]}, "height: 8 is not allowed; at most 4"),
        ("z-image", "model_index.json", {"_class_name": "Flux2KleinPipeline"}, "this pipeline has Flux2Transformer2D"),
    ],
)
def test_what_a_family_is_not_is_refused(
    family: str, file: str, fields: dict[str, Any], problem: str, model_of: Made, tmp_path: Path
) -> None:
    folder = shutil.copytree(model_of(family), tmp_path / "tiny")
    change(folder / file, **fields)
    with pytest.raises((CheckpointError, InvalidInput), match=problem):
        import_folder(folder, **IMPORTED[family], replace_ours=True)


@pytest.mark.parametrize("shifts", [{"base_shift": 10, "max_shift": -10}, {"base_shift": -10, "max_shift": 10}])
def test_a_shift_that_grows_beyond_bounds_is_refused(model_of: Made, tmp_path: Path, shifts: dict[str, float]) -> None:
    folder = shutil.copytree(model_of("qwen-image"), tmp_path / "tiny")
    change(folder / "scheduler" / "scheduler_config.json", base_image_seq_len=1000, max_image_seq_len=1001, **shifts)
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json: .*shift"):
        import_folder(folder, **IMPORTED["qwen-image"], replace_ours=True)


def test_prompts_are_as_long_as_the_model_says_where_its_tokenizer_knows_no_limit(folder: Path) -> None:
    def encoded() -> torch.Tensor:
        config = import_folder(folder, max_tokens=MAX_TOKENS, replace_ours=True).conditions
        assert isinstance(config, TextConfig)
        return open_encoder(config, folder, torch.device("cpu")).encode(["a red tulip", "a " * 20])

    limited = encoded()
    change(folder / "tokenizer" / "tokenizer_config.json", model_max_length=10**30)
    assert torch.equal(encoded(), limited)


def test_a_tokenizer_may_be_as_large_as_a_published_one(folder: Path, tmp_path: Path) -> None:
    config = import_folder(folder).conditions
    assert isinstance(config, TextConfig)
    file = folder / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8") + " " * (17 << 20), encoding="utf-8")
    open_encoder(config, folder, torch.device("cpu"))
    (tmp_path / "copy").mkdir()
    copy_encoder(config.encoder, folder, tmp_path / "copy")
    os.truncate(file, (128 << 20) + 1)
    with pytest.raises(CheckpointError, match="it is larger than 134217728 bytes"):
        open_encoder(config, folder, torch.device("cpu"))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("text_encoder/model.safetensors", b"\x80\x04."),
        ("text_encoder/config.json", b"[]"),
        ("tokenizer/tokenizer.json", b"[]"),
    ],
)
def test_a_damaged_text_encoder_is_told_in_one_error(folder: Path, file: str, content: bytes) -> None:
    import_folder(folder)
    (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError, match="no text encoder and tokenizer in diffusers' format"):
        Pipeline.load(folder, device="cpu")


def test_a_text_encoder_that_the_pipeline_cannot_use_is_told_in_one_error(model_of: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(model_of("flux2-klein"), tmp_path / "tiny")
    change(folder / "text_encoder" / "config.json", num_hidden_layers=20, layer_types=["full_attention"] * 20)
    with pytest.raises(CheckpointError, match=r"text_encoder, tokenizer: no prompt is encoded: .*index out of range"):
        Pipeline.load(folder, device="cpu")
    (folder / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"text_encoder, tokenizer: no prompt is encoded: .*chat_template"):
        Pipeline.load(folder, device="cpu")


@pytest.mark.parametrize("file", ["scheduler/scheduler_config.json", "transformer/config.json", WEIGHTS])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        import_folder(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("part", "problem"), [("transformer", WEIGHTS), ("vae", "no weights in safetensors")])
def test_weights_that_are_pickled_are_not_read(
    family: str, part: str, problem: str, model_of: Made, tmp_path: Path
) -> None:
    folder = shutil.copytree(model_of(family), tmp_path / "tiny")
    (folder / part / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / part / "diffusion_pytorch_model.bin")
    with pytest.raises((CheckpointError, InvalidInput), match=problem):
        import_folder(folder, **IMPORTED[family], replace_ours=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_encoder_that_is_pickled_is_not_read(family: str, model_of: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(model_of(family), tmp_path / "tiny")
    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no text encoder and tokenizer in diffusers' format"):
        Pipeline.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("options", "field"),
    [({"sizes": ["17x16"]}, "--sizes"), ({"sizes": ["18x16"]}, "width"), ({"max_tokens": 0}, "--max-tokens")],
)
def test_sizes_and_lengths_that_cannot_be_are_refused(folder: Path, options: dict[str, Any], field: str) -> None:
    with pytest.raises((InvalidInput, CheckpointError), match=field):
        import_folder(folder, **options)
