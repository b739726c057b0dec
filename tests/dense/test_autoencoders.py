"""Autoencoders of whole pipelines: samples of about unit variance, as their pipelines scale them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from dense.conftest import Made
from diffusers import AutoencoderDC, Flux2KleinPipeline
from safetensors.torch import load_file, save_file

from elit_serve.engine.autoencoders.diffusers import DiffusersAutoencoder, folder_facts
from elit_serve.errors import CheckpointError

CPU = torch.device("cpu")


def test_that_of_qwen_image_sees_a_picture_as_a_film_of_one_frame(model_of: Made) -> None:
    ours = DiffusersAutoencoder(model_of("qwen-image") / "vae", CPU)
    theirs = ours._vae
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, spread = (torch.tensor(theirs.config[name]).view(-1, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.inference_mode():
        latents = theirs.encode(images.unsqueeze(2)).latent_dist.mode()
        samples = ours.encode(images)
        torch.testing.assert_close(samples, (latents[:, :, 0] - mean) / spread)
        torch.testing.assert_close(ours.decode(samples), theirs.decode(latents).sample[:, :, 0])


def test_that_of_flux2_scales_patches_of_latents_by_its_batch_norm(model_of: Made) -> None:
    ours = DiffusersAutoencoder(model_of("flux2-klein") / "vae", CPU)
    theirs, images = ours._vae, torch.rand(2, 3, 16, 24) * 2 - 1
    assert (ours.factor, ours.channels, ours.picture_size((16, 4, 6))) == (4, 16, (16, 24))
    mean, spread = theirs.bn.running_mean, (theirs.bn.running_var + theirs.config.batch_norm_eps).sqrt()
    with torch.inference_mode():
        latents = theirs.encode(images).latent_dist.mode()
        patches = Flux2KleinPipeline._patchify_latents(latents)
        samples = ours.encode(images)
        torch.testing.assert_close(samples, (patches - mean.view(-1, 1, 1)) / spread.view(-1, 1, 1))
        torch.testing.assert_close(ours.decode(samples), theirs.decode(latents).sample)


@pytest.mark.parametrize(("name", "value"), [("running_var", -1.0), ("running_mean", math.nan)])
def test_a_batch_norm_of_no_spread_is_refused(model_of: Made, tmp_path: Path, name: str, value: float) -> None:
    folder = shutil.copytree(model_of("flux2-klein") / "vae", tmp_path / "vae")
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors[f"bn.{name}"][3] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="bn: its means and variances"):
        DiffusersAutoencoder(folder, CPU)


@pytest.mark.parametrize("spreads", [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
def test_spreads_that_do_not_fit_its_channels_are_refused(model_of: Made, tmp_path: Path, spreads: list[float]) -> None:
    folder = shutil.copytree(model_of("qwen-image") / "vae", tmp_path / "vae")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"latents_std": spreads}))
    with pytest.raises(CheckpointError, match="latents_std"):
        folder_facts(folder)


def test_a_deep_compression_one_makes_many_pixels_of_an_element(tmp_path: Path) -> None:
    theirs = AutoencoderDC(
        latent_channels=8,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.4,
    ).eval()
    theirs.save_pretrained(tmp_path / "vae")
    ours = DiffusersAutoencoder(tmp_path / "vae", CPU)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    assert (ours.factor, ours.channels, ours.picture_size((8, 4, 6))) == (4, 8, (16, 24))
    with torch.inference_mode():
        latents = theirs.encode(images).latent
        torch.testing.assert_close(ours.encode(images), latents * 0.4)
        torch.testing.assert_close(ours.decode(latents * 0.4), theirs.decode(latents).sample)
