"""Which steps of a picture use again what an earlier step computed, as a value, and how they are chosen."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from elit_serve.errors import InvalidInput

WEAK = "weak"  # how a rule is spelled that leaves out weak passes
RULE = re.compile(r"(?P<threshold>[0-9]{1,6}(?:\.[0-9]{1,9})?)(?:\+weak)?|weak")
SPELLING = "none, a threshold above 0 as 0.15, weak, or both as 0.15+weak"


@dataclass(frozen=True, kw_only=True)
class Skips:
    """Steps are numbered from 0; both are rising.

    core: those that compute no core. What their cores would change is what they changed at the last step that computed
        them, of each pass for itself (`nn.reuse`).
    weak: guided ones without a weak pass. How far the velocities of the two passes are apart is what it was at the last
        step that had both.
    """

    core: tuple[int, ...] = ()
    weak: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, steps in (("core", self.core), ("weak", self.weak)):
            if any(step < 1 for step in steps) or any(low >= high for low, high in pairwise(steps)):
                raise InvalidInput(f"skips.{name}", list(steps), "numbers of steps, rising, each 1 or more")

    def __bool__(self) -> bool:
        return bool(self.core or self.weak)

    def check(self, is_guided: Sequence[bool]) -> None:
        """Raises `InvalidInput` if steps that are guided or not as this says cannot be skipped so: there must be that
        many, and what is used again must have been computed."""
        for name, steps in (("core", self.core), ("weak", self.weak)):
            if steps and steps[-1] >= len(is_guided):
                allowed = f"numbers of steps below {len(is_guided)}, as many as there are"
                raise InvalidInput(f"skips.{name}", list(steps), allowed)
        has_weak_core = has_both = False
        core, weak = set(self.core), set(self.weak)
        for step, guided in enumerate(is_guided):
            if step in weak and not (guided and has_both):
                allowed = f"guided steps behind one with a weak pass, which step {step} is not"
                raise InvalidInput("skips.weak", list(self.weak), allowed)
            has_weak_pass = guided and step not in weak
            if step in core and has_weak_pass and not has_weak_core:
                allowed = f"steps whose passes have computed their cores before, which those of step {step} have not"
                raise InvalidInput("skips.core", list(self.core), allowed)
            has_both |= has_weak_pass
            has_weak_core |= has_weak_pass and step not in core


NO_SKIPS = Skips()


@dataclass(frozen=True, kw_only=True)
class SkipRule:
    """How steps are chosen before sampling; by default none are.

    threshold: cores are skipped as long as what their outputs are expected to change by, since they were last computed,
        stays below this: a share of the output, summed over steps. 0 skips none.
    halves_weak: whether every other weak pass is left out.
    """

    threshold: float = 0.0
    halves_weak: bool = False

    @classmethod
    def read(cls, word: str, *, field: str = "skips") -> Self:
        """As the command line spells it. Raises `InvalidInput`.

        >>> SkipRule.read("0.15+weak")
        SkipRule(threshold=0.15, halves_weak=True)
        """
        if word == "none":
            return cls()
        found = RULE.fullmatch(word)
        threshold = 0.0 if found is None else float(found["threshold"] or 0)
        if found is None or (found["threshold"] and not threshold):
            raise InvalidInput(field, word, SPELLING)
        return cls(threshold=threshold, halves_weak=WEAK in word)

    def skips(self, changes: Sequence[float], is_guided: Sequence[bool]) -> Skips:
        """For steps that are guided or not as this says.

        changes: for each but the first, by which share the output of its core is expected to differ from that of the
            step before. The first and the last step compute everything, and so does the first guided one.
        """
        weak = _every_other(is_guided) if self.halves_weak else ()
        has_weak = [guided and step not in set(weak) for step, guided in enumerate(is_guided)]
        first_weak = has_weak.index(True) if any(has_weak) else 0
        computed = {0, len(is_guided) - 1, first_weak}
        core = below_threshold(changes, self.threshold, computed=computed)
        return Skips(core=core, weak=tuple(weak))


def below_threshold(changes: Sequence[float], threshold: float, *, computed: Collection[int]) -> tuple[int, ...]:
    """The steps for which the changes since the last computed one, summed, stay below a threshold.

    changes: of each step but the first. computed: steps that are, whatever the sum.

    >>> below_threshold([0.1, 0.1, 0.1, 0.1], 0.25, computed={4})
    (1, 2)
    """
    skipped, total = [], 0.0
    for step, change in enumerate(changes, 1):
        total += change
        if total < threshold and step not in computed:
            skipped.append(step)
        else:
            total = 0.0
    return tuple(skipped)


def _every_other(is_guided: Sequence[bool]) -> list[int]:
    """The second, the fourth, ... of the guided steps."""
    return [step for step, guided in enumerate(is_guided) if guided][1::2]
