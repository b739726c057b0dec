"""Which form an answer takes, by its request's `Accept` header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

    Of what is preferred equally, JSON comes first, and then the `output_format` of the request. A contradiction between
    that and `Accept` is refused, and so is an `Accept` that names nothing that the model has.
    """
    accepted = _accepted(accept or "*/*")
    by_type: dict[str, AnswerFormat] = {media_type_of(name): name for name in formats}
    asked = [media_type_of(name) for name in formats if name == output_format]
    offered = [JSON, *asked, *(media_type for media_type in by_type if media_type not in asked)]
    ranks = {media_type: rank for media_type in offered if (rank := _rank(media_type, accepted)) is not None}
    if not ranks:
        why = " This model has no autoencoder, so its answer is the latent." if LATENT in formats else ""
        raise HTTPException(406, f"the answers are {', '.join((JSON, *by_type))}; Accept names none of them.{why}")
    preferred = min(ranks, key=ranks.__getitem__)
    if preferred == JSON:
        return None
    if check_format(output_format, formats) != by_type[preferred] and output_format is not None:
        raise InvalidInput("output_format", output_format, f"Accept asks for {preferred}; leave it out")
    return by_type[preferred]


def _rank(media_type: str, accepted: Mapping[str, tuple[float, int]]) -> tuple[float, int] | None:
    """The smaller, the more it is preferred; None if it is not accepted. What names a type most closely decides."""
    kind, _, _ = media_type.partition("/")
    for name in (media_type, f"{kind}/*", "*/*"):
        if name in accepted:
            quality, position = accepted[name]
            return (-quality, position) if quality > 0 else None
    return None


def _accepted(accept: str) -> dict[str, tuple[float, int]]:
    """The types and ranges of an `Accept` header, each with its quality and its position; of many the first ones."""
    accepted: dict[str, tuple[float, int]] = {}
    for position, part in enumerate(accept.split(",", MAX_MEDIA_TYPES)[:MAX_MEDIA_TYPES]):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((_quality(value[2:]) for value in parameters if value.startswith("q=")), 1.0)
        accepted.setdefault(media_type, (quality, position))
    return accepted


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
