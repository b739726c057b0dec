"""Who routes between replicas: the server's router, and the usual ones that know nothing of promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

from elit_serve.bench.simulate.fleet import Replica, Routing
from elit_serve.scheduler.costs import CostTable
from elit_serve.scheduler.requests import Demand
from elit_serve.scheduler.routing import Digest, Router, digest_of

DEVICE = "simulated"


class PromiseRouter:
    """The server's router. All it knows of a replica is what that tells, with its answers too, and what was asked of it
    since.

    ingresses: so many processes route, in turn, each of which knows only what it asked itself.
    """

    def __init__(self, table: CostTable, seed: int, ingresses: int = 1) -> None:
        self._routers = [Router({DEVICE: table}, seed=seed + place) for place in range(ingresses)]
        self._num_digests = 0

    def order(self, pictures: Sequence[Demand], replicas: Sequence[Replica], now_s: float) -> Sequence[Replica]:
        self._routers.append(self._routers.pop(0))
        by_name = {replica.name: replica for replica in replicas}
        return [by_name[candidate.replica] for candidate in self._routers[0].rank(pictures, now_s)]

    def asked(self, replica: Replica, pictures: Sequence[Demand], now_s: float, *, is_taken: bool) -> None:
        ticket = self._routers[0].asked(replica.name, pictures, now_s)
        self._routers[0].answered(replica.name, ticket, is_taken=is_taken)
        self._routers[0].heard(replica.name, self._digest(replica, now_s), now_s)

    def publish(self, replica: Replica, now_s: float) -> None:
        digest = self._digest(replica, now_s)
        for router in self._routers:
            router.heard(replica.name, digest, now_s)

    def lost(self, replica: Replica) -> None:
        for router in self._routers:
            router.lost(replica.name)

    def _digest(self, replica: Replica, now_s: float) -> Digest:
        self._num_digests += 1
        return digest_of(replica.scheduler, now_s, number=self._num_digests, device=DEVICE)


class InformedRouter(PromiseRouter):
    """The same with no delay: every replica tells of itself before every order. What it does better is what is lost by
    digests that are old."""

    def order(self, pictures: Sequence[Demand], replicas: Sequence[Replica], now_s: float) -> Sequence[Replica]:
        for replica in replicas:
            self.publish(replica, now_s)
        return super().order(pictures, replicas, now_s)


class Blind:
    """A router that listens to nobody."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(f"routing {seed}")

    def asked(self, replica: Replica, pictures: Sequence[Demand], now_s: float, *, is_taken: bool) -> None:
        pass

    def publish(self, replica: Replica, now_s: float) -> None:
        pass

    def lost(self, replica: Replica) -> None:
        pass

    def _shuffled(self, replicas: Sequence[Replica]) -> list[Replica]:
        return self._rng.sample(replicas, len(replicas))


class Randomly(Blind):
    """In random order."""

    def order(self, pictures: Sequence[Demand], replicas: Sequence[Replica], now_s: float) -> Sequence[Replica]:  # noqa: ARG002
        return self._shuffled(replicas)


class RoundRobin(Blind):
    """The one after whom was asked first last time, and so on around."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._next = 0

    def order(self, pictures: Sequence[Demand], replicas: Sequence[Replica], now_s: float) -> Sequence[Replica]:  # noqa: ARG002
        first = self._next % len(replicas)
        self._next = first + 1
        return [*replicas[first:], *replicas[:first]]


class LeastQueue(Blind):
    """Who has the fewest pictures, first; among equals at random. It knows their number at every moment."""

    def order(self, pictures: Sequence[Demand], replicas: Sequence[Replica], now_s: float) -> Sequence[Replica]:  # noqa: ARG002
        return sorted(self._shuffled(replicas), key=lambda replica: replica.num_here)


class TwoChoices(Blind):
    """Of two at random the one with fewer pictures, then the other, then the rest at random."""

    def order(self, pictures: Sequence[Demand], replicas: Sequence[Replica], now_s: float) -> Sequence[Replica]:  # noqa: ARG002
        shuffled = self._shuffled(replicas)
        return [*sorted(shuffled[:2], key=lambda replica: replica.num_here), *shuffled[2:]]


ROUTERS: Mapping[str, Callable[[CostTable, int, int], Routing]] = {
    "elastic": PromiseRouter,
    "informed": InformedRouter,
    "random": lambda _table, seed, _ingresses: Randomly(seed),
    "round-robin": lambda _table, seed, _ingresses: RoundRobin(seed),
    "least-queue": lambda _table, seed, _ingresses: LeastQueue(seed),
    "two-choices": lambda _table, seed, _ingresses: TwoChoices(seed),
}
