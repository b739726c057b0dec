"""A guest that several servers of this machine have in turn: one at a time, and the next when that one has ended.

Whoever is asked for something of the guest and does not have it sends the request on to the server that does (see
`middleware.forwarding`). Each of the servers listens on a socket of its own in a folder that all of them know; that of
the one which has the guest is there under the guest's name too. Only their own user can connect to it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from elit_serve.errors import InvalidInput, TakenElsewhere
from elit_serve.server.guest import OpenGuest

logger = logging.getLogger(__name__)

PERIOD_S = 0.5  # between attempts to have the guest of a server that may have ended


class SharedGuest:
    """An `OpenGuest` that is opened once no other server has it.

    open_guest: opens it, or raises `TakenElsewhere`. Everything else that it raises the first time is raised here.
    on_open: is given it, before it is started. name: of the guest. socket: of this server, in the folder of all.
    """

    def __init__(
        self, open_guest: Callable[[], OpenGuest], *, on_open: Callable[[OpenGuest], None], name: str, socket: Path
    ) -> None:
        self._open_guest = open_guest
        self._on_open = on_open
        self._socket = socket
        self.owner = socket.with_name(f"{name}.sock")  # of whichever server has it
        self._guest: OpenGuest | None = None
        self._is_owner = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._wait_for_turn, name="elit-guest", daemon=True)
        with contextlib.suppress(TakenElsewhere):
            self._open()

    @property
    def is_here(self) -> bool:
        """Whether this server has it, and requests are not to be sent on."""
        return self._is_owner.is_set()

    def start(self) -> None:
        if self._guest is None:
            self._thread.start()
        else:
            self._begin(self._guest)

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._guest is not None:
            self._guest.stop()

    def close(self) -> None:
        if self._guest is not None:
            self._guest.close()

    def _open(self) -> OpenGuest:
        self._guest = guest = self._open_guest()
        return guest

    def _begin(self, guest: OpenGuest) -> None:
        self._on_open(guest)
        guest.start()
        self._is_owner.set()
        beside = self._socket.with_suffix(".owner")
        beside.unlink(missing_ok=True)
        os.link(self._socket, beside)
        beside.replace(self.owner)  # in one step, whatever is there of a server that has ended

    def _wait_for_turn(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            try:
                self._begin(self._open())
            except TakenElsewhere:
                continue
            except Exception:
                logger.exception("the guest of a server that has ended could not be taken over; it is tried again")
                continue
            logger.warning("took over what another server had")
            return


@contextmanager
def listening(folder: Path) -> Iterator[tuple[socket.socket, Path]]:
    """A socket for other servers of this user, bound in this folder; its file goes when the block ends."""
    path = folder / f"{os.getpid()}-{os.urandom(4).hex()}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(str(path))
            path.chmod(0o600)
        except OSError as error:
            raise InvalidInput("results", str(folder), f"a folder for sockets, of a short name ({error})") from None
        try:
            yield listener, path
        finally:
            path.unlink(missing_ok=True)
