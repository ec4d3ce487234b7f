"""How many HTTP connections there may be, and how long a client may take nothing of an answer."""

import asyncio
import contextlib
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, cast

MOST_CONNECTIONS = 4096
# What database, broker, files and threads need, and connections that begin (`acceptor`) or are to
# be refused; without it servers could not be reached again.
_OTHER_DESCRIPTORS = 128
_MOST_DESCRIPTORS = 65536

# A client that asks nothing is refused after so long all the same; and of those who are to be
# refused no more than this wait to be told so.
_REFUSAL_SECONDS = 1.0
_MOST_REFUSALS = 32

# What goes out but is not acknowledged for so long goes to nobody.
_UNACKNOWLEDGED_SECONDS = 60
# What a reader must take in the time that it has; a modem does.
_LEAST_BYTES = 32 * 1024


def raise_descriptor_limit() -> None:
    """Let this process, and those that it starts, have as many open files as it may have."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # macOS has a lower limit of its own, and refuses more.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """How many connections leave enough descriptors for everything else."""
    if sys.platform == "win32":
        return MOST_CONNECTIONS
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return min(MOST_CONNECTIONS, max(soft - _OTHER_DESCRIPTORS, soft // 2))


class Connection(Protocol):
    """What can be closed to make room."""

    @property
    def is_busy(self) -> bool:
        """Whether a request has come there and is not answered yet."""

    def cut(self) -> None:
        """Close it at once."""


class Connections:
    """The connections there are: at most so many, the idle ones in the order to close them in."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Connection] = set()
        # Some of them may be busy by now: it costs less to see that when room is needed.
        self._idle: OrderedDict[Connection, None] = OrderedDict()
        self._refused: set[asyncio.Transport] = set()

    def admits(self, connection: Connection) -> bool:
        """Whether a new connection may stay; the one that was idle longest makes room for it."""
        if len(self._open) >= self._most:
            oldest = self._oldest_idle()
            if oldest is None:
                return False
            self._open.discard(oldest)
            oldest.cut()
        self._open.add(connection)
        self._idle[connection] = None
        return True

    def idle(self, connection: Connection) -> None:
        """Nothing is in hand there, as of now."""
        if connection in self._open:
            self._idle[connection] = None
            self._idle.move_to_end(connection)

    def gone(self, connection: Connection) -> None:
        """It is closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def _oldest_idle(self) -> Connection | None:
        while self._idle:
            oldest, _ = self._idle.popitem(last=False)
            # One that is busy comes back when it is idle again.
            if not oldest.is_busy:
                return oldest
        return None

    def refuse(self, transport: asyncio.Transport, answer: Callable[[], bytes]) -> None:
        """Close a connection that may not stay; its client is told why when it asks something."""
        if len(self._refused) >= _MOST_REFUSALS:
            transport.abort()
            return
        self._refused.add(transport)
        refusal = _Refusal(transport, answer, lambda: self._refused.discard(transport))
        transport.set_protocol(refusal)

    def close(self) -> None:
        """End those that wait to be refused; the others have owners of their own."""
        for transport in list(self._refused):
            transport.abort()


class _Refusal(asyncio.Protocol):
    """The rest of a connection that is one too many.

    It is closed after its request has come: closed before, most clients would tell of a broken
    connection, and not of the answer.
    """

    def __init__(
        self, transport: asyncio.Transport, answer: Callable[[], bytes], on_end: Callable[[], None]
    ) -> None:
        self._transport = transport
        self._answer = answer
        self._on_end = on_end
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_REFUSAL_SECONDS, self._refuse)

    def data_received(self, _: bytes) -> None:
        self._refuse()

    def connection_lost(self, _: BaseException | None) -> None:
        self._timer.cancel()
        self._on_end()

    def _refuse(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._answer())
            self._transport.close()


class Patience:
    """Watches whether a client reads what it is sent; one that takes next to nothing is cut off."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds
        self._watch()

    def end(self) -> None:
        """It has read enough."""
        self._timer.cancel()

    def _watch(self) -> None:
        self._unsent = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def _look(self) -> None:
        if self._unsent - self._transport.get_write_buffer_size() < _LEAST_BYTES:
            self._transport.abort()
        else:
            self._watch()


def give_up_on_the_deaf(transport: asyncio.BaseTransport) -> None:
    """Have the kernel end a connection whose client acknowledges nothing, or takes nothing.

    That holds for what was written before a connection is closed too, for which nobody waits here.
    """
    connected = cast("socket.socket | None", transport.get_extra_info("socket"))
    if connected is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        # It may be closed already.
        with contextlib.suppress(OSError):
            connected.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_SECONDS * 1000
            )
