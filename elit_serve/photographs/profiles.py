"""Embedded colour profiles (ICC), converted to sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image, ImageCms

KEPT_TRANSFORMS = 16  # a data set has few profiles, in very many pictures
MAX_PROFILE_BYTES = 4 << 20  # printing presses' have up to 3 MB
SAME = 2  # of 255: a profile that moves no colour further is sRGB, and its pixels stay as they are

_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's colour space and the mode that it speaks of


def to_srgb(image: Image.Image, profile: object) -> Image.Image:
    """`image` in RGB, converted from the colours of its `profile`, the bytes of an ICC profile.

    Without one, or with one that is broken or speaks of other colours than the picture has, it is taken as sRGB.
    """
    if not isinstance(profile, bytes) or not 0 < len(profile) <= MAX_PROFILE_BYTES:
        return image.convert("RGB")
    space = _space(profile)
    if space == "RGB" or image.mode not in _SPACES.values():
        image = image.convert("RGB")
    transform = _transform(profile, space) if image.mode == space else None
    return image.convert("RGB") if transform is None else transform.apply(image)


@lru_cache(maxsize=KEPT_TRANSFORMS)
def _space(profile: bytes) -> str | None:
    """The mode of the pictures that a profile speaks of; None if it is broken, or no such mode is taken."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ValueError, TypeError):
        return None
    return _SPACES.get(opened.profile.xcolor_space.strip())


@lru_cache(maxsize=KEPT_TRANSFORMS)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From pictures of `mode` to sRGB; None where that changes nothing, or the profile has no way there."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.ImageCmsTransform(opened, _srgb(), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if _changes_nothing(transform, mode) else transform


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether all colours of a coarse grid stay where they are, up to rounding."""
    if mode == "CMYK":
        return False
    steps = np.linspace(0, 255, 17).astype(np.uint8)
    colours = np.array(list(product(steps, repeat=3)) if mode == "RGB" else [(step,) * 3 for step in steps])
    grid = Image.fromarray(colours[None].astype(np.uint8)).convert(mode)  # one row
    moved = np.asarray(transform.apply(grid)).astype(int) - np.asarray(grid.convert("RGB"))
    return int(np.abs(moved).max()) <= SAME
