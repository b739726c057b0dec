"""The kinds of files that pictures are answered and written as."""

from __future__ import annotations

from typing import Final, Literal, get_args

OutputFormat = Literal["png", "jpeg", "webp"]
AnswerFormat = Literal["png", "jpeg", "webp", "safetensors"]
PngCompression = Literal["fast", "small"]

OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)
ANSWER_FORMATS: tuple[AnswerFormat, ...] = get_args(AnswerFormat)
LOSSY_FORMATS: tuple[OutputFormat, ...] = ("jpeg", "webp")
LATENT: Final = "safetensors"  # the answer of a model without an autoencoder
FILE_QUALITY = 95  # of JPEG and lossy WebP, of at most 100


def answer_formats(is_latent: bool) -> tuple[AnswerFormat, ...]:
    """What a model can be asked for, the default first."""
    return (LATENT,) if is_latent else OUTPUT_FORMATS
