"""What all text-to-image transformers of diffusers share: configurations as specs, and their modules as backbones.

Such a model has one level. Its weights are called as in diffusers' own files, so that these are loaded as they lie.
In diffusers the noise level sigma = 1 - t is the time, and the output is noise - data: the opposite of our velocity.

Letters: B batch, C channels, H x W sample size, N image tokens, T text tokens, D width.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from elit_serve.errors import InvalidInput, MissingPackage
from elit_serve.nn.backbones.backbone import Backbone, BackboneSpec
from elit_serve.nn.backbones.kind import Conditions
from elit_serve.nn.backbones.transformer import AUTOENCODER_FACTOR
from elit_serve.nn.fields import InvalidSpec, SpecProblem, parse, whole
from elit_serve.nn.flops import Flops
from elit_serve.nn.reuse import CoreChange
from elit_serve.nn.text import ReadText, TextTokens, opened
from elit_serve.plans.bounds import MAX_TEXT_DIM, MAX_TEXT_TOKENS, MAX_TOKENS
from elit_serve.plans.size import nearest_multiples

MAX_SIDE = 4096  # of a sample
ONE = (1, 1)  # a window of one token: tokens row by row


@dataclass(frozen=True, kw_only=True)
class DenseSpec(BackboneSpec):
    """A transformer of diffusers, for samples of one size and prompts of one length.

    channels, height, width: the sample, an autoencoder's latent. patch: side of a square patch. dim: D. depth: blocks.
    text_dim: width of the states of a prompt's tokens. max_tokens: T, to which all prompts are filled up.

    their_class: its name in diffusers. their_names: what the fields are called in its configuration. their_constants:
    what that must say besides, or leave as it is by itself. masks_text: whether it attends to the tokens of a prompt
    alone; else to all places, which its pipeline has filled with something.
    """

    their_class: ClassVar[str]
    their_names: ClassVar[Mapping[str, str]]
    their_constants: ClassVar[Mapping[str, object]] = {}
    masks_text: ClassVar[bool] = True

    channels: int = whole(1, 1024)
    height: int = whole(1, MAX_SIDE)
    width: int = whole(1, MAX_SIDE)
    patch: int = whole(1, 64)
    dim: int = whole(4, 65536)
    depth: int = whole(1, 512)
    num_heads: int = whole(1, 512)
    text_dim: int = whole(1, MAX_TEXT_DIM)
    max_tokens: int = whole(1, MAX_TEXT_TOKENS)

    @classmethod
    def of_configuration(cls, content: Mapping[str, object], **ours: object) -> Self:
        """From `transformer/config.json` of diffusers, and the fields that are not in it.

        Raises `InvalidSpec` with all that is wrong; what the file leaves out is as diffusers has it.
        """
        signature = inspect.signature(diffusers_class(cls.their_class).__init__)
        usual = {name: each.default for name, each in signature.parameters.items() if name != "self"}
        told = {name: value for name, value in content.items() if not name.startswith("_")}
        whole_table = {**usual, **told}
        wrong = [
            SpecProblem((name,), value, f"it must be {json.dumps(allowed)}, and is {json.dumps(value)}")
            for name, allowed in cls.their_constants.items()
            if (value := whole_table.pop(name, allowed)) not in (allowed, _as_in_python(allowed))
        ]
        names = {theirs: field for field, theirs in cls.their_names.items()}
        table = {names.get(name, name): value for name, value in whole_table.items() if value is not None}
        try:
            spec = parse(cls, cls.completed({**table, **ours}))
        except InvalidSpec as error:
            raise InvalidSpec([*wrong, *error.problems]) from None
        if wrong:
            raise InvalidSpec(wrong)
        return spec

    @classmethod
    def completed(cls, table: dict[str, object]) -> dict[str, object]:
        """A table of fields without what only diffusers needs to know, and with what is needed here besides."""
        return table

    def arguments(self) -> dict[str, Any]:
        """What diffusers' class is made with."""
        return {theirs: getattr(self, field) for field, theirs in self.their_names.items()}

    def check(self) -> None:
        self.check_size(self.height, self.width)

    def check_size(self, *size: int) -> None:
        for name, side in zip(("height", "width"), size, strict=True):
            if side < self.patch or side % self.patch:
                nearest = nearest_multiples(side, self.patch)
                raise InvalidInput(name, side, f"it must be a multiple of {self.patch} (whole patches), as {nearest}")
        height, width = size
        if (height // self.patch) * (width // self.patch) > MAX_TOKENS:
            raise InvalidInput("height, width", size, f"at most {MAX_TOKENS} patches of {self.patch} x {self.patch}")

    def at_size(self, *size: int) -> Self:
        self.check_size(*size)
        height, width = size
        return replace(self, height=height, width=width)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        return self.channels, self.height, self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.height // self.patch, self.width // self.patch

    @property
    def num_tokens(self) -> int:
        """N."""
        rows, columns = self.grid
        return rows * columns

    def core_shape(self, level: int) -> tuple[int, int]:
        assert level == 1, level
        return self.num_tokens, self.dim

    def flops(self, level: int) -> Flops:
        """Of its blocks, over image and text tokens."""
        total = self.core_flops(level)
        return Flops(prefix=total, all_latents=total)

    def core_flops(self, level: int) -> float:
        """All that is counted."""
        assert level == 1, level
        return self.blocks_flops(self.num_tokens)

    def blocks_flops(self, tokens: int) -> float:
        """Of all blocks over so many image tokens and T text tokens."""
        raise NotImplementedError


def _as_in_python(value: object) -> object:
    """A list of JSON as a default of diffusers is written."""
    return tuple(value) if isinstance(value, list) else value


class Dense(Backbone):
    """A transformer of diffusers; a family says how tokens come into its blocks and out of them.

    Its children and parameters are those of diffusers' module, under their names.
    """

    spec: DenseSpec

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__(spec)
        theirs = diffusers_class(spec.their_class)(**spec.arguments())
        for name, child in theirs.named_children():
            self.add_module(name, child)
        for name, parameter in theirs.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self._layouts: dict[tuple[int, int, torch.device], Any] = {}

    def compilable(self) -> list[nn.Module]:
        return list(self.every_block())

    def unfused(self) -> list[nn.Module]:
        return list(self.every_block())

    def every_block(self) -> Iterable[nn.Module]:
        """Its blocks, in the order in which they run."""
        raise NotImplementedError

    def null_like(self, condition: Tensor) -> Tensor:
        """No tokens at all, in place of each prompt [B, T, D + 1]. A server tells it the encoded empty prompt."""
        return torch.zeros_like(condition)

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes."""
        return next(each.dtype for each in self.parameters() if each.dtype.itemsize > 1)  # quantised ones have another

    def mask_of(self, text: TextTokens | ReadText) -> Tensor:
        """What is added to scores of its tokens: [B, 1, 1, T], 0 where there is one, else -inf."""
        return torch.zeros_like(text.mask, dtype=self.dtype).masked_fill_(~text.mask, -torch.inf)[:, None, None]

    def layout(self, size: torch.Size, device: torch.device) -> Any:
        """What depends on the sample size alone [..., H, W], computed once per size and device."""
        height, width = size[-2:]
        key = (height, width, device)
        if key not in self._layouts:
            self.spec.check_size(height, width)
            with torch.inference_mode(False):  # sampling may come first, and training must be able to use it too
                self._layouts[key] = self.make_layout(height // self.spec.patch, width // self.spec.patch, device)
        return self._layouts[key]

    def make_layout(self, rows: int, columns: int, device: torch.device) -> Any:
        """See `layout`, for a grid of tokens."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Any,
        level: int | Sequence[int] = 1,
        latent_order: Tensor | None = None,
        changes: Sequence[CoreChange] = (),
        own_levels: Tensor | None = None,
    ) -> Tensor:
        """Velocity [B, C, H, W] at x [B, C, H, W], t [B], prompts [B, T, D + 1] or read once. What
        `changes` skips is all blocks."""
        assert latent_order is None, f"{self.spec.kind} has no latents"
        assert level == 1, level
        assert own_levels is None, f"{self.spec.kind} has one level"
        change = changes[0] if changes else None
        return -self.theirs(x.to(self.dtype), 1 - t, opened(condition), change)

    def theirs(self, x: Tensor, sigma: Tensor, text: Any, change: CoreChange | None) -> Tensor:
        """What diffusers' module answers, noise - data [B, C, H, W], at x [B, C, H, W] and sigma [B]."""
        raise NotImplementedError


def square_fields(name: str, resolution: int, step: int, channels: int, conditions: Conditions) -> dict[str, Any]:
    """The sample of a preset for square images of `resolution` pixels behind an 8x autoencoder, and what it is told.

    Raises `InvalidInput` unless that is a multiple of `step`.
    """
    if resolution < step or resolution % step:
        raise InvalidInput("resolution", resolution, f"{name} takes multiples of {step}")
    latent = resolution // AUTOENCODER_FACTOR
    return {"channels": channels, "height": latent, "width": latent, **conditions}


def diffusers_class(name: str) -> Any:
    """A class of diffusers. Raises `MissingPackage` where there is none, or an older diffusers that lacks it."""
    try:
        import diffusers

        return getattr(diffusers, name)
    except (ImportError, AttributeError):
        raise MissingPackage("diffusers", "diffusers") from None
