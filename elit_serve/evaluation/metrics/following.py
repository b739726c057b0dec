"""Whether pictures show what their prompts say, where both can be told in the same words.

Letters: n pictures, P parts of a prompt, S subsets.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from elit_serve.evaluation.metrics.measures import from_halves, whole_and_halves
from elit_serve.files.evaluation import Agreement


def agreements(seen: Tensor, said: Tensor, parts: Sequence[str]) -> dict[str, Agreement]:
    """The share of pictures whose word is the one that was asked for, for each part.

    seen, said: [n, P], the numbers of words. Chance is the mean over all pairs of a picture and a prompt of the set:
    what pictures score that look as these do and have nothing to do with their prompts.
    """
    member = whole_and_halves(len(seen), seen.device)  # [S, n]
    agree = (seen == said).double()  # [n, P]
    shares = member.double() @ agree / member.sum(dim=1, keepdim=True)  # [S, P]
    by_chance = (seen.unsqueeze(1) == said).double().mean(dim=(0, 1))  # [P]
    return {
        part: Agreement(share=from_halves(shares[:, index].tolist()), chance=float(by_chance[index]))
        for index, part in enumerate(parts)
    }
