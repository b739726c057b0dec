"""Autoencoders as diffusers' folders: SD's and FLUX's, tiny ones, and folders that do not fit a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from autoencoders import save_kl, save_tiny
from torch import Tensor

from elit_serve.engine.autoencoders.diffusers import CLASSES, DiffusersAutoencoder
from elit_serve.engine.autoencoders.quick_blocks import quicken
from elit_serve.engine.checkpoint import spec_of, write_checkpoint
from elit_serve.engine.executor import offline
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.config import AutoencoderConfig, ModelConfig
from elit_serve.nn import ElitDiTSpec, InterfaceSpec, build
from elit_serve.plans.plan import Plan

CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def latent_model(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    """4 x 8 x 8 latents without an autoencoder."""
    spec = ElitDiTSpec(
        channels=4, height=8, width=8, patch=2, dim=32, depth=3, num_heads=2, num_classes=3,
        interface=InterfaceSpec(window=(2, 2), head=1, core=1, tail=1),
    )  # fmt: skip
    changes = {"autoencoder": AutoencoderConfig(kind="none"), **spec.config_fields()}
    config = ModelConfig.model_validate({**tiny_config.model_dump(), **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(spec_of(config))
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
    write_checkpoint(tmp_path / "latent", config, model.state_dict())
    return tmp_path / "latent"


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_quick_blocks_stand_for_those_of_diffusers(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    folder = save_kl(tmp_path / "vae", blocks=3)
    theirs, ours = (AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False).eval() for _ in range(2))
    quicken(ours)
    assert not any(type(module).__name__ == "ResnetBlock2D" for module in ours.modules())
    with torch.inference_mode():
        latents = theirs.encode(images()).latent_dist.mode()
        torch.testing.assert_close(ours.encode(images()).latent_dist.mode(), latents)
        torch.testing.assert_close(ours.decode(latents).sample, theirs.decode(latents).sample)


def test_sd_has_a_scale_and_flux_a_shift_as_well(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    for name, config, scale, shift in (
        ("sd", {}, 0.18215, 0.0),
        ("flux", {"scaling_factor": 0.3611, "shift_factor": 0.1159}, 0.3611, 0.1159),
    ):
        folder = save_kl(tmp_path / name, **config)
        plain = AutoencoderKL.from_pretrained(folder).eval().requires_grad_(False)
        latents = plain.encode(images()).latent_dist.mode()
        coder = DiffusersAutoencoder(folder, CPU)
        assert torch.allclose(coder.encode(images()), (latents - shift) * scale, atol=1e-6)
        assert torch.allclose(coder.decode((latents - shift) * scale), plain.decode(latents).sample, atol=1e-4)
        assert (coder.channels, coder.factor, coder.picture_size((4, 8, 6))) == (4, 4, (32, 24))


def test_a_tiny_one_is_told_by_its_own_config(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    folder = save_tiny(tmp_path / "tiny")
    plain = AutoencoderTiny.from_pretrained(folder).eval().requires_grad_(False)
    coder = DiffusersAutoencoder(folder, CPU)
    samples = coder.encode(images())
    assert samples.shape == (2, 4, 8, 8)
    assert torch.allclose(samples, plain.encode(images()).latents, atol=1e-6)
    assert torch.allclose(coder.decode(samples), plain.decode(samples).sample, atol=1e-6)


def test_another_class_gets_the_list(tmp_path: Path) -> None:
    folder = save_kl(tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    for name in ("AutoencoderOobleck", None, ["AutoencoderKL"]):
        (folder / "config.json").write_text(json.dumps({**config, "_class_name": name}))
        with pytest.raises(CheckpointError) as caught:
            DiffusersAutoencoder(folder, CPU)
        assert "_class_name" in str(caught.value)
        assert str(caught.value).endswith(f"one of {', '.join(CLASSES)}")


def test_a_model_without_one_makes_pictures_through_a_folder_that_is_given(latent_model: Path, tmp_path: Path) -> None:
    folder = save_kl(tmp_path / "vae")
    assert Pipeline.load(latent_model, device="cpu").is_latent
    pipeline = Pipeline.load(latent_model, device="cpu", autoencoder=folder)
    assert pipeline.picture_size == (32, 32)
    assert pipeline.generate("tulip", steps=2).image.size == (32, 32)


def test_pictures_are_the_same_alone_and_together(latent_model: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.load(latent_model, device="cpu", autoencoder=save_kl(tmp_path / "vae"))
    samples = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    together = pipeline.decode(samples).int()
    for index in range(5):
        assert int((pipeline.decode(samples[index : index + 1])[0].int() - together[index]).abs().max()) <= 1


def test_previews_come_from_the_tiny_one_and_pictures_from_the_other(latent_model: Path, tmp_path: Path) -> None:
    folder, tiny = save_kl(tmp_path / "vae"), save_tiny(tmp_path / "tiny")
    pipeline = Pipeline.load(latent_model, device="cpu", autoencoder=folder, preview_autoencoder=tiny)
    executor = Executor(pipeline, num_slots=1)
    (picture,) = pipeline.pictures([pipeline.conditions[0]], [0], Plan(levels=(4, 4)))
    executor.add(picture)
    for kind in Plan(levels=(4, 4)).step_kinds(picture.shape):
        executor.watch([picture])
        offline.advance(executor, [picture], kind)
    sample = executor.samples([picture])
    (preview,), (shown,) = executor.preview([picture]).result(), executor.collect([picture]).result()
    assert isinstance(preview, Tensor)
    assert isinstance(shown, Tensor)
    by_tiny = DiffusersAutoencoder(tiny, CPU).decode(sample)[0].permute(1, 2, 0) * 127.5 + 127.5
    assert (preview.float() - by_tiny.clamp(0, 255)).abs().max() <= 1
    assert not torch.equal(preview, shown)
    assert torch.equal(shown, pipeline.decode(sample)[0])


WRONG: dict[str, Callable[[Path], tuple[dict[str, Path], str]]] = {
    "channels": lambda at: ({"autoencoder": save_kl(at / "a", channels=16)}, "it has 16 channels, and the model 4"),
    "nothing there": lambda at: ({"autoencoder": at / "a"}, "no autoencoder in diffusers' format"),
    "grey": lambda at: (
        {"autoencoder": save_kl(at / "a", in_channels=1)}, "config.json: in_channels"
    ),
    "previews of another size": lambda at: (
        {"autoencoder": save_kl(at / "a"), "preview_autoencoder": save_tiny(at / "p", blocks=4)},
        "it makes 8 pixels of a side of a sample's element, and the model stands for 4",
    ),
    "previews without pictures": lambda at: (
        {"preview_autoencoder": save_tiny(at / "p")}, "the model has no autoencoder for its pictures"
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_folder_that_does_not_fit_is_refused_before_a_weight_is_read(
    wrong: str, latent_model: Path, tmp_path: Path
) -> None:
    folders, problem = WRONG[wrong](tmp_path)
    (latent_model / "model.safetensors").unlink()
    with pytest.raises(InvalidInput) as caught:
        Pipeline.load(latent_model, device="cpu", **folders)
    assert problem in str(caught.value)
    assert list(folders)[-1] in str(caught.value)


def test_one_in_the_model_that_does_not_fit_is_refused(latent_model: Path) -> None:
    config = json.loads((latent_model / "config.json").read_text())
    (latent_model / "config.json").write_text(json.dumps({**config, "autoencoder": {"kind": "diffusers", "factor": 8}}))
    save_kl(latent_model / "autoencoder", blocks=3)
    with pytest.raises(CheckpointError, match=r"autoencoder/: it makes 4 pixels .* the model stands for 8"):
        Pipeline.load(latent_model, device="cpu")


def test_a_model_of_pixels_takes_no_autoencoder(shared_tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="this model needs none: its samples are pixels"):
        Pipeline.load(shared_tiny_model_dir, device="cpu", autoencoder=save_kl(tmp_path / "vae"))


def test_memory_says_how_many_are_decoded_at_a_time_and_when_by_tiles(tmp_path: Path) -> None:
    """32 x 32 pixels of 8 channels in float32 are estimated at 192 KiB."""
    folder = save_kl(tmp_path / "vae")
    samples = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = DiffusersAutoencoder(folder, CPU, max_bytes=1 << 30)
    in_twos = DiffusersAutoencoder(folder, CPU, max_bytes=2 * (192 << 10))
    sizes: list[int] = []
    in_twos._vae.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    assert torch.allclose(in_twos.decode(samples), whole.decode(samples), atol=1e-4)
    assert sizes == [2, 2, 1]
    assert torch.allclose(in_twos.encode(images(3)), whole.encode(images(3)), atol=1e-5)

    large = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    sizes.clear()
    tiled = in_twos.decode(large)
    assert len(sizes) > 1  # tiles of 8 x 8
    assert tiled.shape == whole.decode(large).shape == (1, 3, 64, 64)
    sizes.clear()
    in_twos.decode(samples)
    assert sizes == [2, 2, 1]  # and no tiles any more
