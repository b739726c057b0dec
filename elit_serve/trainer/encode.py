"""A data set of photographs, encoded once: shards of latents from which any number of trainings read.

Letters: B pictures at a time, N of a shard, C x h x w a latent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from elit_serve import __version__
from elit_serve.engine.autoencoders.diffusers import DiffusersAutoencoder
from elit_serve.engine.autoencoders.folder import fingerprint, read_folder
from elit_serve.engine.checkpoint import TORCH_DTYPES
from elit_serve.errors import DamagedPicture, DataError, InvalidInput
from elit_serve.files.latent_index import (
    NAME,
    Encoding,
    LatentDtype,
    LatentIndex,
    Shard,
    holds_latents,
    read_latent_index,
)
from elit_serve.files.opening import MAX_JSON_BYTES, open_file
from elit_serve.photographs import Part
from elit_serve.text.command_line import readable
from elit_serve.trainer.data import DamageReport, PictureSet, picture_or_damage
from elit_serve.trainer.draws import to_unit
from elit_serve.trainer.identity import content_digest
from elit_serve.trainer.texts import encode_texts

logger = logging.getLogger(__name__)

ENCODING_KEY = "elit-serve"  # of a shard's metadata: what it was made with, and the damaged pictures that it lacks
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """height, width: of the pictures. mirrored: encode each a second time, mirrored, which `data.flip` needs.

    batch: pictures on the device at a time. per_shard: photographs in a file. max_corrupt: the share of damaged
    pictures above which it stops. captioned: whether photographs have captions instead of classes.
    """

    height: int
    width: int
    mirrored: bool = True
    dtype: LatentDtype = "float16"
    batch: int = 32
    per_shard: int = 4096
    max_corrupt: float = 0.01
    part: Part = "training"
    captioned: bool = False


def encode_data(
    data: Path,
    out: Path,
    autoencoder: Path,
    options: EncodeOptions,
    *,
    device: torch.device,
    text_model: Path | None = None,
    on_progress: Progress | None = None,
) -> LatentIndex:
    """Writes the latents of `data` into `out`, which may hold shards of the same encoding already: these stay.

    text_model: whose text encoder reads the captions, which are stored encoded, too (`trainer.texts`). A shard is there
    whole or not at all, and `index.json` when all are. Everything is checked before anything is encoded. Raises
    `InvalidInput` and `DataError`.
    """
    _check_size(options, read_folder(autoencoder).factor)
    if text_model is not None and not options.captioned:
        raise InvalidInput("--text", str(text_model), "nothing without --captions: there is no text to encode")
    open_set = PictureSet.open_captioned if options.captioned else PictureSet.open
    pictures = open_set(data, options.height, options.width, part=options.part)
    _check_names(data, pictures.classes)
    coder = DiffusersAutoencoder(autoencoder, device)
    encoding = _encoding(pictures, autoencoder, coder, options)
    _check_out(out, encoding)
    writer = _Writer(out, pictures, coder, encoding, options)
    damage = DamageReport(total=len(pictures), max_fraction=options.max_corrupt)
    shards = []
    with ThreadPoolExecutor() as pool:
        for number, start in enumerate(range(0, len(pictures), options.per_shard)):
            shard, damaged = writer.shard(number, range(start, min(len(pictures), start + options.per_shard)), pool)
            damage.add(damaged)
            shards.append(shard)
            if on_progress is not None:
                on_progress(min(len(pictures), start + options.per_shard), len(pictures))
    if text_model is not None:
        encode_texts(out, pictures.classes, text_model, device)
    index = LatentIndex(
        autoencoder=readable(autoencoder.name),
        source=readable(data.name),
        encoding=encoding,
        classes=pictures.classes,
        shards=tuple(shards),
        damaged=tuple(damage.names),
        versions={"elit-serve": __version__, "torch": torch.__version__},
    )
    _write_whole(out / NAME, lambda file: file.write_text(index.model_dump_json(indent=2) + "\n", encoding="utf-8"))
    return index


def _check_names(data: Path, names: Sequence[str]) -> None:
    """They are written into one file, of which no more is read than `MAX_JSON_BYTES`; half is left for the rest."""
    size, limit = len(json.dumps(names, ensure_ascii=False).encode()), MAX_JSON_BYTES // 2
    if size > limit:
        raise DataError(f"{data} has captions of {size:,} bytes in all, and an index names at most {limit:,} of them")


def _check_size(options: EncodeOptions, factor: int) -> None:
    if options.height % factor or options.width % factor:
        size = f"{options.width}x{options.height}"
        raise InvalidInput("--size", size, f"sides that are multiples of {factor}, as this autoencoder needs")


def _encoding(pictures: PictureSet, folder: Path, coder: DiffusersAutoencoder, options: EncodeOptions) -> Encoding:
    return Encoding(
        autoencoder_sha256=fingerprint(folder),
        height=options.height,
        width=options.width,
        sample_shape=(coder.channels, options.height // coder.factor, options.width // coder.factor),
        dtype=options.dtype,
        mirrored=options.mirrored,
        data_sha256=content_digest(pictures.photographs),
        per_shard=options.per_shard,
        captioned=options.captioned,
    )


def _check_out(out: Path, encoding: Encoding) -> None:
    """The folder may be new, empty, or hold what this very encoding has left there."""
    if holds_latents(out):
        told = read_latent_index(out).encoding
        others = [name for name in Encoding.model_fields if getattr(told, name) != getattr(encoding, name)]
        if others:
            raise InvalidInput("out", str(out), f"it holds latents of another encoding: {', '.join(others)} differ")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput("out", str(out), f"it cannot be written: {error.strerror or error}") from None


class _Writer:
    """Encodes shard after shard, and takes those that are there already."""

    def __init__(
        self,
        out: Path,
        pictures: PictureSet,
        coder: DiffusersAutoencoder,
        encoding: Encoding,
        options: EncodeOptions,
    ) -> None:
        self._out, self._pictures, self._coder = out, pictures, coder
        self._encoding, self._options = encoding, options

    def shard(self, number: int, places: range, pool: ThreadPoolExecutor) -> tuple[Shard, list[str]]:
        """The shard of the photographs at these places, and the damaged ones among them."""
        file = self._out / f"shard-{number:05d}.safetensors"
        known = self._known(file)
        if known is not None:
            return known
        samples, labels, damaged = [], [], list[str]()
        for batch in self._batches(places, pool):
            good = [place for place, picture in batch if not isinstance(picture, DamagedPicture)]
            damaged += [str(picture) for _, picture in batch if isinstance(picture, DamagedPicture)]
            if good:
                images = torch.stack([picture for _, picture in batch if not isinstance(picture, DamagedPicture)])
                samples.append(self._encoded(images))
                labels += [self._pictures.label(place) for place in good]
        tensors = {"samples": self._joined(samples), "labels": torch.tensor(labels, dtype=torch.int64)}
        facts = json.dumps({"encoding": self._encoding.model_dump(mode="json"), "damaged": damaged})
        _write_whole(file, lambda staging: save_file(tensors, staging, metadata={ENCODING_KEY: facts}))
        return Shard(file=file.name, sha256=_sha256(file), count=len(labels)), damaged

    def _known(self, file: Path) -> tuple[Shard, list[str]] | None:
        """What is there from an earlier run of the same encoding; a damaged file, or another's, is written again."""
        if not os.path.lexists(file):
            return None
        try:
            with safe_open(file, framework="pt") as tensors:
                facts = json.loads((tensors.metadata() or {})[ENCODING_KEY])
                count = tensors.get_slice("labels").get_shape()[0]
            if facts["encoding"] != self._encoding.model_dump(mode="json"):
                return None
            return Shard(file=file.name, sha256=_sha256(file), count=count), list(facts["damaged"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is not whole and is written again: %s", file, error)
            return None

    def _batches(self, places: range, pool: ThreadPoolExecutor) -> Iterator[list[tuple[int, Tensor | DamagedPicture]]]:
        """Pictures by place, the next batch being decoded while one is encoded."""
        size = self._options.batch
        parts = [places[start : start + size] for start in range(0, len(places), size)]

        def begin(part: range) -> list[tuple[int, Future[Tensor | DamagedPicture]]]:
            return [(place, pool.submit(picture_or_damage, self._pictures, place)) for place in part]

        ahead = begin(parts[0])
        for part in [*parts[1:], range(0)]:
            present, ahead = ahead, begin(part)
            yield [(place, picture.result()) for place, picture in present]

    @torch.inference_mode()
    def _encoded(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> [B, 1 or 2, C, h, w] on the host."""
        pictures = to_unit(images.to(self._coder.device))
        versions = [pictures, pictures.flip(3)] if self._encoding.mirrored else [pictures]
        samples = torch.stack([self._coder.encode(version) for version in versions], dim=1)
        stored = samples.to(TORCH_DTYPES[self._encoding.dtype]).cpu()
        if not bool(stored.isfinite().all()):
            raise DataError(f"a latent is not finite as {self._encoding.dtype}; --dtype float32 holds larger ones")
        return stored

    def _joined(self, samples: Sequence[Tensor]) -> Tensor:
        if samples:
            return torch.cat(list(samples))
        shape = (0, 1 + self._encoding.mirrored, *self._encoding.sample_shape)
        return torch.zeros(shape, dtype=TORCH_DTYPES[self._encoding.dtype])


def _write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """A file that is there whole or not at all."""
    staging = file.with_name(f".{file.name}")
    try:
        write(staging)
        staging.chmod(0o644)  # safetensors makes it private
        staging.replace(file)
    except (OSError, SafetensorError) as error:
        staging.unlink(missing_ok=True)
        raise DataError(f"{file} cannot be written: {error}") from None


def _sha256(file: Path) -> str:
    with open_file(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
