"""What of HTTP reaches below aiohttp's handlers: its protocol mended, answers in one write, and
requests that are answered at sight.

`tests/test_http_protocol.py` guards what is relied on here.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

from aiohttp import StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import _ErrInfo

# The answer to what failed outside a handler; None where a request could not be parsed.
OnError = Callable[[BaseException | None], "Answer"]
# The answer at sight of a request's bytes, with so many others on their way to their handlers; None
# lets it in.
AtSight = Callable[[bytes, int], "bytes | None"]

JSON_UTF8 = "application/json; charset=utf-8"

# A reader slower than this is waited for, before the next request of its connection is answered.
_UNSENT_BYTES = 64 * 1024
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
        transport.write(head if request.method == hdrs.METH_HEAD else head + self._body_bytes)
        if transport.get_write_buffer_size() > _UNSENT_BYTES:
            await request.writer.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """It was written whole."""
        del data

    def whole(self) -> bytes:
        """All of it, as it goes to a client of HTTP/1.1 whose connection goes on."""
        return self._head("") + self._body_bytes

    def _head(self, persistence: str) -> bytes:
        length = "" if self._status == 204 else f"Content-Length: {len(self._body_bytes)}\r\n"
        return (
            f"{_status_line(self._status)}{self._lines}{length}"
            f"Date: {_date(int(time.time()))}\r\n{persistence}\r\n"
        ).encode("latin-1", "replace")

    def _persistence(self, request: web.BaseRequest) -> str:
        self._keep_alive = self._keep_alive and request.keep_alive
        if not self._keep_alive:
            return "Connection: close\r\n"
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


_CONTENT_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
_KEEP_ALIVE = re.compile(rb"\nconnection:[ \t]*keep-alive[ \t]*(?=\r\n)", re.IGNORECASE)
# What makes more of a message, or of its connection, than a head and a body of known length.
_SPECIAL = re.compile(rb"\n(?:connection|expect|transfer-encoding|upgrade)[ \t]*:", re.IGNORECASE)


class Plain(NamedTuple):
    """A request that HTTP/1.1 reads in one way only: a head, and a body of known length."""

    head: bytes
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> "Plain | None":
        """What `data` is, if it is one such request, whole, and nothing else.

        Anything odd is left to the real parser: a line feed by itself, a length that is missing,
        said twice or other than what came, and whatever changes how the connection goes on.
        """
        head, blank, body = data.partition(b"\r\n\r\n")
        head += b"\r\n"
        if not blank or head.count(b"\n") != head.count(b"\r\n"):
            return None
        if _SPECIAL.search(_KEEP_ALIVE.sub(b"", head, count=1)):
            return None
        lengths = _CONTENT_LENGTH.findall(head)
        if len(lengths) > 1 or len(lengths) != head.lower().count(b"content-length"):
            return None
        return cls(head, body) if len(body) == sum(map(int, lengths)) else None


@dataclass(slots=True)
class Arrivals:
    """How many requests of all connections have been read and not reached their handlers yet."""

    count: int = 0


class Protocol(web.RequestHandler):
    """aiohttp's protocol, with two mends and a short cut.

    aiohttp's C parser refuses raw UTF-8 in a request line, which curl sends and other servers
    take: it is percent-encoded before the parser sees it. What can't be parsed, or is refused
    by aiohttp itself, is answered with the contract's JSON, without a traceback per bad client.
    And what `at_sight` has an answer to is answered before it costs a parser, a task and a handler.
    """

    __slots__ = (
        "_arrivals",
        "_arriving",
        "_at_sight",
        "_in_step",
        "_last_body",
        "_line_read",
        "_on_error",
        "_owed",
    )

    def __init__(
        self,
        on_error: OnError,
        at_sight: AtSight,
        arrivals: Arrivals,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._on_error = on_error
        self._at_sight = at_sight
        self._arrivals = arrivals
        # Whether a request of ours is among those.
        self._arriving = False
        # Whether we know where the next request begins: none yet came in pieces, or in a bunch.
        self._in_step = True
        # What is still to come of a body.
        self._owed = 0
        handle = self._request_handler
        assert handle is not None

        def begin(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
            self._arrived()
            return handle(request)

        self._request_handler = begin
        # Whether the request line of the request that is arriving has been passed on whole.
        self._line_read = False
        # The body of the request that came last; what comes after it is another request.
        self._last_body: StreamReader | None = None

    def data_received(self, data: bytes) -> None:
        # aiohttp calls it with nothing, to go on with what the parser has kept.
        if data and self._is_answered_at_sight(data):
            return
        if not self._line_read and self._awaits_request():
            line, newline, rest = data.partition(b"\n")
            if not line.isascii():
                data = b"".join((_percent_encoded(line), newline, rest))
            self._line_read = bool(newline)
        count = self._request_count
        super().data_received(data)
        if self._in_step and data:
            self._keep_in_step(data, self._request_count - count)
        if self._request_count != count:
            self._line_read = False
            self._last_body = self._messages[-1][1]
            self._arrive()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def _keep_in_step(self, data: bytes, requests: int) -> None:
        """See whether `data`, which began so many requests, ended where one ends, or will."""
        if self._owed:
            self._owed -= len(data)
        elif requests == 1 and not isinstance(message := self._messages[-1][0], _ErrInfo):
            ends = data.find(b"\r\n\r\n") + 4 + int(message.headers.get("Content-Length", 0))
            self._owed = ends - len(data)
            self._in_step = not message.chunked
        else:
            self._in_step = False
        self._in_step = self._in_step and self._owed >= 0

    def _is_answered_at_sight(self, data: bytes) -> bool:
        """Answer a request for which no parser, task and handler are needed."""
        if not self._in_step or self._owed or self._is_busy():
            return False
        answer = self._at_sight(data, self._arrivals.count)
        if answer is None:
            return False
        assert self.transport is not None
        self.transport.write(answer)
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        return True

    def _is_busy(self) -> bool:
        """Whether an answer would come out of turn, or to a client that does not read it."""
        return (
            self._arriving
            or self._request_in_progress
            or bool(self._messages)
            or self._close
            or self._force_close
            or self.transport is None
            or self.transport.get_write_buffer_size() > _UNSENT_BYTES
        )

    def _arrive(self) -> None:
        if not self._arriving:
            self._arriving = True
            self._arrivals.count += 1

    def _arrived(self) -> None:
        if self._arriving:
            self._arriving = False
            self._arrivals.count -= 1

    def _awaits_request(self) -> bool:
        # Whether a handler is still busy says nothing: the client may have its answer already.
        return self._last_body is None or self._last_body.is_eof()

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
        return self._on_error(exc if status >= 500 else None)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):
            # `OPTIONS *` and CONNECT, whose targets are no paths: none of our routes saw them.
            resp = self._on_error(None)
        return await super().finish_response(request, resp, start_time)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        if not isinstance(kw.get("exc_info"), _CLIENTS_FAULT):
            super().log_exception(*args, **kw)


def _percent_encoded(line: bytes) -> bytes:
    # Everything that is ASCII stays as it was, odd or not: judging it is the parser's.
    return quote_from_bytes(line, safe=bytes(range(128))).encode("ascii")


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
    """An aiohttp application behind `Protocol`, without aiohttp's own signal handling."""

    def __init__(
        self, app: web.Application, *, on_error: OnError, at_sight: AtSight, **options: Any
    ) -> None:
        self._runner = web.AppRunner(app, handle_signals=False, **options)
        self._on_error = on_error
        self._at_sight = at_sight
        self._arrivals = Arrivals()
        self._options = options

    async def setup(self) -> None:
        """Make it ready for `protocol`."""
        for route in self._runner.app.router.routes():
            route._expect_handler = _let_go_on
        await self._runner.setup()

    def protocol(self) -> Protocol:
        """One connection's protocol, as `create_server` asks for it."""
        return Protocol(
            self._on_error,
            self._at_sight,
            self._arrivals,
            self._runner.server,
            loop=asyncio.get_running_loop(),
            **self._options,
        )

    async def close(self, within: float) -> None:
        """End the connections; those still busy after `within` seconds are cut."""
        server = self._runner.server
        if server is not None:
            server.pre_shutdown()
            await server.shutdown(within)
        await self._runner.cleanup()
