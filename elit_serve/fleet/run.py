"""From settings to a listening server in front of replicas."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from elit_serve.catalogue import read_config, resolve_model
from elit_serve.errors import EngineStopped, InvalidInput
from elit_serve.fleet import processes
from elit_serve.fleet.cluster import Cluster
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
    run.check_model(settings)
    if settings.random_weights is None and settings.ray_address is None:
        read_config(resolve_model(settings.model))  # what replicas of this machine would find wrong with it, sooner
    with ExitStack() as stack:
        if settings.ingress > 1:
            listener = stack.enter_context(run.bind(settings.host, settings.port))
            if settings.port == 0 and settings.results is None:  # as where one process answers
                results = stack.enter_context(TemporaryDirectory(prefix="elit-serve-jobs-"))
                settings = settings.model_copy(update={"results": results})
            settings = settings.model_copy(update={"port": listener.getsockname()[1]})
            cluster = stack.enter_context(replicas(settings))
            processes.serve(settings, announce, listener=listener, cluster=cluster, replicas=name_of(settings))
        else:

            def load(settings: Settings) -> FleetModel:
                cluster = stack.enter_context(replicas(settings))
                is_own = settings.ray_address is None
                return stack.enter_context(
                    at_replicas(cluster.address, name_of(settings), is_own=is_own, keeps_account=True)
                )

            run.serve(settings, announce, guests=guests, load=load)


@contextmanager
def replicas(settings: Settings) -> Iterator[Cluster]:
    """Those that the settings ask for, for as long as the block runs; gives the Ray that has them."""
    tell_ray(is_of_one_machine=settings.ray_address is None)
    from elit_serve.fleet.ray_serve import application, cluster, deployed

    fewest, most = settings.replica_range
    with cluster(settings.ray_address, num_cpus=max(os.cpu_count() or 1, most)) as here:
        wanted = application(run.load_and_measure, of_replica(settings), fewest=fewest, most=most)
        with deployed(here, name_of(settings), wanted):
            yield here


@contextmanager
def at_replicas(ray_address: str, name: str, *, is_own: bool, keeps_account: bool) -> Iterator[FleetModel]:
    """The model of replicas that run under this name in this Ray, which is this server's own or somebody else's."""
    from elit_serve.fleet.ray_serve import connected

    with connected(ray_address, name, is_own=is_own) as link:
        thread = LoopThread("elit-fleet")
        try:
            facts = thread.run(link.facts_of_all(), FACTS_S)
            if not facts:
                raise EngineStopped("no replica has said what it serves")
            yield FleetModel(link=link, thread=thread, facts=facts, keeps_account=keeps_account)
        finally:
            thread.close(link.close)


def name_of(settings: Settings) -> str:
    """Of the replicas behind this server; servers of one Ray differ in their ports."""
    return f"elit-serve-{settings.port}"


def of_replica(settings: Settings) -> Settings:
    """The settings as replicas are told them: without what only HTTP needs, keys and secrets above all, and with paths
    that are true in any folder."""
    left_out = {name: Settings.model_fields[name].default for name in OF_INGRESS}
    paths = {name: path for name in PATHS if (path := getattr(settings, name)) is not None and Path(path).exists()}
    return settings.model_copy(update=left_out | {name: str(Path(path).absolute()) for name, path in paths.items()})
