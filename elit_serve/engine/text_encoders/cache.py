"""An encoder that remembers what it has encoded lately, within bounds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from elit_serve.engine.text_encoders.encoder import TextEncoder

MAX_BYTES = 256 << 20  # of the device's memory: 70 prompts of 512 tokens 3584 wide, and 10,000 of 32 tokens 256 wide
AT_A_TIME = 32  # prompts that are encoded together at most, so that many of them take no more memory than a few


class CachedEncoder:
    """Encodes what it does not know. One thread encodes; any may ask what is known.

    max_bytes: of what is remembered; what was used last stays longest.
    """

    def __init__(self, encoder: TextEncoder, *, max_bytes: int = MAX_BYTES) -> None:
        self._encoder = encoder
        self.dim, self.max_tokens, self.dtype = encoder.dim, encoder.max_tokens, encoder.dtype
        self._known: OrderedDict[str, Tensor] = OrderedDict()  # by prompt, the one used last at the end
        self._max_known = max_bytes // (self.max_tokens * (self.dim + 1) * self.dtype.itemsize)

    def knows(self, prompt: str) -> bool:
        """Whether this one would cost nothing now."""
        return prompt in self._known

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        found = {prompt: self._known[prompt] for prompt in prompts if prompt in self._known}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        for first in range(0, len(new), AT_A_TIME):
            part = new[first : first + AT_A_TIME]
            found |= zip(part, self._encoded(part), strict=True)
        self._remember(found)
        return torch.stack([found[prompt] for prompt in prompts])

    def _encoded(self, prompts: Sequence[str]) -> list[Tensor]:
        """All at once or, if memory does not suffice, in halves. Each is a tensor of its own, [T, D + 1]."""
        try:
            return [tokens.clone() for tokens in self._encoder.encode(prompts)]
        except torch.OutOfMemoryError:
            if len(prompts) < 2:
                raise
        half = len(prompts) // 2  # not before the error is gone, and with it what it holds of memory
        return [*self._encoded(prompts[:half]), *self._encoded(prompts[half:])]

    def _remember(self, used: dict[str, Tensor]) -> None:
        for prompt, tokens in used.items():
            self._known[prompt] = tokens
            self._known.move_to_end(prompt)
        while len(self._known) > self._max_known:
            self._known.popitem(last=False)
