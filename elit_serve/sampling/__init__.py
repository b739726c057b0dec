"""From noise to samples: initial noise, guidance and the Euler solver.

Time runs as in the paper: X_t = (1 - t) X_0 + t X_1 with X_0 noise and X_1 data, so sampling goes from
t = 0 to t = 1. The velocity function is an argument; nothing here knows a network.
"""

from elit_serve.sampling.euler import Velocity, guided, guided_step
from elit_serve.sampling.noise import initial_noise
from elit_serve.sampling.shapes import expand_like

__all__ = ["Velocity", "expand_like", "guided", "guided_step", "initial_noise"]
