"""FID's Inception and DINOv2, with random weights in the files that their real weights would come in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from elit_serve.errors import InvalidInput, MissingPackage
from elit_serve.evaluation.features import open_features
from elit_serve.evaluation.features.inception import Inception, resize

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(Inception().state_dict(), file)
    return file


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 224, "patch_size": 14}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config(**shape)).save_pretrained(folder)
    return folder


def test_inception_gives_fid_features_and_logits(inception_file: Path) -> None:
    extractor = open_features(f"inception:{inception_file}", CPU)
    assert extractor.metric == "FID"
    pictures = torch.rand(2, 3, 64, 64)
    described = extractor(pictures)
    assert described.features.shape == (2, 2048)
    assert described.logits is not None
    assert described.logits.shape == (2, 1008)
    torch.testing.assert_close(extractor(pictures[1:]).features, described.features[1:], atol=1e-4, rtol=1e-4)


def test_inception_has_the_published_layers() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in Inception().state_dict().items()}
    assert len(shapes) == 94 * 6 + 2  # 94 convolutions with a batch norm of five tensors, and the classifier
    assert shapes["Mixed_6b.branch7x7dbl_2.conv.weight"] == (128, 128, 7, 1)
    assert shapes["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)
    assert shapes["fc.weight"] == (1008, 2048)


def test_pictures_are_resized_as_tensorflow_1_does() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 3, 4)
    row = resize(ramp)[0, 0, 150]
    places = torch.arange(299) * 4 / 299  # pixel i lies at i * 4 / 299, and the last pixel is repeated
    torch.testing.assert_close(row, places.clamp(max=3), atol=1e-5, rtol=1e-5)


def test_dinov2_gives_pooled_features(dinov2_folder: Path) -> None:
    extractor = open_features(f"dinov2:{dinov2_folder}", CPU)
    assert extractor.metric == "FDD"
    described = extractor(torch.rand(2, 3, 64, 64))
    assert described.features.shape == (2, 32)
    assert described.logits is None
    assert extractor.fingerprint == open_features(f"dinov2:{dinov2_folder}", CPU).fingerprint


def test_files_that_are_something_else_are_one_clear_error(tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"not weights")
    for text, words in (
        (f"inception:{other}", "the weights of FID's Inception"),
        (f"inception:{garbage}", "the weights of FID's Inception"),
        (f"inception:{tmp_path / 'none.pth'}", "there is none here"),
        (f"dinov2:{tmp_path}", "there is no config.json"),
    ):
        with pytest.raises(InvalidInput, match=words) as caught:
            open_features(text, CPU)
        assert "\n" not in str(caught.value)


def test_without_transformers_dinov2_names_the_extra(monkeypatch: pytest.MonkeyPatch, dinov2_folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackage, match=r"elit-serve\[evaluation\]"):
        open_features(f"dinov2:{dinov2_folder}", CPU)
