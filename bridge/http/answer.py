"""A response, whole, with its head in one piece.

aiohttp's `web.Response` costs a third of a sensor query: it keeps headers in a multidict, and
prepares, starts and ends a stream for each.
"""

import asyncio
import time
from collections.abc import Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol, cast

from aiohttp import hdrs, web

JSON_UTF8 = "application/json; charset=utf-8"

# A client that has more than this unread is watched.
_WATCHED_BYTES = 4 * 1024
# One that has more than this unread has to read before its next request is served.
_UNSENT_BYTES = 64 * 1024
# How long a response counts as under way whose client does not read it.
_READ_SECONDS = 0.2
_CLOSE = "Connection: close\r\n"
_BODILESS = frozenset({204, 304})


class Connection(Protocol):
    """What an answer needs of the connection that it goes out on."""

    is_surplus: bool

    def watch_reader(self, written: int, own: int) -> None:
        """Bound what the client leaves unread of `written` bytes, `own` of them for it alone."""

    def ignore_rest(self) -> None:
        """Parse nothing more of what the client sends: this was the last answer."""


class Answer(web.StreamResponse):
    """A whole response, written together with its head.

    The parts of a body in parts are in memory anyway: it costs none while its client does not
    read it.
    """

    def __init__(
        self,
        status: int,
        content_type: str,
        body: bytes | tuple[bytes, ...],
        headers: Sequence[tuple[str, str]] = (),
        *,
        keep_alive: bool = True,
    ) -> None:
        # Without super().__init__(), which makes a multidict of headers.
        self._status = status
        self._keep_alive = keep_alive
        self._parts = body if isinstance(body, tuple) else (body,)
        self._is_shared = isinstance(body, tuple)
        self._length = sum(map(len, self._parts))
        self._lines = _first_lines(status, content_type, tuple(headers))
        self._written = False
        # Whether its client has read all but little of it.
        self._is_read = False

    def add_headers(self, headers: Sequence[tuple[str, str]]) -> None:
        """Add headers; without effect once it was written."""
        self._lines += "".join(f"{name}: {value}\r\n" for name, value in headers)

    @property
    def keep_alive(self) -> bool | None:
        return self._keep_alive

    async def send(self, request: web.BaseRequest) -> None:
        """Write it, and wait a moment at most until its client has read it.

        A client that has gone is left to `prepare`, whose caller expects it.
        """
        if request.transport is not None and self._write(request):
            # Not cancelled when the time is over: aiohttp waits by a future that all its waits for
            # this client share.
            draining = asyncio.ensure_future(request.writer.drain())
            draining.add_done_callback(_look_at)
            await asyncio.wait((draining,), timeout=_READ_SECONDS)

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write it unless it was sent, and wait until its client has read it.

        Raises ConnectionResetError if the client has gone.
        """
        if not self._is_read and self._write(request):
            await request.writer.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: it was written whole."""
        del data

    def encoded(self) -> bytes:
        """All of it, as it goes to a client of HTTP/1.1."""
        return self._head("" if self._keep_alive else _CLOSE) + b"".join(self._parts)

    def _write(self, request: web.BaseRequest) -> bool:
        """Write it once; whether its client still has much to read."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        if not self._written:
            self._written = True
            self._write_to(transport, request)
        self._is_read = transport.get_write_buffer_size() <= _UNSENT_BYTES
        return not self._is_read

    def _write_to(self, transport: asyncio.Transport, request: web.BaseRequest) -> None:
        head = self._head(self._persistence(request))
        parts, length = self._parts, self._length
        # aiohttp keeps a connection's last answer until its next request.
        self._parts = ()
        if request.method == hdrs.METH_HEAD:
            parts, length = (), 0
        if length < _WATCHED_BYTES:
            transport.write(b"".join((head, *parts)))
        else:
            transport.writelines((head, *parts))
        if transport.get_write_buffer_size() > _WATCHED_BYTES:
            written = len(head) + length
            own = len(head) if self._is_shared else written
            cast(Connection, request.protocol).watch_reader(written, own)

    def _head(self, persistence: str) -> bytes:
        length = f"Content-Length: {self._length}\r\n"
        if self._status in _BODILESS:
            length = ""
        return (
            f"{self._lines}{length}Date: {_date(int(time.time()))}\r\n{persistence}\r\n"
        ).encode("latin-1", "replace")

    def _persistence(self, request: web.BaseRequest) -> str:
        self._keep_alive = self._keep_alive and request.keep_alive and _may_go_on(request)
        if not self._keep_alive:
            cast(Connection, request.protocol).ignore_rest()
            return _CLOSE
        return "" if request.version >= (1, 1) else "Connection: keep-alive\r\n"


def _may_go_on(request: web.BaseRequest) -> bool:
    """Whether what follows on the connection is the next request, and may be served."""
    return (
        request.content.is_eof()
        and hdrs.UPGRADE not in request.headers
        and not cast(Connection, request.protocol).is_surplus
    )


def _look_at(draining: "asyncio.Future[None]") -> None:
    # Nobody may await its failure any more, which asyncio would log.
    if not draining.cancelled():
        draining.exception()


@lru_cache(maxsize=64)
def _first_lines(status: int, content_type: str, headers: tuple[tuple[str, str], ...]) -> str:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Type: {content_type}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "".join(f"{line}\r\n" for line in lines)


@lru_cache(maxsize=2)
def _date(unix_seconds: int) -> str:
    return formatdate(unix_seconds, usegmt=True)
