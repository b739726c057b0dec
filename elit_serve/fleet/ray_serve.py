"""Replicas as a deployment of Ray Serve, which starts them, watches over them, replaces those that die and scales them.

The only module that knows Ray. Ray Serve is asked for what it has: replicas, their health, handles that reach them, and
a word to those that are to go. It knows nothing of orders, so a replica finishes what it has by itself. Ray's own HTTP
proxies are not started: one process of them would answer for a whole machine, without this server's limits on
connections.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, nullcontext, suppress
from dataclasses import asdict, fields
from importlib import import_module
from typing import Any, TypeVar

from elit_serve.clock import MonotonicClock
from elit_serve.engine.forecast import Forecast
from elit_serve.engine.in_flight import InFlight
from elit_serve.errors import ElitError, EngineStopped, MissingPackage
from elit_serve.fleet.cluster import Cluster, ClusterLost, Post
from elit_serve.fleet.door import Address, Door
from elit_serve.fleet.line import Lines
from elit_serve.fleet.link import ReplicaLost
from elit_serve.fleet.messages import HowAreYou, Published, ReplicaFacts, Reply, SentOrder
from elit_serve.fleet.ray_variables import OF_ALL
from elit_serve.fleet.replica import Replica
from elit_serve.fleet.scaling import Scaler, Tally
from elit_serve.server.engines import Servable
from elit_serve.server.process import limit_arenas, settle_heap
from elit_serve.server.settings import Settings

try:
    import ray
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, RequestRouterConfig
    from ray.serve.exceptions import RayServeException
    from ray.serve.handle import DeploymentHandle
    from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
except ModuleNotFoundError:
    raise MissingPackage("ray[serve]", "ray") from None

logger = logging.getLogger(__name__)

T = TypeVar("T")
Load = Callable[[Settings], Servable]

NAMESPACE = "elit-serve"
ANY = ""  # in place of the name of a replica
MAX_ONGOING = 1_000_000  # calls of a replica: its engine says what it takes, Ray need not
HEALTH_PERIOD_S = 1.0
HEALTH_TIMEOUT_S = 10.0  # loading and warming up are not counted
TALLY_S = 1.0  # between what replicas have counted and what they have counted next
ANSWER_S = 5.0  # for what all replicas are asked; who takes longer is left out
PUBLISH_S = 1.0  # the same for how they are, which is asked all the time
LOOK_S = 1.0  # between looks for new replicas, which cost a message through Ray for each
GONE_S = 1.0  # without a process of Ray's that nobody starts again, before this one ends
HEAD_S = 50.0  # without a head that others may start again; after a minute Ray ends this process and cuts callers off
STOP_S = 5.0  # beyond what draining takes
LAST_WORD_S = 1.0  # of that: drained, and still asked how it is, so that what it counted last is heard


class NamedReplicaRouter(RequestRouter):
    """Sends a call to the replica whose name is its first argument, or to any other if that is gone. Which one that is
    was decided by the fleet, which knows what every order needs."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        wanted = pending_request.args[0] if pending_request is not None else ANY
        named = [each for each in candidate_replicas if each.replica_id.unique_id == wanted]
        return [named or candidate_replicas]


class FleetPolicy:
    """How many replicas there should be, asked by Ray Serve's controller in a process of its own."""

    def __init__(self, *, min_replicas: int, max_replicas: int) -> None:
        self._scaler = Scaler(min_replicas=min_replicas, max_replicas=max_replicas)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        counted: dict[str, dict[str, float]] = {}
        for name, by_replica in (context.raw_metrics or {}).items():
            for replica, series in by_replica.items():
                counted.setdefault(replica.unique_id, {})[name] = series[-1].value
        names = {field.name for field in fields(Tally)}  # Ray has some of its own
        tallies = {
            replica: Tally(**{name: values[name] for name in names})
            for replica, values in counted.items()
            if names <= values.keys()
        }
        ready, target = context.current_num_replicas, context.target_num_replicas
        return self._scaler.wanted(tallies, time.monotonic(), ready=ready, target=target), {}


class DeployedReplica:
    """A `Replica` as Ray Serve runs it: its methods, each with the name that the router goes by first.

    load: gives the model, in the replica's process. What it raises is told by `facts` rather than tried again.
    """

    def __init__(self, load: Load, settings: Settings) -> None:
        _listen_on_this_machine_only()
        limit_arenas()
        self._settings = settings
        self._failure: ElitError | None = None
        name = serve.get_replica_context().replica_id.unique_id
        try:
            self._replica = Replica(name, load(settings), settings, MonotonicClock())
            self._door = Door(self._replica, ray.util.get_node_ip_address())
            self._replica.start()
        except ElitError as error:
            self._failure = error
        settle_heap()

    async def facts(self, _: str = ANY) -> ReplicaFacts | ElitError:
        return self._failure or await self._replica.facts()

    async def address(self, _: str = ANY) -> Address:
        try:
            return await self._door.address()
        except OSError:
            logger.exception("no door can be opened, so no order can reach this replica")
            raise

    async def hurry(self, _: str, order_id: str) -> bool:
        return await self._replica.hurry(order_id)

    async def forecast(self, _: str, sent: SentOrder) -> Forecast | ElitError:
        return await self._replica.forecast(sent)

    async def in_flight(self, _: str, max_pictures: int) -> InFlight:
        return await self._replica.in_flight(max_pictures)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Ray Serve where the number of replicas follows the load."""
        return asdict(Tally() if self._failure else self._replica.tally)

    def check_health(self) -> None:
        """Asked by Ray Serve, which replaces a replica that raises here."""
        if self._failure is None:
            self._replica.check()

    async def __del__(self) -> None:
        """Called by Ray Serve when it is to go: it finishes what it has."""
        if self._failure is None:
            await asyncio.to_thread(self._replica.drain, self._settings.drain_seconds)
            await asyncio.sleep(LAST_WORD_S)
            await self._door.close()


class RayLink:
    """A `Link` by the doors of replicas, and for what is asked seldom by a handle of Ray Serve's, which belongs to the
    event loop that it is first used on."""

    def __init__(self, handle: DeploymentHandle[Any], cluster: Cluster) -> None:
        self._handle = handle
        self._cluster = cluster
        self._lines = Lines()
        self._looked_s = -LOOK_S  # so long ago on the loop's clock

    async def make(self, replica: str, sent: SentOrder) -> AsyncIterator[Reply]:
        async with aclosing(self._lines.to(replica).make(sent)) as replies:  # type: ignore[type-var]
            async for reply in replies:
                yield reply

    async def hurry(self, replica: str, order_id: str) -> bool:
        return bool(await self._ask("hurry", replica, order_id))

    async def forecast(self, replica: str, sent: SentOrder) -> Forecast | ElitError:
        found: Forecast | ElitError = await self._ask("forecast", replica, sent)
        return found

    async def facts(self, replica: str) -> ReplicaFacts:
        facts: ReplicaFacts | ElitError = await self._ask("facts", replica)
        if isinstance(facts, ElitError):
            raise facts
        return facts

    async def facts_of_all(self) -> list[ReplicaFacts]:
        told: list[ReplicaFacts | ElitError] = await self._ask_all("facts")
        for facts in told:
            if isinstance(facts, ElitError):
                raise facts
        return [facts for facts in told if isinstance(facts, ReplicaFacts)]

    async def publish(self, *, keeps_account: bool) -> list[Published]:
        if not self._lines.open:
            await self._look_around()
        asked = HowAreYou(keeps_account=keeps_account)
        waits = [asyncio.wait_for(line.published(asked), PUBLISH_S) for line in self._lines.open]
        looked, *told = await asyncio.gather(self._look_around(), *waits, return_exceptions=True)
        published = [each for each in told if isinstance(each, Published)]
        if published and isinstance(looked, RayError):
            logger.warning("Ray could not be asked for new replicas: %r", looked)  # those that are known need no Ray
        elif isinstance(looked, BaseException):
            raise looked
        return published

    async def _look_around(self) -> None:
        """For replicas that are new, now and then, and again at once where Ray has failed or knows none that runs."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._looked_s + LOOK_S:
            return
        await asyncio.to_thread(self._cluster.check)
        try:
            addresses = await self._ask_all("address", within_s=PUBLISH_S)
        except RayServeException:
            return
        await self._lines.connect_all(addresses)
        self._looked_s = now_s

    async def in_flight(self, max_pictures: int) -> list[InFlight]:
        try:
            return await self._ask_all("in_flight", max_pictures)
        except (RayError, RayServeException):
            return []  # no replica runs

    async def close(self) -> None:
        self._lines.close()
        await self._handle.shutdown_async()

    async def _ask(self, method: str, replica: str, *told: object) -> Any:
        try:
            return await self._handle.options(method_name=method).remote(replica, *told)
        except (RayError, RayServeException) as error:
            raise ReplicaLost(replica) from error

    async def _ask_all(self, method: str, *told: object, within_s: float = ANSWER_S) -> list[Any]:
        """Each has its own time: Ray's way to all results fails for all of them where one replica hangs."""
        answers: Any = self._handle.broadcast(method, ANY, *told)
        replicas = await answers._fetch_replica_results_async()
        waits = [asyncio.wait_for(each.get_async(), within_s) for each in replicas]
        found = await asyncio.gather(*waits, return_exceptions=True)
        return [answer for answer in found if isinstance(answer, ElitError) or not isinstance(answer, BaseException)]


@contextmanager
def cluster(address: str | None, *, num_cpus: int) -> Iterator[Cluster]:
    """Ray, which is started on this machine for as long as the block runs, or runs at `address` already.

    num_cpus: that a Ray of this machine says it has, whatever there is. Raises `EngineStopped`.
    """
    own: dict[str, Any] = {"num_cpus": num_cpus, "include_dashboard": False}
    with _in_ray(address or "local", **({} if address else own)):
        serve.start(proxy_location="Disabled")
        yield _cluster_here(is_own=address is None)


def _cluster_here(*, is_own: bool) -> Cluster:
    """The one that this process is in. is_own: whether it ends with this server, so that nobody mends it."""
    here = ray.get_runtime_context()
    node = next(node for node in ray.nodes() if node["NodeID"] == here.get_node_id())
    host, port = node["NodeManagerAddress"], node["NodeManagerPort"]
    raylet = Post(name="the raylet of this machine", host=host, port=port, patience_s=GONE_S)
    host, _, port = here.gcs_address.rpartition(":")
    head = Post(name="its head", host=host.strip("[]"), port=int(port), patience_s=GONE_S if is_own else HEAD_S)
    return Cluster(here.gcs_address, [raylet, head])


@contextmanager
def _in_ray(address: str, **options: Any) -> Iterator[None]:
    """This process is one of a Ray's. Raises `EngineStopped`."""
    quiet: dict[str, Any] = {"configure_logging": False, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address, namespace=NAMESPACE, **quiet, **options)
    except Exception as error:  # a plain one where starting took too long
        raise EngineStopped(f"Ray is not there: {error}") from None
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def deployed(cluster: Cluster, name: str, wanted: Any) -> Iterator[None]:
    """An application under this name runs as long as the block does. Raises `EngineStopped`."""
    try:
        with cluster.watched():
            serve.run(wanted, name=name, route_prefix=None)
    except (RayError, RayServeException, RuntimeError) as error:
        raise EngineStopped(f"the replicas did not start: {error}") from None
    try:
        yield
    finally:
        with suppress(ClusterLost), cluster.watched():  # if it is lost, so is the application
            serve.delete(name)


@contextmanager
def connected(address: str, name: str, *, is_own: bool) -> Iterator[RayLink]:
    """A way to the replicas of this name, from this process, which may be in their Ray already."""
    with nullcontext() if ray.is_initialized() else _in_ray(address):
        yield RayLink(serve.get_app_handle(name), _cluster_here(is_own=is_own))


def application(load: Load, settings: Settings, *, fewest: int, most: int) -> Any:
    """What Ray Serve runs. A replica has a GPU to itself where the cluster has any; where the settings ask for GPUs, it
    waits for one: machines that have them may still be on their way."""
    is_on_cpu = settings.device == "cpu" or settings.simulate is not None
    has_gpus = settings.device == "cuda" or ray.cluster_resources().get("GPU", 0) >= 1
    num_gpus = int(has_gpus and not is_on_cpu)
    router: dict[str, Any] = {"request_router_class": NamedReplicaRouter}
    scaled: dict[str, Any] = {"num_replicas": fewest}
    if most > fewest:
        policy = AutoscalingPolicy(
            policy_function="elit_serve.fleet.ray_serve:FleetPolicy",
            policy_kwargs={"min_replicas": fewest, "max_replicas": most},
        )
        config = AutoscalingConfig(
            min_replicas=fewest,
            max_replicas=most,
            policy=policy,
            metrics_interval_s=TALLY_S,
            look_back_period_s=10 * TALLY_S,
            upscale_delay_s=0.0,  # the policy itself says for how long
            downscale_delay_s=0.0,
        )
        scaled = {"autoscaling_config": config}
    deployment: Any = serve.deployment(DeployedReplica)
    return deployment.options(
        name="engine",
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options={"num_cpus": 1, "num_gpus": num_gpus, "runtime_env": {"env_vars": dict(OF_ALL)}},
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=settings.drain_seconds + STOP_S,
        request_router_config=RequestRouterConfig(**router),
        logging_config={"enable_access_log": False},
        **scaled,
    ).bind(load, settings)


def _listen_on_this_machine_only() -> None:
    """Ray Serve has every replica listen on all addresses for calls that are not made here. Where Ray itself keeps to
    this machine, so does that."""
    replica: Any = import_module("ray.serve._private.replica")
    if ray.util.get_node_ip_address() != "127.0.0.1":
        return
    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add_port(server, address.replace("[::]", "127.0.0.1"))
