"""What a route asks of its callers, and which of the server's bounds it counts towards: declared where the route is.

    @router.post("/v1/generate")
    @access(needs="generate", work="pictures")
    async def generate(...): ...

Whatever stands before the routes (keys, limits, turns, the shape of errors, the OpenAPI document) looks it up in an
`AccessTable` by the method and the path of a request, before its body is read. A route that declares nothing is for
administrators.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from starlette.routing import BaseRoute, Mount, Route

Scope = Literal["generate", "metrics", "admin"]
Need = Literal["nothing", "any key"] | Scope
WorkKind = Literal["pictures", "plans", "jobs", "health", "metrics", "others"]
ErrorShape = Literal["problem", "openai"]

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, kw_only=True)
class Access:
    """needs: nothing, any key, or a key with this scope. work: what a request is for: `pictures` are the engine's,
    `health` is always answered, and the others take turns, each kind for itself. errors: their shape; RFC 9457's, or
    OpenAI's. has_scripts: whether its page brings scripts of its own, as the documentation does. is_free: whether it
    counts towards no key's rate, as what spares the server work.
    """

    needs: Need
    work: WorkKind = "others"
    errors: ErrorShape = "problem"
    has_scripts: bool = False
    is_free: bool = False


UNDECLARED = Access(needs="admin")


def access(
    *, needs: Need, work: WorkKind = "others", errors: ErrorShape = "problem", is_free: bool = False
) -> Callable[[F], F]:
    """Declares it for the route that is below its router's own decorator. See `Access`."""

    def declare(endpoint: F) -> F:
        endpoint.__dict__["access"] = Access(needs=needs, work=work, errors=errors, is_free=is_free)
        return endpoint

    return declare


def declare(routes: Iterable[BaseRoute], declared: Access) -> None:
    """The same for routes that somebody else has written."""
    for route in routes:
        route.__dict__["access"] = declared


def access_of(route: BaseRoute) -> Access | None:
    """What a route declares, if it does."""
    endpoint = getattr(route, "endpoint", None)
    found: Access | None = getattr(route, "access", None) or getattr(endpoint, "access", None)
    return found


class AccessTable:
    """Finds what the route of a request declares. unknown: what holds for a path that no route has."""

    def __init__(self, routes: Iterable[BaseRoute], unknown: Callable[[str], Access] = lambda _: UNDECLARED) -> None:
        self._unknown = unknown
        self._exact: dict[str, list[tuple[frozenset[str], Access]]] = {}
        self._patterns: list[tuple[re.Pattern[str], frozenset[str], Access]] = []
        for route in routes:
            declared = access_of(route) or UNDECLARED
            if isinstance(route, Mount):
                self._patterns.append((route.path_regex, frozenset({"GET"}), declared))
            elif isinstance(route, Route) and "{" in route.path:
                self._patterns.append((route.path_regex, frozenset(route.methods or ()), declared))
            elif isinstance(route, Route):
                self._exact.setdefault(route.path, []).append((frozenset(route.methods or ()), declared))

    def of(self, method: str, path: str) -> Access:
        """HEAD is GET. A method that a path does not have is refused as any other of its path: that is none of the
        engine's work."""
        method = "GET" if method == "HEAD" else method
        found = self._exact.get(path) or [
            (methods, declared) for pattern, methods, declared in self._patterns if pattern.match(path)
        ]
        if not found:
            return self._unknown(path)
        for methods, declared in found:
            if method in methods:
                return declared
        declared = found[0][1]
        return replace(declared, work="others") if declared.work == "pictures" else declared
