"""How far numbers from files and callers may go, whoever reads them; each lies far beyond whatever makes sense.

What lies beyond would take all memory, divide by zero or overflow somewhere else, where nobody knows the file any more.
"""

from __future__ import annotations

MAX_LEVEL = 1 << 24  # latents of a group that is all of the largest sample, 4096 x 4096
MAX_TOKENS = 1 << 16  # of a sample, zeros between included: 4096 x 4096 pixels in patches of 16
MAX_STEPS = 1000  # of a picture
MAX_SEED = 2**63 - 1
MAX_PROMPT = 10_000  # characters
MAX_TEXT_TOKENS, MAX_TEXT_DIM = 1 << 12, 1 << 16  # of a prompt, and the width of a token
MIN_TIME_SHIFT, MAX_TIME_SHIFT = 0.01, 100.0  # far below, the time grid divides by zero
MAX_SHIFT_GROWTH = 0.5  # of the logarithm of a shift, with each step; e^500 is still a number
MIN_LAST_NOISE, MAX_LAST_NOISE = 1e-6, 0.999  # at which the last step may start
MAX_GUIDANCE_SCALE = 1000.0
MAX_BATCH = 4096  # of a step: cost tables hold every batch up to the largest
MIN_MS, MAX_MS = 1e-3, 1e7  # of a step or of what follows it: a microsecond to three hours
MAX_COUNT = 10**9  # of whatever is counted
MIN_MEASURED, MAX_MEASURED = 1e-9, 1e12  # a figure that is divided by, or whose logarithm is taken
