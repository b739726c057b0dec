"""One of several processes that answer HTTP in front of the same replicas, as `processes.py` starts them."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from elit_serve.errors import ElitError
from elit_serve.fleet.processes import Place
from elit_serve.fleet.ray_variables import tell_ray
from elit_serve.fleet.run import at_replicas
from elit_serve.guests import GUESTS
from elit_serve.server import run
from elit_serve.server.settings import Settings


def main() -> None:
    """What it is to be is told on its standard input; it says on its standard output when it listens."""
    os.setpgid(0, 0)  # a terminal's Ctrl-C is told to the process that has started all, which tells them
    place = Place(**json.load(sys.stdin))
    settings = Settings.model_validate(place.settings)
    is_own = settings.ray_address is None
    tell_ray(is_of_one_machine=is_own)
    with at_replicas(place.ray_address, place.replicas, is_own=is_own, keeps_account=place.index == 0) as model:
        run.serve(
            settings,
            lambda line: print(line, flush=True),  # noqa: T201 (to the process that has started it)
            guests=GUESTS,
            load=lambda _: model,
            listener=socket.socket(fileno=place.listener),
            meeting=Path(place.folder),
            ingress=str(place.index),
        )


if __name__ == "__main__":
    try:
        main()
    except ElitError as error:
        sys.exit(f"error: {error}")
