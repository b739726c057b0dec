"""From noise to samples: time grids, guidance, level schedules and the Euler solver.

Time runs as in the paper: X_t = (1 - t) X_0 + t X_1 with X_0 noise and X_1 data, so sampling goes from
t = 0 to t = 1. The velocity function is an argument; nothing here knows a network.
"""

from elit_serve.plans.grid import time_grid
from elit_serve.plans.guidance import Guidance, GuidanceMethod
from elit_serve.plans.plan import Branch, Plan
from elit_serve.sampling.euler import Velocity, euler_step, guided, sample
from elit_serve.sampling.noise import initial_noise
from elit_serve.sampling.shapes import expand_like

__all__ = [
    "Branch",
    "Guidance",
    "GuidanceMethod",
    "Plan",
    "Velocity",
    "euler_step",
    "expand_like",
    "guided",
    "initial_noise",
    "sample",
    "time_grid",
]
