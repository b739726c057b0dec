"""Training, exporting and generating in the latents of an AutoencoderKL in diffusers' format."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from autoencoders import save_kl

from elit_serve.engine.autoencoders import open_autoencoder
from elit_serve.engine.autoencoders.diffusers import DiffusersAutoencoder
from elit_serve.engine.autoencoders.pixels import Pixels
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.files.config import AutoencoderConfig
from elit_serve.trainer.export import export
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory

CPU = torch.device("cpu")
SCALE, SHIFT = 0.36, 0.12

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, 4 channels, 4 pixels per side of a latent, with a pickle beside it that nobody wants."""
    folder = tmp_path_factory.mktemp("autoencoder") / "vae"
    save_kl(folder, scaling_factor=SCALE, shift_factor=SHIFT)
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04pickled")
    return folder


@pytest.fixture
def latent_recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    """Latents of 4 x 8 x 8 for pictures of 32 x 32."""
    return make_recipe(
        backbone={"channels": 4, "height": 8, "width": 8, "patch": 2},
        autoencoder={"kind": "diffusers"},
        training={"steps": 4},
    )


def test_pictures_become_scaled_and_shifted_latents_and_pictures_again(autoencoder: Path) -> None:
    coder = open_autoencoder(AutoencoderConfig(kind="diffusers"), autoencoder, CPU)
    assert isinstance(coder, DiffusersAutoencoder)
    assert (coder.channels, coder.picture_size((4, 8, 6))) == (4, (32, 24))
    images = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    samples = coder.encode(images)
    assert samples.shape == (2, 4, 8, 6)
    assert coder.decode(samples).shape == images.shape

    from diffusers import AutoencoderKL

    plain = AutoencoderKL.from_pretrained(autoencoder).eval().requires_grad_(False)
    latents = plain.encode(images).latent_dist.mode()
    assert torch.allclose(samples, (latents - SHIFT) * SCALE, atol=1e-6)
    assert torch.allclose(coder.decode(samples), plain.decode(latents).sample, atol=1e-4)


def test_pixels_are_their_own_autoencoder() -> None:
    coder = open_autoencoder(AutoencoderConfig(), Path("unused"), CPU)
    assert isinstance(coder, Pixels)
    assert (coder.channels, coder.picture_size((3, 8, 6))) == (3, (8, 6))
    images = torch.rand(1, 3, 4, 4)
    assert coder.decode(coder.encode(images)) is images


def test_a_model_trains_in_latents_is_exported_with_its_autoencoder_and_generates(
    latent_recipe: Recipe, autoencoder: Path, train_here: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    run = train_here(latent_recipe, autoencoder=autoencoder)
    assert run.load().model["patch_embed.weight"].shape == (32, 4 * 2 * 2)

    export(run.path, tmp_path / "model", autoencoder=autoencoder)
    copied = sorted(path.name for path in (tmp_path / "model" / "autoencoder").iterdir())
    assert copied == ["config.json", "diffusion_pytorch_model.safetensors"]
    picture = Pipeline.load(tmp_path / "model", device="cpu").generate("tulip", steps=2)
    assert picture.image.size == (32, 32)

    export(run.path, tmp_path / "model", autoencoder=autoencoder, replace=True)
    assert Pipeline.load(tmp_path / "model", device="cpu").config.autoencoder.kind == "diffusers"


def test_a_missing_or_broken_autoencoder_is_one_clear_error(
    latent_recipe: Recipe, autoencoder: Path, train_here: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="--autoencoder is missing; this recipe's autoencoder is diffus"):
        train_here(latent_recipe)
    with pytest.raises(InvalidInput, match=r"--autoencoder: .*missing.*; no autoencoder in diffusers' format"):
        train_here(latent_recipe, autoencoder=tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match=r"--autoencoder: .*empty.*; no autoencoder in diffusers' format"):
        train_here(latent_recipe, autoencoder=tmp_path / "empty")
    broken = Path(shutil.copytree(autoencoder, tmp_path / "broken"))
    weights = broken / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        InvalidInput, match=r"--autoencoder: .*broken.*; diffusion_pytorch_model.safetensors is no whole"
    ):
        train_here(latent_recipe, autoencoder=broken)
    assert not (tmp_path / "run").exists()


def test_an_autoencoder_of_other_channels_is_refused(
    make_recipe: Callable[..., Recipe], autoencoder: Path, train_here: Callable[..., RunDirectory]
) -> None:
    recipe = make_recipe(backbone={"channels": 16}, autoencoder={"kind": "diffusers"})
    with pytest.raises(InvalidInput, match=r"--autoencoder: .* it has 4 channels, and the model 16"):
        train_here(recipe, autoencoder=autoencoder)


def test_an_autoencoder_for_a_model_of_pixels_is_refused(
    make_recipe: Callable[..., Recipe], autoencoder: Path, train_here: Callable[..., RunDirectory]
) -> None:
    with pytest.raises(InvalidInput, match=r"--autoencoder: .* this recipe's autoencoder is pixels"):
        train_here(make_recipe(), autoencoder=autoencoder)


def test_exporting_without_the_autoencoder_is_refused(
    latent_recipe: Recipe, autoencoder: Path, train_here: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    run = train_here(latent_recipe, autoencoder=autoencoder)
    for folder, problem in {None: "autoencoder is diffusers", tmp_path / "none": "no autoencoder in diffusers"}.items():
        with pytest.raises(InvalidInput, match=problem):
            export(run.path, tmp_path / "model", autoencoder=folder)
    assert not (tmp_path / "model").exists()
