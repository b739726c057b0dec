"""Adding an autoencoder takes a class and a line in the table: a model behind it then makes pictures of its size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch.nn.functional as F
from torch import Tensor

from elit_serve.catalogue import read_config
from elit_serve.engine.autoencoders import KINDS
from elit_serve.engine.autoencoders.autoencoder import AutoencoderKind
from elit_serve.engine.checkpoint import write_checkpoint
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import CheckpointError
from elit_serve.files.config import AutoencoderConfig


class Doubled:
    """Every pixel of a sample is 2 x 2 pixels of the picture."""

    channels = 3
    makes_pictures = True

    def picture_size(self, sample_shape: Sequence[int]) -> tuple[int, int]:
        return 2 * sample_shape[1], 2 * sample_shape[2]

    def encode(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 2)

    def decode(self, samples: Tensor) -> Tensor:
        return samples.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@pytest.fixture
def doubled_model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The tiny model, which says that it works behind an autoencoder of that kind."""
    model = Pipeline.load(tiny_model_dir, device="cpu")
    config = model.config.model_copy(update={"autoencoder": AutoencoderConfig(kind="doubled")})
    write_checkpoint(tmp_path / "doubled", config, model.model.state_dict())
    return tmp_path / "doubled"


def test_a_second_autoencoder_takes_a_line(
    doubled_model: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "doubled", AutoencoderKind(make=lambda *_: Doubled(), channels=3))
    pipeline, small = (Pipeline.load(folder, device="cpu") for folder in (doubled_model, tiny_model_dir))
    assert (small.picture_size, pipeline.picture_size) == ((32, 32), (64, 64))
    assert not pipeline.is_latent
    picture = pipeline.generate("rose", seed=1).image
    assert picture.size == (64, 64)
    assert picture.resize((32, 32), 0).tobytes() == small.generate("rose", seed=1).image.tobytes()


def test_a_kind_that_nobody_knows_is_named_when_the_model_is_loaded(doubled_model: Path) -> None:
    assert read_config(doubled_model).autoencoder.kind == "doubled"
    with pytest.raises(CheckpointError, match=r"autoencoder\.kind: 'doubled' is not allowed; one of pixels, diff"):
        Pipeline.load(doubled_model, device="cpu")
