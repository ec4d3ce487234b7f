"""What of HTTP reaches below aiohttp's handlers: its protocol mended, answers in one write, and
requests that are answered at sight.

`tests/test_http_protocol.py` guards what is relied on here.
"""

import asyncio
import time
import typing
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import _ErrInfo

from .connections import MOST_CONNECTIONS, Connections, Patience, give_up_on_the_deaf
from .errors import Busy
from .framing import Begun, Framing

# The answer to what failed outside a handler; None where a request could not be parsed.
OnError = Callable[[BaseException | None], "Answer"]

JSON_UTF8 = "application/json; charset=utf-8"

# A reader slower than this is waited for, before the next request of its connection is answered.
_UNSENT_BYTES = 64 * 1024
# How long one who reads next to nothing is waited for.
_READER_SECONDS = 30.0
_CLOSE = "Connection: close\r\n"
_BODILESS = frozenset({204, 304})
# What a client did to its own request, met once more when the rest of that is read away.
_CLIENTS_FAULT = (web.RequestPayloadError, HttpProcessingError, ConnectionError)


class Answer(web.StreamResponse):
    """A whole response, written with its head in one piece.

    aiohttp's own `web.Response` costs a third of a sensor query here: it keeps headers in a
    multidict, and prepares, starts and ends a stream for each.
    """

    def __init__(
        self,
        status: int,
        content_type: str,
        body: bytes,
        headers: Sequence[tuple[str, str]] = (),
        *,
        keep_alive: bool = True,
    ) -> None:
        # Not super().__init__(): it would make all that is done without here.
        self._status = status
        self._keep_alive = keep_alive
        self._body_bytes = body
        self._lines = _header_lines(content_type, tuple(headers))

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection goes on after it."""
        return self._keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write it."""
        head = self._head(self._persistence(request))
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        body = b"" if request.method == hdrs.METH_HEAD else self._body_bytes
        if len(body) < _UNSENT_BYTES:
            transport.write(head + body)
        else:
            # Not joined: however many wait for the same large body, it is kept once.
            transport.writelines((head, body))
        if transport.get_write_buffer_size() > _UNSENT_BYTES:
            await request.writer.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """It was written whole."""
        del data

    def whole(self) -> bytes:
        """All of it, as it goes to a client of HTTP/1.1."""
        return self._head("" if self._keep_alive else _CLOSE) + self._body_bytes

    def _head(self, persistence: str) -> bytes:
        length = f"Content-Length: {len(self._body_bytes)}\r\n"
        if self._status in _BODILESS:
            length = ""
        return (
            f"{_status_line(self._status)}{self._lines}{length}"
            f"Date: {_date(int(time.time()))}\r\n{persistence}\r\n"
        ).encode("latin-1", "replace")

    def _persistence(self, request: web.BaseRequest) -> str:
        self._keep_alive = self._keep_alive and request.keep_alive
        if not self._keep_alive:
            return _CLOSE
        return "" if request.version >= (1, 1) else "Connection: keep-alive\r\n"


@lru_cache(maxsize=64)
def _header_lines(content_type: str, headers: tuple[tuple[str, str], ...]) -> str:
    return f"Content-Type: {content_type}\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in headers
    )


@lru_cache(maxsize=64)
def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"


@lru_cache(maxsize=2)
def _date(unix_seconds: int) -> str:
    return formatdate(unix_seconds, usegmt=True)


class AtSight(typing.Protocol):
    """What is answered at sight of its bytes, before it costs a parser, a task and a handler."""

    def may_answer(self, arriving: int) -> bool:
        """Whether anything is now, with so many others on their way to their handlers."""

    def answer(self, data: bytes) -> bytes | None:
        """The answer, after `may_answer`; None lets it in."""

    def answered(self) -> None:
        """The answer was written."""

    @property
    def counted(self) -> tuple[str, ...]:
        """What the targets of those others begin with."""


@dataclass(slots=True)
class Shared:
    """What all connections share."""

    on_error: OnError
    at_sight: AtSight | None
    connections: Connections
    reader_seconds: float = _READER_SECONDS
    # What the targets of requests begin with that count as arriving.
    counted: tuple[str, ...] = field(init=False)
    # How many requests that count have been read and not reached their handlers yet.
    arriving: int = 0

    def __post_init__(self) -> None:
        self.counted = () if self.at_sight is None else self.at_sight.counted


class Protocol(web.RequestHandler):
    """aiohttp's protocol, with mends and a short cut.

    aiohttp's C parser refuses raw UTF-8 in a request line, which curl sends and other servers
    take: it is percent-encoded before the parser sees it. What can't be parsed, or is refused
    by aiohttp itself, is answered with the contract's JSON, without a traceback per bad client. No
    client holds a connection by not reading. And what can be is answered at sight.
    """

    __slots__ = ("_arriving", "_framing", "_held", "_shared", "_unanswered")

    def __init__(self, shared: Shared, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shared = shared
        self._framing = Framing()
        # What came and is not for the parser yet.
        self._held = b""
        # How many requests the parser has read whose answers have not been written.
        self._unanswered = 0
        # Whether a request of ours is among those that `shared` counts.
        self._arriving = False
        handle = self._request_handler
        assert handle is not None

        def begin(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
            self._arrived()
            return handle(request)

        self._request_handler = begin

    # ---- its life -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        shared = self._shared
        if not shared.connections.admits(self):
            shared.connections.refuse(
                cast(asyncio.Transport, transport), lambda: shared.on_error(Busy()).whole()
            )
            return
        give_up_on_the_deaf(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._arrived()
        self._shared.connections.gone(self)
        self._held = b""
        super().connection_lost(exc)

    @property
    def is_busy(self) -> bool:
        """Whether a request has come here and is not answered yet."""
        return self._unanswered > 0

    def cut(self) -> None:
        """Close it at once."""
        if self.transport is not None:
            self.transport.abort()

    async def start(self) -> None:
        try:
            await super().start()
        except Exception as error:
            # What its parser lets pass but no request can be made of: a host that is no name.
            self._give_up(None if isinstance(error, ValueError) else error)

    def _give_up(self, error: Exception | None) -> None:
        if self.transport is not None:
            self.transport.write(self._shared.on_error(error).whole())
        self.force_close()

    async def _drain_helper(self) -> None:
        if self.transport is None or not self.writing_paused:
            return await super()._drain_helper()
        patience = Patience(self.transport, self._shared.reader_seconds)
        try:
            return await super()._drain_helper()
        finally:
            patience.end()

    # ---- what comes in --------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._close or self._force_close:
            return
        if not data:
            # aiohttp calls it so, to go on with what the parser has kept.
            self._feed(b"")
        elif not self._held and self._is_answered_at_sight(data):
            return
        data = self._held + data
        start = 0
        while start < len(data) and self._has_room():
            end = self._framing.end_of_piece(data, start)
            self._feed(data[start:end])
            start = end
        self._held = data[start:]

    def _has_room(self) -> bool:
        """Whether the parser would take more; where it does not, reading is paused."""
        return len(self._messages) < self._max_msg_queue_size and not self._reading_paused

    def _feed(self, piece: bytes) -> None:
        count, awaited = self._request_count, not self._unanswered
        super().data_received(self._framing.mended(piece))
        begun = self._request_count - count
        if self._upgraded or begun > 1:
            self._framing.known = False
        if not begun:
            self._framing.took(piece, None)
            return
        self._unanswered += begun
        read = self._messages[-begun]
        message = read[0]
        if isinstance(message, _ErrInfo):
            self._framing.known = False
        else:
            self._framing.took(piece, cast(Begun, read))
            # One behind another may have long to wait for its turn.
            if awaited and message.path.startswith(self._shared.counted):
                self._arriving = True
                self._shared.arriving += 1

    # ---- requests on their way to their handlers ------------------------------------------------

    def _arrived(self) -> None:
        if self._arriving:
            self._arriving = False
            self._shared.arriving -= 1

    def _is_answered_at_sight(self, data: bytes) -> bool:
        """Answer a request at sight; it must be its turn, and its client must read."""
        at_sight = self._shared.at_sight
        if (
            at_sight is None
            or not at_sight.may_answer(self._shared.arriving)
            or not self._framing.between
            or self._unanswered
            or self.transport is None
            or self.transport.get_write_buffer_size() > _UNSENT_BYTES
        ):
            return False
        answer = at_sight.answer(data)
        if answer is None:
            return False
        self.transport.write(answer)
        at_sight.answered()
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        self._shared.connections.idle(self)
        return True

    # ---- what goes out --------------------------------------------------------------------------

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        del message
        if request.writer.output_size > 0:
            # Amidst a stream of ours: aiohttp closes the connection.
            raise ConnectionError("the response has begun")
        return self._shared.on_error(exc if status >= 500 else None)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):
            # `OPTIONS *` and CONNECT, whose targets are no paths: none of our routes saw them.
            resp = self._shared.on_error(None)
        if self._upgraded and not self._messages:
            self._decline_upgrade(resp)
        finished = await super().finish_response(request, resp, start_time)
        self._unanswered -= 1
        if not self._unanswered:
            self._shared.connections.idle(self)
        return finished

    def _decline_upgrade(self, resp: web.StreamResponse) -> None:
        """End the connection with this response.

        What its client sent behind an upgrade may be of another protocol; read as requests, it
        would be what someone else wrote.
        """
        resp.force_close()
        self._message_tail = b""
        self.close()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        error = kw.get("exc_info")
        if not isinstance(error, _CLIENTS_FAULT):
            # Without its traceback: whoever knows how to cause it could fill the log with them.
            self.logger.error("a connection was given up: %r", error or args)


async def _let_go_on(request: web.Request) -> None:
    """Meet `Expect: 100-continue`, and no other expectation (RFC 9110, section 10.1.1).

    aiohttp's own refuses those by a text that repeats them, and fails where they are not UTF-8.
    """
    expected = request.headers.get(hdrs.EXPECT, "").lower()
    if expected == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The response itself has not begun.
        request.writer.output_size = 0


class Runner:
    """An aiohttp application behind `Protocol`, without aiohttp's own signal handling.

    Of more than `most_connections` the one that was idle longest is closed; a client that reads
    next to nothing of its answer for `reader_seconds` is cut off.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        on_error: OnError,
        at_sight: AtSight | None = None,
        most_connections: int = MOST_CONNECTIONS,
        reader_seconds: float = _READER_SECONDS,
        **options: Any,
    ) -> None:
        # Inflated, a body of 64 KiB may be one of 64 MiB; who takes none refuses it as it is.
        self._options = {"auto_decompress": False, **options}
        self._runner = web.AppRunner(app, handle_signals=False, **self._options)
        connections = Connections(most_connections)
        self._shared = Shared(on_error, at_sight, connections, reader_seconds)

    async def setup(self) -> None:
        """Make it ready for `protocol`."""
        for route in self._runner.app.router.routes():
            route._expect_handler = _let_go_on
        await self._runner.setup()

    def protocol(self) -> Protocol:
        """One connection's protocol, as `create_server` asks for it."""
        return Protocol(
            self._shared,
            self._runner.server,
            loop=asyncio.get_running_loop(),
            **self._options,
        )

    async def close(self, within: float) -> None:
        """End the connections; those still busy after `within` seconds are cut."""
        self._shared.connections.close()
        server = self._runner.server
        if server is not None:
            server.pre_shutdown()
            await server.shutdown(within)
        await self._runner.cleanup()
