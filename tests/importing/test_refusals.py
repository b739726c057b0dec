"""What is no published checkpoint is one clear error, and leaves nothing behind."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from autoencoders import save_kl
from torch import Tensor

from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.importing.command import import_model
from elit_serve.importing.sit import Split

WritePublished = Callable[..., Path]


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """What the error says of a file; nothing may have been written."""

    def refuse(file: Path, kind: type[Exception] = CheckpointError, **options: Any) -> str:
        before = sorted(tmp_path.iterdir())
        given: dict[str, Any] = {"source": "a test", "license_text": "none", "split": Split(num_heads=4), **options}
        with pytest.raises(kind) as error:
            import_model(file, tmp_path / "model", **given)
        assert sorted(tmp_path.iterdir()) == before
        assert "\n" not in str(error.value)
        return str(error.value)

    return refuse


class Harmful:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_a_file_that_holds_code_is_refused_and_not_run(
    write_published: WritePublished, refused: Callable[..., str], tmp_path: Path
) -> None:
    file = write_published(opt=Harmful(f"touch {tmp_path / 'ran'}"))
    assert "it holds code or objects" in refused(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_a_file_that_was_cut_off_is_refused(
    write_published: WritePublished, refused: Callable[..., str], kept: float
) -> None:
    file = write_published()
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    assert "it is no whole file of torch.save" in refused(file)


def test_what_is_no_file_of_weights_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "it cannot be read: No such file" in refused(tmp_path / "none.pt")
    os.mkfifo(tmp_path / "fifo.pt")
    assert "it is no regular file" in refused(tmp_path / "fifo.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "it holds a list, not weights by name" in refused(tmp_path / "list.pt")
    torch.save({"model": {"a": torch.zeros(1)}, "steps": 3}, tmp_path / "other.pt")
    assert "neither averaged weights under `ema` nor weights" in refused(tmp_path / "other.pt")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    assert "no weights of a SiT or an ELIT-SiT: it lacks x_embedder.proj.weight" in refused(tmp_path / "resnet.pt")


def test_all_that_is_wrong_with_its_tensors_is_told(
    write_published: WritePublished, weights: dict[str, Tensor], refused: Callable[..., str]
) -> None:
    del weights["blocks.3.mlp.fc1.bias"]
    weights["blocks.1.attn.q_norm.weight"] = torch.ones(16)
    weights["final_layer.linear.bias"] = torch.zeros(32)
    weights["t_embedder.mlp.0.bias"] = torch.zeros(64, dtype=torch.int64)
    weights["t_embedder.mlp.2.bias"] = torch.zeros(64).to_sparse()
    weights["x_embedder.proj.bias"] = torch.zeros(64, device="meta")
    told = refused(write_published(ema=weights))
    assert "tensor blocks.3.mlp.fc1.bias is missing" in told
    assert "tensor blocks.1.attn.q_norm.weight does not belong there" in told
    assert "tensor final_layer.linear.bias has shape (32,), expected (16,)" in told
    assert "tensor t_embedder.mlp.0.bias is torch.int64" in told
    assert "tensor t_embedder.mlp.2.bias is torch.float32 of torch.sparse_coo" in told
    assert "tensor x_embedder.proj.bias" in told


@pytest.mark.parametrize("positions", [torch.randn(1, 64, 64), torch.zeros(2, 64, 64), torch.zeros(1, 64, 64).long()])
def test_positions_of_another_kind_are_refused(
    write_published: WritePublished, weights: dict[str, Tensor], refused: Callable[..., str], positions: Tensor
) -> None:
    weights["pos_embed"] = positions
    assert "pos_embed is not the sine-cosine table" in refused(write_published(ema=weights))


def test_what_neither_file_nor_user_says_is_asked_for(
    write_published: WritePublished, refused: Callable[..., str]
) -> None:
    assert "--heads is missing" in refused(write_published(), InvalidInput, split=Split())
    assert "--head is missing" in refused(write_published(args=Namespace()), InvalidInput)
    assert "--head is missing" in refused(write_published(args=Namespace(encoder_depth="2")), InvalidInput)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"split": Split(num_heads=4, head=5)}, r"--head, --tail: [5, 2] is not allowed"),
        ({"split": Split(num_heads=4, window=(4, 5))}, r"--window: [4, 5] is not allowed"),
        ({"levels": (0, 16)}, "--levels: 0 is not allowed; levels of this model lie in 1..16"),
        ({"autoencoder": Path("nowhere")}, "--autoencoder"),
        ({"preview_autoencoder": Path("nowhere")}, "--preview-autoencoder"),
        ({"classes": Path("nowhere")}, "--classes"),
    ],
)
def test_options_that_do_not_fit_are_named(
    write_published: WritePublished, refused: Callable[..., str], options: dict[str, Any], told: str
) -> None:
    assert told in refused(write_published(), InvalidInput, **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_autoencoder_that_does_not_fit_is_refused_before_its_weights_are_read(
    write_published: WritePublished, refused: Callable[..., str], tmp_path: Path
) -> None:
    file, wide, whole = write_published(), save_kl(tmp_path / "wide", channels=16), save_kl(tmp_path / "whole")
    assert "it has 16 channels, and the model 4" in refused(file, InvalidInput, autoencoder=wide)
    weights = whole / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    told = refused(file, InvalidInput, autoencoder=whole)
    assert "diffusion_pytorch_model.safetensors is no whole file of safetensors" in told
    weights.rename(whole / "diffusion_pytorch_model.bin")
    assert "it has no weights in safetensors" in refused(file, InvalidInput, autoencoder=whole)
    (whole / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert "'UNet2DModel' is not allowed; one of AutoencoderKL" in refused(file, InvalidInput, autoencoder=whole)


def test_windows_must_tile_the_tokens(write_published: WritePublished, refused: Callable[..., str]) -> None:
    told = refused(write_published(), split=Split(num_heads=4, window=(16, 1)))
    assert "is not a usable model: height: 16 is not allowed; it must be a multiple of 32" in told


def test_the_folder_names_the_model(write_published: WritePublished, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"destination: .* its last part names the model: at most 100 letters"):
        import_model(write_published(), tmp_path / "a,b", source="a test", license_text="none")
    assert not (tmp_path / "a,b").exists()


def test_heads_must_divide_the_width(write_published: WritePublished, refused: Callable[..., str]) -> None:
    assert "num_heads: 5 is not allowed" in refused(write_published(), split=Split(num_heads=5))


def test_names_must_be_as_many_as_classes_and_differ(
    write_published: WritePublished, refused: Callable[..., str], tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    assert "10 names, one per line; it has 2" in refused(write_published(), InvalidInput, classes=names)
    names.write_text("a\n" * 10)
    assert "'a' is there twice" in refused(write_published(), InvalidInput, classes=names)


def test_a_model_that_is_there_stays(
    write_published: WritePublished, refused: Callable[..., str], tmp_path: Path
) -> None:
    file = write_published()
    (tmp_path / "model").mkdir()
    assert "it exists already" in refused(file, InvalidInput)
