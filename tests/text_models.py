"""A tiny text-conditioned backbone and encoder for tests, where no trained model is needed.

Letters: B batch, C x H x W one sample, T tokens of a text, D their width, U hidden units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from text_encoders import save_t5, save_tokenizer
from torch import Tensor, nn

from elit_serve.engine.checkpoint import write_checkpoint
from elit_serve.engine.pipeline import Pipeline
from elit_serve.files.config import ModelConfig, SamplingConfig, TextConfig, TextEncoderConfig, WeightsConfig
from elit_serve.nn import Backbone, BackboneSpec, Flops, build
from elit_serve.nn.backbones.kind import BackboneKind
from elit_serve.nn.backbones.table import KINDS
from elit_serve.nn.fields import whole
from elit_serve.nn.reuse import CoreChange
from elit_serve.nn.text import TextTokens, packed
from elit_serve.plans.guidance import Guidance

NUM_LEVELS = 4
DIM, MAX_TOKENS = 8, 6
EXAMPLES = ("a red tulip", "two daisies")


def text_config(*, negative: bool = False, encoder: TextEncoderConfig | None = None) -> TextConfig:
    """Of the models here."""
    chosen = encoder or TextEncoderConfig(kind="letters")
    return TextConfig(encoder=chosen, dim=DIM, max_tokens=MAX_TOKENS, negative=negative, examples=EXAMPLES)


class Letters:
    """A token for each letter. calls: what it was asked for, each time."""

    dim, max_tokens, dtype = DIM, MAX_TOKENS, torch.float32

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode(self, prompts: Sequence[str]) -> Tensor:
        self.calls.append(list(prompts))
        return torch.cat([self._one(prompt) for prompt in prompts])

    def _one(self, prompt: str) -> Tensor:
        codes = torch.tensor([[ord(letter) for letter in prompt]], dtype=torch.float32)  # [1, N]
        states = torch.sin(codes.unsqueeze(-1) * torch.arange(1, DIM + 1))  # [1, N, D]
        return packed(states, torch.ones_like(codes), MAX_TOKENS)


@dataclass(frozen=True, kw_only=True)
class ToyTextSpec(BackboneSpec):
    """side: of square pictures in pixels. units: hidden ones of each level."""

    kind: ClassVar[str] = "toy-text"
    side: int = whole(1, 64)
    units: int = whole(1, 1024)
    text_dim: int = whole(1, 4096)
    max_tokens: int = whole(1, 4096)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return 3, self.side, self.side

    @property
    def latents_per_group(self) -> int:
        return NUM_LEVELS

    @property
    def num_tokens(self) -> int:
        return NUM_LEVELS

    def flops(self, level: int) -> Flops:
        count = 4.0 * 3 * self.side**2 * self.units * level
        return Flops(prefix=count, all_latents=count)

    def core_flops(self, level: int) -> float:  # noqa: ARG002
        return 0.0


class ToyText(Backbone):
    """Velocity from pixels, time and the sum of a text's tokens, through the first L * U hidden units."""

    spec: ToyTextSpec

    def __init__(self, spec: ToyTextSpec) -> None:
        super().__init__(spec)
        pixels, hidden = 3 * spec.side**2, NUM_LEVELS * spec.units
        self.up = nn.Linear(pixels + 1, hidden)
        self.text = nn.Linear(spec.text_dim, hidden)
        self.no_text = nn.Parameter(torch.ones(spec.text_dim))
        self.down = nn.Linear(hidden, pixels)

    def null_like(self, condition: Tensor) -> Tensor:
        token = self.no_text.expand(len(condition), 1, -1)
        return packed(token, token.new_ones(token.shape[:2]), condition.shape[1])

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor,
        level: int | Sequence[int] = 1,
        latent_order: Tensor | None = None,
        changes: Sequence[CoreChange] = (),
        own_levels: Tensor | None = None,
    ) -> Tensor:
        assert latent_order is None
        assert not changes
        levels = [level] if isinstance(level, int) else list(level)
        flat = torch.cat([x.flatten(1), t.unsqueeze(1).to(x)], dim=1)  # [B, C * H * W + 1]
        tokens = TextTokens.of(condition)
        text = (self.text(tokens.states) * tokens.mask.unsqueeze(-1)).sum(dim=1)  # [B, 4 * U]
        hidden = torch.tanh(self.up(flat) + text)
        if own_levels is None:
            own_levels = torch.tensor(levels, device=x.device).repeat_interleave(len(x) // len(levels))
        is_kept = torch.arange(hidden.shape[1], device=x.device) < self.spec.units * own_levels.unsqueeze(1)
        return self.down(hidden * is_kept).view_as(x)  # [B, C, H, W]


KIND = BackboneKind(
    spec=ToyTextSpec, module=ToyText, tiny=ToyTextSpec(side=16, units=8, text_dim=DIM, max_tokens=MAX_TOKENS)
)


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A model of prompts, negative ones included, that can be loaded while a test of this file runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, KIND.spec.kind, KIND)
        yield Pipeline.load(save_text_model(tmp_path_factory.mktemp("models") / "painter"), device="cpu")


def save_text_model(folder: Path, *, negative: bool = True, spec: BackboneSpec | None = None) -> Path:
    """A model of prompts on disk: 4 steps of CCFG, and a random T5 as its encoder. Without another spec it has 32x32
    pixels and 4 levels, and who loads it needs `KIND` in the table of backbones."""
    spec = spec or ToyTextSpec(side=32, units=8, text_dim=DIM, max_tokens=MAX_TOKENS)
    config = ModelConfig(
        name="painter",
        **spec.config_fields(),
        levels=spec.levels,
        conditions=text_config(negative=negative, encoder=TextEncoderConfig(kind="transformers")),
        sampling=SamplingConfig(steps=4, guidance=Guidance(method="ccfg", scale=2.0, weak_level=1)),
        weights=WeightsConfig(dtype="float32", files={"model.safetensors": "0" * 64}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ToyText(spec) if isinstance(spec, ToyTextSpec) else build(spec)
        for parameter in model.parameters():  # also those that start at zero: prompts must matter
            parameter.data.add_(torch.randn_like(parameter) * 0.02)
        write_checkpoint(folder, config, model.state_dict())
    save_t5(folder)
    save_tokenizer(folder)
    return folder
