"""A line from a client to its broker, on which a test sees each packet that the client sends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

from tests.lab.mqtt import Broker
from tests.lab.servers import LOOPBACK


class Cut(Exception):
    """The line is cut before this packet."""


Watch = Callable[[bytes], bytes | None]
"""Called with each whole packet: None passes it on, bytes answer it instead of the broker, and
`Cut` cuts the connection."""


class Line:
    """Stands in for the broker; packets pass, as ``alter`` makes them, until ``watch`` is set."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._serving: set[asyncio.Task[None]] = set()
        self.host, self.port = LOOPBACK, 0
        self.watch: Watch = lambda _packet: None
        self.alter: Callable[[bytes], bytes] = lambda packet: packet

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        from_broker, broker = await asyncio.open_connection(self._broker.host, self._broker.port)
        returning = asyncio.create_task(_copy(from_broker, back), name="line, back")
        try:
            while True:
                packet = await _packet(client)
                answer = self.watch(packet)
                if answer is None:
                    broker.write(self.alter(packet))
                else:
                    back.write(answer)
        except (Cut, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._serving.discard(task)
            for writer in (broker, back):
                writer.transport.abort()
            returning.cancel()
            await asyncio.gather(returning, return_exceptions=True)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            target.write(data)
    target.close()


async def _packet(source: asyncio.StreamReader) -> bytes:
    packet = await source.readexactly(1)
    length = shift = 0
    while True:
        byte = await source.readexactly(1)
        packet += byte
        length |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return packet + await source.readexactly(length)
