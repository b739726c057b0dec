"""Which form an answer takes, by its request's `Accept` header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.exceptions import HTTPException

from elit_serve.errors import InvalidInput
from elit_serve.plans.formats import LATENT, OUTPUT_FORMATS, AnswerFormat

JSON = "application/json"
MAX_MEDIA_TYPES = 100  # a browser names eight; a head has room for thirty thousand
_MEDIA_TYPES: dict[AnswerFormat, str] = {
    **{name: f"image/{name}" for name in OUTPUT_FORMATS},
    LATENT: "application/x-safetensors",
}


def media_type_of(output_format: AnswerFormat) -> str:
    return _MEDIA_TYPES[output_format]


def check_format(output_format: AnswerFormat | None, formats: Sequence[AnswerFormat]) -> AnswerFormat:
    """The format to make, of those that the model has; the first is the default."""
    if output_format is None or output_format in formats:
        return output_format or formats[0]
    why = "this model has no autoencoder, so its answer is the latent" if LATENT in formats else "this model has pixels"
    raise InvalidInput("output_format", output_format, f"{', '.join(formats)}: {why}")


def bare_format(
    accept: str | None, output_format: AnswerFormat | None, formats: Sequence[AnswerFormat]
) -> AnswerFormat | None:
    """The format of a bare file, or None when the caller prefers JSON.

    `image/*` is the `output_format` of the request, the default without one. A contradiction between the two is
    refused, and so is an `Accept` that names nothing that the model has.
    """
    offered = {media_type_of(name): name for name in formats}
    for media_type in _by_preference(accept or "*/*"):
        if media_type in ("*/*", "application/*", JSON):
            return None
        if media_type == "image/*" and LATENT not in formats:
            return check_format(output_format, formats)
        if media_type in offered:
            if output_format not in (None, offered[media_type]):
                raise InvalidInput("output_format", output_format, f"Accept asks for {media_type}; leave it out")
            return offered[media_type]
    why = " This model has no autoencoder, so its answer is the latent." if LATENT in formats else ""
    raise HTTPException(406, f"the answers are {', '.join((JSON, *offered))}; Accept names none of them.{why}")


def _by_preference(accept: str) -> list[str]:
    """Media types of an `Accept` header, the preferred first, without those of quality 0; of many the first ones."""
    ranked = []
    for position, part in enumerate(accept.split(",", MAX_MEDIA_TYPES)[:MAX_MEDIA_TYPES]):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((_quality(value[2:]) for value in parameters if value.startswith("q=")), 1.0)
        if media_type and quality > 0:
            ranked.append((-quality, position, media_type))
    return [media_type for _, _, media_type in sorted(ranked)]


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
