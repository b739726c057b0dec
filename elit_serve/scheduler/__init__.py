"""Which request gets how much compute, decided on values; standard library only."""

from elit_serve.scheduler.cost import CostTable
from elit_serve.scheduler.policy import highest_level_within

__all__ = ["CostTable", "highest_level_within"]
