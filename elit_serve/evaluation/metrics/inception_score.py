"""Inception Score (Salimans et al. 2016): how sure a classifier is of each sample, and how varied they are together."""

from __future__ import annotations

import torch
from torch import Tensor


def inception_scores(logits: Tensor, member: Tensor) -> list[float]:
    """exp E[KL(p(y|x) || p(y))] of each subset `member` [S, n] of samples with logits [n, K]; between 1 and K."""
    log_p = torch.log_softmax(logits.double(), dim=1)
    p = log_p.exp()
    negative_entropy = (p * log_p).sum(dim=1)  # [n]
    share = member.double() / member.sum(dim=1, keepdim=True)  # [S, n]
    marginal = share @ p  # [S, K]
    entropy_of_marginal = torch.special.entr(marginal).sum(dim=1)
    found: list[float] = (share @ negative_entropy + entropy_of_marginal).exp().tolist()
    return found
