"""A connected socket on the event loop, in the clear or by TLS.

What is read is handed on; what is written in one turn of the loop leaves together.
"""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable

# What a turn of the loop reads at the most.
READ_MOST = 1024 * 1024
WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_READ_BYTES = 256 * 1024
_TLS_RECORD = 16 * 1024
# When the broker takes what we write too slowly, we read no more until it has caught up (bytes).
_UNSENT_HIGH = 4 * 1024 * 1024
_UNSENT_LOW = 1024 * 1024


class Stream:
    """Reads and writes one socket.

    Args:
        on_data: called with what was read, and whether there was no more.
        on_lost: called when the socket is broken, or at its end.
        before_write: called before what is to leave is joined.
        may_read: whether more may be read now.
    """

    def __init__(
        self,
        *,
        on_data: Callable[[bytes, bool], None],
        on_lost: Callable[[str], None],
        before_write: Callable[[], None],
        may_read: Callable[[], bool],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_data = on_data
        self._on_lost = on_lost
        self._before_write = before_write
        self._may_read = may_read
        # The socket comes from the thread in which paho connects, which may outlive the attempt.
        self._attaching = threading.Lock()
        self._closed = False
        self._socket: socket.socket | None = None
        self._unsent = bytearray()
        self._fresh: list[bytes] = []
        self._writing = self._flush_due = False
        self.is_reading = False
        self.last_heard = self.last_sent = self._loop.time()

    def attach(self, connected: socket.socket) -> None:
        """Take a connected socket, from any thread.

        Raises ConnectionAbortedError, and closes the socket, if the stream was closed meanwhile.
        """
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._attaching:
            if not self._closed:
                self._socket = connected
                return
        connected.close()
        raise ConnectionAbortedError("the attempt was given up")

    def close(self) -> bool:
        """Close the socket; whether there was one."""
        with self._attaching:
            self._closed = True
            lost, self._socket = self._socket, None
        if lost is None:
            return False
        with contextlib.suppress(ValueError):
            self._loop.remove_reader(lost.fileno())
            self._loop.remove_writer(lost.fileno())
        lost.close()
        return True

    def put(self, packet: bytes) -> None:
        """Have a packet leave with what else leaves in this turn of the loop."""
        self._fresh.append(packet)

    def write(self, packet: bytes) -> None:
        """Have a packet leave at the end of this turn of the loop."""
        self._fresh.append(packet)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Write at the end of this turn of the loop."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write now, as much as the socket takes; a broken connection is told to `on_lost`."""
        self._flush_due = False
        if self._socket is not None:
            self._before_write()
        if self._fresh:
            self._unsent += b"".join(self._fresh)
            self._fresh.clear()
        if self._unsent and self._socket is not None:
            try:
                sent = self._socket.send(self._unsent)
            except WOULD_BLOCK:
                sent = 0
            except OSError as error:
                self._on_lost(str(error))
                return
            if sent:
                del self._unsent[:sent]
                self.last_sent = self._loop.time()
        self.watch()

    def watch(self) -> None:
        """Ask the loop for reading, unless too much is unsent, and for writing, if anything is."""
        if self._socket is None:
            return
        descriptor = self._socket.fileno()
        if bool(self._unsent) != self._writing:
            self._writing = not self._writing
            if self._writing:
                self._loop.add_writer(descriptor, self.flush)
            else:
                self._loop.remove_writer(descriptor)
        limit = _UNSENT_HIGH if self.is_reading else _UNSENT_LOW
        wanted = len(self._unsent) < limit and self._may_read()
        if wanted != self.is_reading:
            self.is_reading = not self.is_reading
            if self.is_reading:
                self._loop.add_reader(descriptor, self._readable)
            else:
                self._loop.remove_reader(descriptor)

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = received(self._socket)
        except WOULD_BLOCK:
            return
        except OSError as error:
            self._on_lost(str(error))
            return
        if not data:
            self._on_lost("the broker closed the connection")
            return
        self.last_heard = self._loop.time()
        self._on_data(data, len(data) < READ_MOST)
        # The inbox may be full now.
        self.watch()


def received(connected: socket.socket) -> bytes:
    """What the socket holds, up to `READ_MOST`; nothing at the end of the stream.

    Raises OSError if the connection is broken, one of `WOULD_BLOCK` if there is nothing yet.
    """
    piece = data = connected.recv(_READ_BYTES)
    full = _TLS_RECORD if isinstance(connected, ssl.SSLSocket) else _READ_BYTES
    while len(piece) >= full and len(data) < READ_MOST:
        try:
            piece = connected.recv(_READ_BYTES)
        except WOULD_BLOCK:
            break
        data += piece
    return data
