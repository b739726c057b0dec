"""elit-serve: serve and train elastic diffusion transformers.

>>> import elit_serve
>>> pipeline = elit_serve.load("garden64")  # doctest: +SKIP
>>> pipeline.generate("tulip", budget=0.25, seed=7).save("tulip.png")  # doctest: +SKIP
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elit_serve.engine.pipeline import Pipeline

try:
    __version__ = version("elit-serve")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__", "load"]


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    threads: int | None = None,
) -> Pipeline:
    """A model ready to generate: a model directory, or a bundled model by its name (default: garden64).

    torch is imported here and not before. See `elit_serve.engine.pipeline.Pipeline.load`.
    """
    from elit_serve.engine.pipeline import Pipeline

    return Pipeline.load(model, device=device, dtype=dtype, quantize=quantize, threads=threads)
