"""What Ray reads from the environment when it is imported, and therefore must be told before."""

from __future__ import annotations

import os

# A call of a replica costs 1.3 ms of CPU at either end with these, and 4 without them (2026-12-01).
OF_ALL = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
OF_ONE_MACHINE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # Ray listens on 127.0.0.1 then, and else on every address


def tell_ray(*, is_of_one_machine: bool) -> None:
    """Before Ray is imported. What the user has set stays."""
    for name, value in (OF_ALL | (OF_ONE_MACHINE if is_of_one_machine else {})).items():
        os.environ.setdefault(name, value)
