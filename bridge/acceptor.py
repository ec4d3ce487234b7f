"""Accepts HTTP connections, many in one turn of the event loop.

libuv, and so uvloop, accepts one connection in a turn. While turns are long, as they are under
load, clients that open a connection for each request (the platform's own does) would wait for
seconds to be as much as refused.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

logger = logging.getLogger(__name__)

_BACKLOG = 1024
# So many connections may have been accepted and not yet have their protocol, which may refuse them,
# or close another for their sake: until then they take descriptors that nobody has counted.
_MOST_BEGINNING = 48
# How long we let connections wait when there is nothing left to accept them with (seconds).
_PAUSE = 0.5
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Listens, and gives each connection a protocol."""

    def __init__(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._listening: list[socket.socket] = []
        self._beginning: set[asyncio.Task[object]] = set()

    async def listen(self, host: str, port: int, *, reuse_port: bool) -> None:
        """Listen on every address that the host has.

        Raises:
            OSError: one can't be bound; then none is.
        """
        found = await self._loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
                self._listening.append(
                    socket.create_server(
                        address, family=family, backlog=_BACKLOG, reuse_port=reuse_port
                    )
                )
        except OSError:
            self.close()
            raise
        for listening in self._listening:
            listening.setblocking(False)
            self._loop.add_reader(listening, self._accept_some, listening)

    def close(self) -> None:
        """Listen no more; connections that were accepted go on."""
        for listening in self._listening:
            self._loop.remove_reader(listening)
            listening.close()
        self._listening.clear()

    def _accept_some(self, listening: socket.socket) -> None:
        for _ in range(_MOST_BEGINNING - len(self._beginning)):
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._pause(listening, error)
                return
            self._begin(accepted)

    def _begin(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task: asyncio.Task[object] = self._loop.create_task(
            self._loop.connect_accepted_socket(self._protocol, accepted), name="http connection"
        )
        self._beginning.add(task)
        task.add_done_callback(self._begun)

    def _begun(self, task: "asyncio.Task[object]") -> None:
        self._beginning.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("a connection ended as it began: %s", task.exception())

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Try again later: what is missing now may be there when others have gone."""
        logger.warning("no connection can be accepted: %s", error.strerror)
        self._loop.remove_reader(listening)
        self._loop.call_later(_PAUSE, self._go_on, listening)

    def _go_on(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening, self._accept_some, listening)
