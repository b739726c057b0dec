"""Feature extractors from TorchScript files, and features of photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import TorchScriptFeatures, load_pictures, open_features, photograph_features
from elit_serve.pictures import DamagedPicture, list_photographs

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


def test_a_torchscript_file_turns_pictures_into_float64_features(feature_file: Path) -> None:
    features = open_features(f"torchscript:{feature_file}", CPU)(torch.rand(5, 3, 32, 32))
    assert features.shape == (5, 12)
    assert features.dtype == torch.float64


@pytest.mark.parametrize(
    ("file_name", "name"),
    [("mobilenetv2_features.ts", "MobileNetV2"), ("pooled_features.ts", "pooled"), ("ours.pt", "ours")],
)
def test_figures_are_called_by_the_files_own_name(torchscript: Write, file_name: str, name: str) -> None:
    extractor = TorchScriptFeatures(torchscript(Constant(torch.zeros(2, 4)), file_name), CPU)
    assert extractor.name == name
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
    for text in ("inception", "torchscript:", "torchscript", ""):
        with pytest.raises(InvalidInput, match="torchscript:PATH"):
            open_features(text, CPU)


def test_photographs_are_read_at_the_models_size_in_batches(feature_file: Path, held_out: Path) -> None:
    photographs = list_photographs(held_out)
    done: list[int] = []
    extractor = TorchScriptFeatures(feature_file, CPU)
    features = photograph_features(extractor, photographs, height=32, width=32, batch_size=7, on_batch=done.append)
    assert done == [7, 7, 4]
    pictures = load_pictures(photographs, 32, 32)
    assert pictures.shape == (18, 3, 32, 32)
    assert 0 <= float(pictures.min()) < float(pictures.max()) <= 1
    torch.testing.assert_close(features, extractor(pictures), atol=1e-6, rtol=1e-5)


def test_a_damaged_photograph_stops_the_reading_by_name(feature_file: Path, tmp_path: Path) -> None:
    (tmp_path / "rose").mkdir()
    (tmp_path / "rose" / "bad.png").write_bytes(b"oops")
    with pytest.raises(DamagedPicture, match=r"rose/bad\.png"):
        photograph_features(TorchScriptFeatures(feature_file, CPU), list_photographs(tmp_path), height=32, width=32)
