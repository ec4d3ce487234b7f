"""A broker that does what a test tells it to, and shows each packet that it is sent.

It speaks as little MQTT as a test needs, on the event loop of the test, for one client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self

from tests.lab.servers import LOOPBACK

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, UNSUBSCRIBE = 1, 3, 4, 8, 10
PINGREQ, DISCONNECT = 12, 14

ACCEPTED = b"\x20\x03\x00\x00\x00"
"""An MQTT 5 CONNACK without properties."""
ACCEPTED_311 = b"\x20\x02\x00\x00"


class Scripted:
    """Answers the first packets with ``answers``, one each; all else is up to the test."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self._clients: list[asyncio.Task[None]] = []
        self._writer: asyncio.StreamWriter | None = None
        self.host, self.port = LOOPBACK, 0
        self._unread: deque[tuple[int, bytes]] = deque()
        self._arrived = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0, limit=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._server.wait_closed()

    def send(self, data: bytes) -> None:
        """Send these bytes to the client that came last."""
        assert self._writer is not None
        self._writer.write(data)

    async def packet(self, kind: int, timeout: float = 10.0) -> tuple[int, bytes]:
        """The next packet of that kind, as first byte and body; others are passed over."""
        async with asyncio.timeout(timeout):
            while True:
                while self._unread:
                    first, body = self._unread.popleft()
                    if first >> 4 == kind:
                        return first, body
                self._arrived.clear()
                await self._arrived.wait()

    def holds(self, kind: int) -> bool:
        """Whether a packet of that kind has come and was not asked for yet."""
        return any(first >> 4 == kind for first, _ in self._unread)

    def pause(self) -> None:
        """Take no more off the socket."""
        assert self._writer is not None
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def resume(self) -> None:
        """Read again after `pause`."""
        assert self._writer is not None
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def clients_gone(self, timeout: float = 5.0) -> None:
        """Wait until every client has closed its connection."""
        async with asyncio.timeout(timeout):
            await asyncio.gather(*self._clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.append(task)
        self._writer = writer
        try:
            while True:
                first = (await reader.readexactly(1))[0]
                body = await reader.readexactly(await _length(reader))
                self._unread.append((first, body))
                self._arrived.set()
                if self._answers:
                    writer.write(self._answers.pop(0))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def _length(reader: asyncio.StreamReader) -> int:
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return length
