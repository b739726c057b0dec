"""How much longer files take than a profile says, which knows one kind: the format that a model answers in by itself,
compressed as a server does by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from statistics import median

import torch
from torch import Tensor

from elit_serve.clock import Clock
from elit_serve.engine.encoders import EncoderOptions
from elit_serve.engine.encoding import encode_sample
from elit_serve.engine.served_model import ServedModel
from elit_serve.plans.formats import AnswerFormat, answer_formats
from elit_serve.plans.size import Size

REPEATS = 3
BEST_QUALITY = 100  # which takes longest
GRAIN = 8.0  # standard deviation of what is added to a smooth picture: about as hard to compress as a photograph


@dataclass(frozen=True, kw_only=True)
class FileTimes:
    """extra_s: seconds more for each pixel of a file, by format; 0 where none are told. num_threads: that encode."""

    extra_s: Mapping[AnswerFormat, float]
    num_threads: int

    @classmethod
    def measured(cls, pipeline: ServedModel, options: EncoderOptions, clock: Clock) -> FileTimes:
        """Of pictures of the default size. Takes as long as a few files; nothing where there is one kind only."""
        usual, *others = answer_formats(pipeline.is_latent)
        asked = [usual, *others] if options.compression != EncoderOptions().compression else others
        if pipeline.is_latent or not asked:
            return cls(extra_s={}, num_threads=options.threads)
        size = pipeline.sizes.size_of(pipeline.sizes.default.name)
        encoded = partial(encode_sample, _picture(size), facts={}, quality=BEST_QUALITY)
        usual_s = _median_s(partial(encoded, output_format=usual), clock)
        taken_s = {
            name: _median_s(partial(encoded, output_format=name, compression=options.compression), clock)
            for name in asked
        }
        pixels = size.width * size.height
        extra_s = {name: max(0.0, one_s - usual_s) / pixels for name, one_s in taken_s.items()}
        return cls(extra_s=extra_s, num_threads=options.threads)

    def extra_ms(self, size: Size, file_format: AnswerFormat, num_files: int) -> float:
        """Milliseconds by which the last of so many files is there later than profiles say."""
        rounds = ceil(num_files / self.num_threads)
        return 1000 * rounds * size.width * size.height * self.extra_s.get(file_format, 0.0)


def _picture(size: Size) -> Tensor:
    """uint8 [H, W, 3]: smooth colours with some grain."""
    generator = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(1, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size.height, size.width), mode="bicubic")
    grainy = smooth + GRAIN * torch.randn(smooth.shape, generator=generator)
    return grainy[0].clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def _median_s(encoded: partial[bytes], clock: Clock) -> float:
    """After one that is not counted."""
    encoded()
    taken_s = []
    for _ in range(REPEATS):
        started_s = clock.now()
        encoded()
        taken_s.append(clock.now() - started_s)
    return median(taken_s)
