"""Which form an answer takes, by its request's `Accept` header (RFC 9110, section 12.5.1)."""

from __future__ import annotations

from starlette.exceptions import HTTPException

from elit_serve.errors import InvalidInput
from elit_serve.pictures import OUTPUT_FORMATS, OutputFormat

JSON = "application/json"
PICTURE_TYPES: dict[str, OutputFormat] = {f"image/{name}": name for name in OUTPUT_FORMATS}
_MEDIA_TYPES: dict[OutputFormat, str] = {name: media_type for media_type, name in PICTURE_TYPES.items()}


def media_type_of(output_format: OutputFormat) -> str:
    return _MEDIA_TYPES[output_format]


def bare_format(accept: str | None, output_format: OutputFormat | None) -> OutputFormat | None:
    """The format of a bare picture, or None when the caller prefers JSON.

    `image/*` is the `output_format` of the request, png without one. A contradiction between the two is refused.
    """
    for media_type in _by_preference(accept or "*/*"):
        if media_type in ("*/*", "application/*", JSON):
            return None
        if media_type == "image/*":
            return output_format or "png"
        if media_type in PICTURE_TYPES:
            chosen = PICTURE_TYPES[media_type]
            if output_format not in (None, chosen):
                raise InvalidInput("output_format", output_format, f"Accept asks for {media_type}; leave it out")
            return chosen
    raise HTTPException(406, f"this route answers with {', '.join((JSON, *PICTURE_TYPES))}; Accept names none of them")


def _by_preference(accept: str) -> list[str]:
    """Media types of an `Accept` header, the preferred first, without those of quality 0."""
    ranked = []
    for position, part in enumerate(accept.split(",")):
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
