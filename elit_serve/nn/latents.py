"""What a model's latents do: which tokens they read, which tokens read them, and whether they differ at all.

Latents that stay alike make a model of many latents work as one of few: each reads the mean of its group, and the core
computes the same thing several times. Nothing in a loss shows that, so this looks at them.

Letters: B batch, G groups, W tokens in a window, R latents that Read makes of a group, L level (those that run through
the core), D width. With an interface of reach `all` R is J at every level, with `prefix` it is L.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elit_serve.nn.attention import grouped_probabilities, observed
from elit_serve.nn.backbones.backbone import Backbone
from elit_serve.nn.layers import GroupedCrossAttention, settled


@dataclass(frozen=True, kw_only=True)
class LatentFigures:
    """What the latents of a group do, averaged over groups and samples. None is what one latent alone does not have.

    tokens_per_latent: how many tokens a latent reads, the `effective_number` of its attention in Read, from 1 to W.
    latents_per_token: how many latents a token reads, that of its attention in Write, from 1 to R.
    cosine_after_read, cosine_after_core: `mean_cosine` of the R latents that Read made, and of the L latents that ran
        through the core, at its end.
    rank_after_read, rank_after_core: `rank_of_differences` of the same.
    """

    tokens_per_latent: float
    latents_per_token: float
    cosine_after_read: float | None
    cosine_after_core: float | None
    rank_after_read: float | None
    rank_after_core: float | None

    def present(self) -> dict[str, float]:
        """Those that there are, by name, as files and curves have them."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class LatentPass:
    """The latents of one forward pass at one level, in float32 whatever the model computes in.

    reads: [B, G, R, W], what each latent read, averaged over heads; rows sum to 1. writes: [B, G, W, R], what each
    token read of them. after_read: [B, G, R, D]. after_core: [B, G, L, D], the first L of them at the core's end.
    """

    reads: Tensor
    writes: Tensor
    after_read: Tensor
    after_core: Tensor

    def figures(self) -> LatentFigures:
        return LatentFigures(
            tokens_per_latent=effective_number(self.reads),
            latents_per_token=effective_number(self.writes),
            cosine_after_read=mean_cosine(self.after_read),
            cosine_after_core=mean_cosine(self.after_core),
            rank_after_read=rank_of_differences(self.after_read),
            rank_after_core=rank_of_differences(self.after_core),
        )


@torch.inference_mode()
def watch_latents(model: Backbone, x: Tensor, t: Tensor, condition: Tensor, level: int) -> LatentPass:
    """One forward pass at x [B, *], t [B], condition [B, ...]; the model must have `latent_parts`.

    The model is left as it was, its compiled parts too.
    """
    parts = model.latent_parts()
    assert parts is not None, model.spec.kind
    seen: dict[str, Tensor] = {}

    def keep_attention(name: str, attention: GroupedCrossAttention, *given: Any) -> None:
        seen[name] = grouped_probabilities(attention, *given).mean(dim=2)

    def keep_latents(name: str, latents_of: Callable[[Any], Tensor], made: Any) -> None:
        seen[name] = torch.unflatten(latents_of(made).float(), 1, (seen["reads"].shape[1], -1))

    with observed(
        inputs={
            parts.reading: partial(keep_attention, "reads", parts.reading),
            parts.writing: partial(keep_attention, "writes", parts.writing),
        },
        outputs={
            parts.read: partial(keep_latents, "after_read", settled),
            parts.core[-1]: partial(keep_latents, "after_core", parts.leaving),
        },
    ):
        model(x, t, condition, level)
    return LatentPass(**seen)


def effective_number(probabilities: Tensor) -> float:
    """Over how many of its K entries a row of [..., K] spreads, from 1 to K: exp of its entropy, averaged over rows."""
    return float(torch.special.entr(probabilities).sum(dim=-1).exp().mean())


def mean_cosine(latents: Tensor) -> float | None:
    """The cosine of two latents [..., L, D] of a group, averaged over pairs and groups; None of one latent.

    1 of latents in one direction; of L that point apart as far as they can it is -1 / (L - 1).
    """
    count = latents.shape[-2]
    if count == 1:
        return None
    units = F.normalize(latents.float(), dim=-1)
    of_pairs = units.sum(dim=-2).square().sum(dim=-1) - units.square().sum(dim=(-2, -1))  # each pair counts twice
    return float(of_pairs.mean()) / (count * (count - 1))


def rank_of_differences(latents: Tensor) -> float | None:
    """In how many directions the latents [..., L, D] of a group differ, averaged over groups; None of one latent.

    This is the effective rank (Roy and Vetterli, 2007, but of squared singular values) of the latents minus their
    mean: exp of the entropy of its squared singular values over their sum, from 1 to L - 1. 0 if all are the same.
    """
    if latents.shape[-2] == 1:
        return None
    differences = latents.float() - latents[..., :1, :].float()  # exactly zero of what is the same, whatever it is
    differences = differences - differences.mean(dim=-2, keepdim=True)
    with torch.autocast(latents.device.type, enabled=False):
        squares = torch.linalg.eigvalsh(differences @ differences.mT).clamp_min(0)  # [..., L], squared singular values
    total = squares.sum(dim=-1, keepdim=True)
    spread = torch.special.entr(squares / total.clamp_min(torch.finfo(squares.dtype).tiny)).sum(dim=-1).exp()
    return float(torch.where(total.squeeze(-1) > 0, spread, 0).mean())
