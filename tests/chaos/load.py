"""Load generators that cost less than the bridge spends on what they ask."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, cast
from urllib.parse import urlsplit

from bridge.link import packets as wire
from tests.lab.mqtt import NO_MATCHING_SUBSCRIBERS, Broker
from tests.lab.raw import Raw


class Times(NamedTuple):
    """How long answers took, in seconds."""

    p50: float
    p99: float
    longest: float


@dataclass
class Outcome:
    """What came of a load, or of one phase of it: how many answers of each code, and their times.

    ``unanswered``, ``closed`` (by the server, amid a request), ``unsent`` (never had a free
    connection) and ``late`` (the 99th percentile of how late requests left) are of the whole load.
    """

    elapsed: float
    codes: dict[int, int] = field(default_factory=dict)
    times: dict[int, Times] = field(default_factory=dict)
    unanswered: int = 0
    closed: int = 0
    unsent: int = 0
    late: float = 0.0

    @property
    def per_second(self) -> float:
        """Answered with 200."""
        return self.codes.get(200, 0) / self.elapsed if self.elapsed else 0.0

    @property
    def longest(self) -> float:
        """The time of the slowest answer, whatever its code."""
        return max((times.longest for times in self.times.values()), default=0.0)


class HttpConnection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport

    async def connect(self, url: str) -> Self:
        address = urlsplit(url)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, address.hostname, address.port)
        return self

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a whole request; the future is the answer's status and body."""
        self._waiting = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self._waiting.set_exception(ConnectionError("closed before"))
        else:
            self._transport.write(request)
        return self._waiting

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none by inheritance.
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, _: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError("closed amidst"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        if len(rest) >= length:
            self._buffer = rest[length:]
            waiting, self._waiting = self._waiting, None
            if waiting is not None and not waiting.done():
                waiting.set_result((int(head[9:12]), rest[:length]))


def http_request(method: str, path: str, fields: Mapping[str, Any] | None = None) -> bytes:
    """A whole HTTP request; fields become its JSON body."""
    body = b"" if fields is None else json.dumps(fields).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: bridge\r\n"
    if fields is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


class HttpLoad:
    """Asks over as many connections as it takes, up to ``most``; what is too many waits here."""

    def __init__(self, url: str, most: int = 1024) -> None:
        self._url = url
        self._free = asyncio.Semaphore(most)
        self._idle: list[HttpConnection] = []
        self._all: list[HttpConnection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._all:
            connection.close()
        await asyncio.sleep(0)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Ask once; status and body.

        Raises:
            OSError: the connection was refused, or closed before the answer.
        """
        async with self._free:
            connection = self._idle.pop() if self._idle else await self._connected()
            answer = await connection.ask(request)
            self._idle.append(connection)
            return answer

    async def _connected(self) -> HttpConnection:
        connection = await HttpConnection().connect(self._url)
        self._all.append(connection)
        return connection


class MqttLoad:
    """Asks over one connection; many at a time."""

    def __init__(self, broker: Broker) -> None:
        self._raw = Raw(broker, self._received)
        self._reply_topic = b"plugin/reply/load-" + os.urandom(6).hex().encode()
        self._asked = 0
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        # Replies that nobody waited for (any more).
        self.unexpected = 0

    async def __aenter__(self) -> Self:
        await self._raw.connect()
        await self._raw.subscribe(self._reply_topic)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._raw.close()

    async def ask(self, operation: str, fields: Mapping[str, Any]) -> Any:
        """Ask once; the reply's body, or None if the broker says that nobody is there to answer.

        Raises:
            ConnectionError: the broker closed the connection.
        """
        self._asked += 1
        correlation = b"%d" % self._asked
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[correlation] = reply
        acknowledged = self._raw.publish(
            f"plugin/request/{operation}".encode(),
            json.dumps(fields).encode(),
            wire.properties(response_topic=self._reply_topic, correlation=correlation),
        )
        try:
            if await acknowledged == NO_MATCHING_SUBSCRIBERS:
                return None
            return json.loads(await reply)
        finally:
            self._waiting.pop(correlation, None)

    def _received(self, message: wire.Message) -> None:
        waiting = self._waiting.get(message.correlation or b"")
        if waiting is None or waiting.done():
            self.unexpected += 1
        else:
            waiting.set_result(message.payload)


def outcomes(counted: Counter[Any]) -> str:
    """A count of outcomes, the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in counted.most_common())
