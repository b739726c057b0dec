"""Feature extractors from TorchScript files, and features of photographs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from elit_serve.errors import DamagedPicture, InvalidInput
from elit_serve.evaluation.features import open_features, photograph_features
from elit_serve.evaluation.features.photographs import load_pictures
from elit_serve.evaluation.features.torchscript import TorchScriptFeatures
from elit_serve.photographs import open_data_set

CPU = torch.device("cpu")
Write = Callable[[nn.Module, str], Path]


class Constant(nn.Module):
    """Whatever it is given, its features are these."""

    features: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features)

    def forward(self, x: Tensor) -> Tensor:
        return self.features + 0 * x.mean()


def test_a_torchscript_file_turns_pictures_into_features(feature_file: Path) -> None:
    described = open_features(f"torchscript:{feature_file}", CPU)(torch.rand(5, 3, 32, 32))
    assert described.features.shape == (5, 12)
    assert described.features.dtype == torch.float32
    assert described.logits is None


@pytest.mark.parametrize(
    ("file_name", "name"),
    [("mobilenetv2_features.ts", "MobileNetV2-FD"), ("pooled_features.ts", "pooled-FD"), ("i3d.pt", "I3D-FD")],
)
def test_figures_are_called_by_the_files_own_name(torchscript: Write, file_name: str, name: str) -> None:
    extractor = TorchScriptFeatures(torchscript(Constant(torch.zeros(2, 4)), file_name), CPU)
    assert extractor.metric == name
    assert len(extractor.fingerprint) == 64


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.zeros(2, 4, 1, 1), r"\[2, 3, 8, 8\] into \[2, F\], and gave \[2, 4, 1, 1\]"),
        (torch.zeros(3, 4), r"and gave \[3, 4\]"),
        (torch.zeros(2), r"and gave \[2\]"),
        (torch.full((2, 4), torch.nan), "NaN or infinite"),
    ],
)
def test_features_of_the_wrong_shape_are_one_clear_error(torchscript: Write, features: Tensor, words: str) -> None:
    extractor = TorchScriptFeatures(torchscript(Constant(features), "wrong.ts"), CPU)
    with pytest.raises(InvalidInput, match=words):
        extractor(torch.rand(2, 3, 8, 8))


def test_a_module_that_cannot_take_the_pictures_says_so_in_one_line(feature_file: Path) -> None:
    with pytest.raises(InvalidInput, match=r"it fails on \[2, 3, 4, 4\]: .*[Kk]ernel size") as caught:
        TorchScriptFeatures(feature_file, CPU)(torch.rand(2, 3, 4, 4))  # below its 5 x 5 kernel
    assert "\n" not in str(caught.value)


def test_what_is_no_torchscript_file_is_refused(tmp_path: Path) -> None:
    fake = tmp_path / "fake.ts"
    fake.write_bytes(b"not a program")
    with pytest.raises(InvalidInput, match="this is none"):
        open_features(f"torchscript:{fake}", CPU)
    with pytest.raises(InvalidInput, match="there is none here"):
        open_features(f"torchscript:{tmp_path / 'nowhere.ts'}", CPU)
    for text in ("vgg", "torchscript:", "torchscript", ""):
        with pytest.raises(InvalidInput, match="torchscript:PATH"):
            open_features(text, CPU)


def test_photographs_are_read_at_the_models_size_in_batches(feature_file: Path, held_out: Path) -> None:
    photographs = open_data_set(held_out).photographs
    done: list[int] = []
    extractor = TorchScriptFeatures(feature_file, CPU)
    described = photograph_features(extractor, photographs, height=32, width=32, batch_size=7, on_batch=done.append)
    assert done == [7, 7, 4]
    pictures = load_pictures(photographs, 32, 32)
    assert pictures.shape == (18, 3, 32, 32)
    assert 0 <= float(pictures.min()) < float(pictures.max()) <= 1
    torch.testing.assert_close(described.features, extractor(pictures).features, atol=1e-6, rtol=1e-5)


class Classifier(nn.Module):
    """Clips or images to (features [B, 3], logits [B, 5])."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = x.flatten(2).mean(2)
        return features, features.repeat(1, 2)[:, :5]


def test_an_extractor_may_classify_and_may_take_clips(tmp_path: Path) -> None:
    clips = torch.rand(2, 3, 4, 8, 8)
    path = tmp_path / "i3d.ts"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself
        torch.jit.script(Classifier()).save(str(path))
    described = TorchScriptFeatures(path, CPU)(clips)
    torch.testing.assert_close(described.features, clips.mean((2, 3, 4)))
    assert described.logits is not None
    assert described.logits.shape == (2, 5)


def test_photographs_smaller_than_the_models_pictures_are_refused(feature_file: Path, held_out: Path) -> None:
    extractor = TorchScriptFeatures(feature_file, CPU)
    with pytest.raises(InvalidInput, match=r"daisy/000\.png: 40 x 36.* at least the model's 64 x 64"):
        photograph_features(extractor, open_data_set(held_out).photographs, height=64, width=64)


def test_a_damaged_photograph_stops_the_reading_by_name(feature_file: Path, tmp_path: Path) -> None:
    (tmp_path / "rose").mkdir()
    (tmp_path / "rose" / "bad.png").write_bytes(b"oops")
    with pytest.raises(DamagedPicture, match=r"rose/bad\.png"):
        photograph_features(
            TorchScriptFeatures(feature_file, CPU), open_data_set(tmp_path).photographs, height=32, width=32
        )
