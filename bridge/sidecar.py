"""What of HTTP reaches below aiohttp's handlers: its protocol mended, and answers in one write.

`tests/test_http_protocol.py` guards what is relied on here.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import quote_from_bytes

from aiohttp import StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

# The answer to what failed outside a handler; None where a request could not be parsed.
OnError = Callable[[BaseException | None], "Answer"]

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
        body = self._body_bytes
        persistence = self._persistence(request)
        length = "" if self._status == 204 else f"Content-Length: {len(body)}\r\n"
        head = (
            f"{_status_line(self._status)}{self._lines}{length}"
            f"Date: {_date(int(time.time()))}\r\n{persistence}\r\n"
        ).encode("latin-1", "replace")
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        transport.write(head if request.method == hdrs.METH_HEAD else head + body)
        if transport.get_write_buffer_size() > _UNSENT_BYTES:
            await request.writer.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """It was written whole."""
        del data

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


class Protocol(web.RequestHandler):
    """aiohttp's protocol, with two mends.

    aiohttp's C parser refuses raw UTF-8 in a request line, which curl sends and other servers
    take: it is percent-encoded before the parser sees it. And what can't be parsed, or is refused
    by aiohttp itself, is answered with the contract's JSON, without a traceback per bad client.
    """

    __slots__ = ("_last_body", "_line_read", "_on_error")

    def __init__(self, on_error: OnError, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_error = on_error
        # Whether the request line of the request that is arriving has been passed on whole.
        self._line_read = False
        # The body of the request that came last; what comes after it is another request.
        self._last_body: StreamReader | None = None

    def data_received(self, data: bytes) -> None:
        if not self._line_read and self._awaits_request():
            line, newline, rest = data.partition(b"\n")
            if not line.isascii():
                data = b"".join((_percent_encoded(line), newline, rest))
            self._line_read = bool(newline)
        count = self._request_count
        super().data_received(data)
        if self._request_count != count:
            self._line_read = False
            self._last_body = self._messages[-1][1]

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

    def __init__(self, app: web.Application, *, on_error: OnError, **options: Any) -> None:
        self._runner = web.AppRunner(app, handle_signals=False, **options)
        self._on_error = on_error
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
