"""Which replica an order is offered to first, by what replicas lately told of themselves."""

from elit_serve.scheduler.routing.digest import Digest, Due, digest_of
from elit_serve.scheduler.routing.router import Candidate, Router

__all__ = ["Candidate", "Digest", "Due", "Router", "digest_of"]
