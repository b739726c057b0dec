"""`index.json` of a folder of latents: which data set they are of, at which size, and through which autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from elit_serve.errors import DataError
from elit_serve.files.measured import Measured
from elit_serve.files.opening import MAX_JSON_BYTES, read_file
from elit_serve.files.validation import problems_in

NAME = "index.json"
MAX_SHARDS = 100_000
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ShardName = Annotated[str, Field(pattern=r"^shard-\d{5}\.safetensors$")]
LatentDtype = Literal["float32", "bfloat16", "float16"]


class Encoding(Measured):
    """All that decides what a photograph's latent is, and where it lies: a shard of another is not gone on with.

    autoencoder_sha256: of its folder, see `engine.autoencoders.folder.fingerprint`. height, width: of the pictures.
    sample_shape: of a latent, channels first. mirrored: whether each picture is there a second time, mirrored before it
    was encoded. data_sha256: of the photographs, see `trainer.identity`. per_shard: photographs, damaged ones included.
    captioned: whether what the index names as classes are the captions of the photographs.
    """

    autoencoder_sha256: Sha256
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    sample_shape: tuple[int, int, int] = Field(strict=False)
    dtype: LatentDtype
    mirrored: bool
    data_sha256: Sha256
    per_shard: int = Field(ge=1)
    captioned: bool = False

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `captioned` where it is false, so that folders from before captions keep their digest."""
        fields: dict[str, Any] = write(self)
        return {name: value for name, value in fields.items() if name != "captioned" or value}


class Shard(Measured):
    """A file of `count` latents: `samples` [count, 1 or 2, C, h, w], the mirrored one second, and `labels` [count]."""

    file: ShardName
    sha256: Sha256
    count: int = Field(ge=0)


class LatentIndex(Measured):
    """`index.json`. autoencoder and source are names for people. damaged: pictures that were left out, and why."""

    format_version: Literal[1] = 1
    autoencoder: str
    source: str
    encoding: Encoding
    classes: tuple[str, ...] = Field(min_length=1, strict=False)
    shards: tuple[Shard, ...] = Field(min_length=1, max_length=MAX_SHARDS, strict=False)
    damaged: tuple[str, ...] = Field(default=(), strict=False)
    versions: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_latents(self) -> LatentIndex:
        if not sum(shard.count for shard in self.shards):
            raise ValueError("the shards hold no latent")
        return self


def holds_latents(folder: Path) -> bool:
    """Whether a folder is one of latents, and not of photographs."""
    return (folder / NAME).is_file()


def latent_folders(folder: Path) -> list[Path]:
    """The folder itself if it holds latents, or those of them that lie in it, as latents of several sizes do."""
    if holds_latents(folder):
        return [folder]
    return sorted(shard.parent for shard in folder.glob("*/shard-00000.safetensors") if holds_latents(shard.parent))


def read_latent_index(folder: Path) -> LatentIndex:
    """Raises one `DataError` that lists all that is wrong."""
    try:
        return LatentIndex.model_validate_json(read_file(folder / NAME, MAX_JSON_BYTES))
    except OSError as error:
        raise DataError(f"{folder}: {NAME} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        raise DataError(f"{folder}: {NAME}: {'; '.join(problems_in(error))}") from None
