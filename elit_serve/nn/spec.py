"""What a backbone is, as values: enough to build it, to count its FLOPs, and to check a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from elit_serve.errors import InvalidInput

Positions = Literal["rope", "learned"]


@dataclass(frozen=True, kw_only=True)
class InterfaceSpec:
    """The latent interface of ELIT (paper, section 3.3).

    window: (rows, columns) of tokens in a group; their product is J, the latents per group.
    head, core, tail: transformer blocks before Read, between Read and Write, and after Write.
    """

    window: tuple[int, int]
    head: int
    core: int
    tail: int

    def __post_init__(self) -> None:
        if min(self.window) < 1:
            raise InvalidInput("window", self.window, "a window has at least one row and one column")
        if min(self.head, self.tail) < 0 or self.core < 1:
            raise InvalidInput("split", (self.head, self.core, self.tail), "the core needs at least one block")

    @property
    def latents_per_group(self) -> int:
        """J."""
        return self.window[0] * self.window[1]


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A class-conditional diffusion transformer; with `interface` it is elastic, without it a plain DiT.

    channels, height, width: the sample the model works on (pixels, or an autoencoder's latent).
    patch: side of a square patch. dim: token width d. num_classes excludes the null class.
    positions: `rope`, or `learned` for an embedding of each token instead, which ties the model to one sample size.
    padding: zeros around the sample, in its elements, that the model computes on and its output lacks: tokens that
        nobody needs, for the experiment of the paper's section 3.2.
    """

    channels: int
    height: int
    width: int
    patch: int
    dim: int
    depth: int
    num_heads: int
    num_classes: int
    interface: InterfaceSpec | None = None
    positions: Positions = "rope"
    padding: int = 0

    def __post_init__(self) -> None:
        if self.positions not in get_args(Positions):
            raise InvalidInput("positions", self.positions, f"one of {', '.join(get_args(Positions))}")
        if self.padding < 0:
            raise InvalidInput("padding", self.padding, "it must be at least 0")
        for name in ("channels", "height", "width", "patch", "dim", "depth", "num_heads", "num_classes"):
            if getattr(self, name) < 1:
                raise InvalidInput(name, getattr(self, name), "it must be at least 1")
        if self.dim % (4 * self.num_heads):
            raise InvalidInput(
                "num_heads",
                self.num_heads,
                f"2D RoPE needs dim / num_heads divisible by 4, and dim is {self.dim}",
            )
        interface = self.interface
        if interface and interface.head + interface.core + interface.tail != self.depth:
            split = f"{interface.head}-{interface.core}-{interface.tail}"
            raise InvalidInput("split", split, f"head, core and tail must add up to depth {self.depth}")
        self.check_size(self.height, self.width)

    def check_size(self, height: int, width: int) -> None:
        """Raises unless a sample of this size, padded, splits into whole windows of whole patches."""
        rows, columns = self.interface.window if self.interface else (1, 1)
        for name, size, step in (
            ("height", height, rows * self.patch),
            ("width", width, columns * self.patch),
        ):
            padded = size + 2 * self.padding
            if padded < step or padded % step:
                raise InvalidInput(name, padded, f"it must be a multiple of {step} (window x patch)")
        if self.positions == "learned" and (height, width) != (self.height, self.width):
            raise InvalidInput("height, width", (height, width), f"positions are learned for {self.height, self.width}")

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of a sample of this size, padding included."""
        return (height + 2 * self.padding) // self.patch, (width + 2 * self.padding) // self.patch

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        return self.channels, self.height, self.width

    @property
    def num_tokens(self) -> int:
        """N, spatial tokens after patchify, padding included."""
        rows, columns = self.token_grid(self.height, self.width)
        return rows * columns

    @property
    def latents_per_group(self) -> int:
        """J; 1 for a plain DiT, whose only level is 1."""
        return self.interface.latents_per_group if self.interface else 1

    @property
    def num_groups(self) -> int:
        """G; for a plain DiT each token stands alone."""
        return self.num_tokens // self.latents_per_group
