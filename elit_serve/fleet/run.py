"""From settings to a listening server in front of replicas."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from elit_serve.errors import EngineStopped, InvalidInput
from elit_serve.fleet.loop_thread import LoopThread
from elit_serve.fleet.model import FleetModel
from elit_serve.fleet.ray_variables import tell_ray
from elit_serve.server import run
from elit_serve.server.guest import Guest
from elit_serve.server.settings import Settings

FACTS_S = 60.0
PATHS = ("model", "autoencoder", "preview_autoencoder", "simulate")
OF_INGRESS = ("api_key", "keys_file", "database", "results", "webhook_secret_file")  # of no concern to replicas


def serve(settings: Settings, announce: Callable[[str], None], *, guests: Sequence[Guest] = ()) -> None:
    """As `server.run.serve`, in front of as many replicas as the settings say, which end with it."""
    if settings.device not in (None, "cpu", "cuda"):
        raise InvalidInput("device", settings.device, "cpu or cuda with --replicas, each of which has a GPU of its own")
    with ExitStack() as stack:

        def load(settings: Settings) -> FleetModel:
            return stack.enter_context(replicas(settings))

        run.serve(settings, announce, guests=guests, load=load)


@contextmanager
def replicas(settings: Settings) -> Iterator[FleetModel]:
    """Those that the settings ask for, for as long as the block runs, as the model that they have."""
    tell_ray(is_of_one_machine=settings.ray_address is None)
    from elit_serve.fleet.ray_serve import RayLink, application, cluster, deployed

    fewest, most = settings.replica_range
    name = f"elit-serve-{settings.port}"
    with ExitStack() as stack:
        stack.enter_context(cluster(settings.ray_address, num_cpus=max(os.cpu_count() or 1, most)))
        wanted = application(run.load_and_measure, of_replica(settings), fewest=fewest, most=most)
        link = RayLink(stack.enter_context(deployed(name, wanted)))
        thread = LoopThread("elit-fleet")
        stack.callback(thread.close)
        facts = thread.run(link.facts_of_all(), FACTS_S)
        if not facts:
            raise EngineStopped("no replica has said what it serves")
        yield FleetModel(link=link, thread=thread, facts=facts)


def of_replica(settings: Settings) -> Settings:
    """The settings as replicas are told them: without what only HTTP needs, keys and secrets above all, and with paths
    that are true in any folder."""
    left_out = {name: Settings.model_fields[name].default for name in OF_INGRESS}
    paths = {name: path for name in PATHS if (path := getattr(settings, name)) is not None and Path(path).exists()}
    return settings.model_copy(update=left_out | {name: str(Path(path).absolute()) for name, path in paths.items()})
