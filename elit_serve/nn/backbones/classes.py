"""What transformers share whose pictures are of one of some classes.

Letters: B batch, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elit_serve.nn.backbones.kind import Conditions
from elit_serve.nn.backbones.transformer import Transformer, TransformerSpec
from elit_serve.nn.fields import whole

TINY_CLASSES = {"num_classes": 3}


@dataclass(frozen=True, kw_only=True)
class ClassSpec(TransformerSpec):
    """num_classes: without the null class."""

    num_classes: int = whole(1, 1_000_000)

    @property
    def conditions(self) -> Conditions:
        return {"num_classes": self.num_classes}


class ClassTransformer(Transformer):
    """Conditions are class ids, which modulate the blocks as time does."""

    spec: ClassSpec

    def make_condition_embed(self) -> None:
        self.class_embed = nn.Embedding(self.spec.num_classes + 1, self.spec.dim)  # the last one means "no class"

    def condition_embedding(self, condition: Tensor) -> Tensor:
        return self.class_embed(condition)

    def null_like(self, condition: Tensor) -> Tensor:
        """What stands for no condition, in place of each of these: class ids [B] -> [B]."""
        return torch.full_like(condition, self.spec.num_classes)
