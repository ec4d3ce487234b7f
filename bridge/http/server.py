"""The shim over aiohttp: all that reaches below `aiohttp.web`, and no more than this page.

- aiohttp's C parser rejects raw UTF-8 in a request line, which curl sends and other servers accept:
  the request line is percent-encoded before the parser sees it.
- What can't be parsed is answered with the contract's JSON, without a traceback per bad client, and
  a body that breaks off its encoding fails at once (aiohttp leaves its reader waiting).
- A response that leaves before its request's body was read closes the connection. Else what follows
  on it, which behind a pooling proxy are other people's requests, would be read as that body.
- A body of many small chunks is parsed a few at a time, and pipelined requests only while few wait.
- A request's head is bounded as a whole, and so is what is read from a connection at a time.
- Connections are capped, and so is what clients have not read of their responses.

`tests/http/test_server.py` guards what is relied on here.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from itertools import chain
from typing import Any, cast
from urllib.parse import quote_from_bytes

from aiohttp import StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import _ErrInfo

from ..errors import Text
from .answer import Answer
from .descriptors import LISTENING_SOCKETS, MOST_CONNECTIONS, SURPLUS_SHARE
from .reads import READ_BYTES, BoundedReads, read_buffer
from .unsent import UnsentReplies

# The answer to what failed outside a handler; None if the request could not be parsed.
OnError = Callable[[BaseException | None], Answer]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

NOT_HTTP = Text("不是有效的 HTTP 请求", "this is no valid HTTP request")
# Of a request's head, in bytes: aiohttp alone takes a megabyte.
_LONGEST_HEAD = 16 * 1024
# Each header, and each parameter of a query, takes some hundred bytes, however short.
_MOST_HEADERS = 64
_MOST_PARAMETERS = 64
# A connection is not read from while so many of its requests wait; aiohttp lets 32 wait.
_MOST_WAITING = 2

# aiohttp stops parsing a body, and reading from its client, when more than twice so many bytes, or
# a sixteenth as many chunks, wait to be read.
_UNREAD_BYTES = 2048
# A connection is read from for so long after its last response: closed at once, it could be reset
# before the client has read the response.
_LINGERING_SECONDS = 1.0

_BACKLOG = 1024
# A connection above the cap may send one request head within so long.
_SURPLUS_SECONDS = 1.0
# The kernel ends a connection whose client acknowledges nothing for so long.
_UNACKNOWLEDGED_SECONDS = 60
_ASCII = bytes(range(128))
# What a client did to its own request.
CLIENT_FAULTS = (web.RequestPayloadError, HttpProcessingError, ConnectionError)


def is_surplus(request: web.BaseRequest) -> bool:
    """Whether the request came by a connection above the cap."""
    return isinstance(request.protocol, Protocol) and request.protocol.is_surplus


class Protocol(web.RequestHandler):
    """aiohttp's protocol of one connection, with the mends listed above."""

    __slots__ = ("_body", "_head_bytes", "_ignores", "_in_head", "_server", "is_surplus")

    def __init__(self, server: "Server", *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._server = server
        self._max_msg_queue_size, self._msg_queue_resume_size = _MOST_WAITING, _MOST_WAITING // 2
        # The body of the request that was parsed last.
        self._body: StreamReader | None = None
        # Whether only part of a request's head has arrived.
        self._in_head = False
        self._head_bytes = 0
        # Whether the last response was written.
        self._ignores = False
        self.is_surplus = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.is_surplus = self._server.opened(cast(asyncio.Transport, transport))
        if self.is_surplus:
            self._loop.call_later(_SURPLUS_SECONDS, self._close_unless_busy)
        _limit_unacknowledged(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.closed()
        super().connection_lost(exc)

    def watch_reader(self, written: int, own: int) -> None:
        if self.transport is not None:
            self._server.unsent.watch(self.transport, written, own)

    def ignore_rest(self) -> None:
        self._ignores = True

    async def start(self) -> None:
        try:
            await super().start()
        except Exception as error:
            # A head that parses but makes no request, such as one with an invalid host.
            if self.transport is not None:
                failed = None if isinstance(error, ValueError) else error
                self.transport.write(self._server.on_error(failed).encoded())
            self.force_close()

    def data_received(self, data: bytes) -> None:
        if self._ignores:
            return
        in_body = self._body is not None and not self._body.is_eof()
        begins = not (in_body or self._in_head or self._upgraded or self._buffer_paused)
        if begins and not data.isascii():
            line, newline, rest = data.partition(b"\n")
            data = quote_from_bytes(line, safe=_ASCII).encode() + newline + rest
        waiting = len(self._messages)
        super().data_received(data)
        if len(self._messages) > waiting:
            self._note_parsed(waiting, self._head_bytes + len(data))
        elif not in_body:
            self._head_bytes += len(data)
            if begins:
                # Blank lines may stand before a request (RFC 9112, section 2.2).
                self._in_head = b"\n" in data.lstrip(b"\r\n")
            if self._head_bytes > _LONGEST_HEAD:
                self._reject_head(waiting)

    def _note_parsed(self, first: int, received: int) -> None:
        """Note the messages that one read has completed, the `first` of which began before it.

        `received` has no more than `READ_BYTES` less than that one's head.
        """
        message, body = self._messages[-1]
        if isinstance(message, _ErrInfo):
            self._fail_body()
        self._body, self._in_head, self._head_bytes = body, False, 0
        if received > READ_BYTES:
            # Nor does more than one long request wait.
            self._max_msg_queue_size = 1
        if received > _LONGEST_HEAD - READ_BYTES:
            message, _ = self._messages[first]
            if not isinstance(message, _ErrInfo):
                fields = chain.from_iterable(message.raw_headers)
                if len(message.path) + sum(map(len, fields)) > _LONGEST_HEAD:
                    self._reject_head(first)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # Called for each chunk that is read. aiohttp would parse one more request each time, though
        # as many wait as may; it goes on by itself once fewer do.
        super().resume_reading(resume_parser and not self._buffer_paused)

    def _reject_head(self, place: int) -> None:
        """Answer it in its turn, after the `place` messages before it, and parse nothing more."""
        while len(self._messages) > place:
            self._messages.pop()
        error = HttpProcessingError(message="the head is too long")
        # With a body that never ends, so that the connection is read from for a moment more.
        rest = StreamReader(self, _UNREAD_BYTES, loop=self._loop)
        self._messages.append((_ErrInfo(400, error, error.message), rest))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._ignores = True

    def _fail_body(self) -> None:
        if self._body is not None and not self._body.is_eof():
            self._body.set_exception(web.RequestPayloadError("the body can't be parsed"))

    def _close_unless_busy(self) -> None:
        if not (self._request_in_progress or self._messages):
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        del request, message
        return self._server.on_error(exc if status >= 500 else None)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):
            # `OPTIONS *` and CONNECT, whose targets are no paths: no route handled them.
            resp = self._server.on_error(None)
        return await super().finish_response(request, resp, start_time)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        error = kw.get("exc_info")
        if not isinstance(error, CLIENT_FAULTS):
            # Without its traceback, with which a client could fill the log.
            self.logger.error("a connection was given up: %r", error or args)


def _limit_unacknowledged(transport: asyncio.BaseTransport) -> None:
    connected = cast("socket.socket | None", transport.get_extra_info("socket"))
    if connected is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        # It may be closed already.
        with contextlib.suppress(OSError):
            connected.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_SECONDS * 1000
            )


async def meet_expectation(request: web.Request) -> None:
    """Meet `Expect: 100-continue`, and no other expectation (RFC 9110, section 10.1.1).

    aiohttp's own handler rejects others by a text that repeats them, and fails on raw UTF-8.
    """
    expected = request.headers.get(hdrs.EXPECT, "").lower()
    if expected == "100-continue" and request.version >= (1, 1):
        # A client that has gone is no error; reading its body tells.
        with contextlib.suppress(ConnectionResetError):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # Else aiohttp believes that the response has begun.
        request.writer.output_size = 0


class Server:
    """An aiohttp application behind `Protocol`, on one address.

    Args:
        direct: handlers of the application by method and path, for those most asked for.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        on_error: OnError,
        direct: Mapping[tuple[str, str], Handler] | None = None,
        most_connections: int = MOST_CONNECTIONS,
        unsent: UnsentReplies | None = None,
        **options: Any,
    ) -> None:
        self._options = {
            # Compressed bodies are rejected: 64 KiB may inflate to 64 MiB.
            "auto_decompress": False,
            "max_headers": _MOST_HEADERS,
            "read_bufsize": _UNREAD_BYTES,
            "lingering_time": _LINGERING_SECONDS,
            **options,
        }
        self._runner = web.AppRunner(app, handle_signals=False, **self._options)
        self._direct = direct or {}
        self._most = most_connections
        self._buffer = read_buffer()
        self._open = 0
        self._emptied: asyncio.Event | None = None
        self._listening: list[asyncio.Server] = []
        self.on_error = on_error
        self.unsent = unsent or UnsentReplies()

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> None:
        """Listen; raises OSError if the address can't be bound."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        self._route, server.request_handler = server.request_handler, self._handle
        loop = asyncio.get_running_loop()
        first = await loop.create_server(
            self._protocol, host or None, port, backlog=_BACKLOG, reuse_port=reuse_port or None
        )
        self._listening.append(first)
        if isinstance(loop, asyncio.BaseEventLoop):
            # asyncio's own loops accept all that wait.
            return
        # In a turn uvloop accepts one connection by each listening socket: among a thousand busy
        # connections new ones would wait for seconds.
        for _ in range(LISTENING_SOCKETS // len(first.sockets) - 1):
            for listening in first.sockets:
                further = await loop.create_server(
                    self._protocol, sock=listening.dup(), backlog=_BACKLOG
                )
                self._listening.append(further)

    async def emptied(self, within: float) -> None:
        """Wait until no connection is open, but for no more than `within` seconds."""
        if self._open:
            self._emptied = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await self._emptied.wait()

    async def close(self, within: float) -> None:
        """End the connections; those still busy after `within` seconds are aborted."""
        for listening in self._listening:
            listening.close()
        server = self._runner.server
        if server is not None:
            server.pre_shutdown()
            await server.shutdown(within)
        self.unsent.close()
        await self._runner.cleanup()

    def opened(self, transport: asyncio.Transport) -> bool:
        """Count a connection; whether it is above the cap. Those far above it are aborted."""
        self._open += 1
        if self._open > self._most + max(8, self._most // SURPLUS_SHARE):
            transport.abort()
        return self._open > self._most

    def closed(self) -> None:
        self._open -= 1
        if not self._open and self._emptied is not None:
            self._emptied.set()

    def _handle(self, request: Any) -> Awaitable[web.StreamResponse]:
        """Past aiohttp's router, whose work for a plain path is a tenth of a sensor query's."""
        if request.raw_path.count("&") >= _MOST_PARAMETERS:
            return self._reject(request)
        handler = self._direct.get((request.method, request.rel_url.raw_path))
        if handler is None or hdrs.EXPECT in request.headers:
            return self._route(request)
        return handler(request)

    async def _reject(self, _: Any) -> web.StreamResponse:
        return self.on_error(None)

    def _protocol(self) -> BoundedReads:
        loop = asyncio.get_running_loop()
        protocol = Protocol(self, self._runner.server, loop=loop, **self._options)
        return BoundedReads(protocol, self._buffer)
