"""A tap on the line between bridge and broker: it sees each command leave, and when.

Arrival at a device comes later by however long the broker was stopped; what the bridge promises is
about leaving.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any, NamedTuple, Self

from bridge.link import packets as wire
from tests.lab.mqtt import Broker
from tests.lab.servers import LOOPBACK

_HEARTBEAT = 0.02


class Departure(NamedTuple):
    """A command that left a bridge: Unix seconds, topic, payload."""

    at: float
    topic: str
    command: Any


class Tap:
    """Stands in for the broker towards any number of bridges; ``departures`` are in order.

    ``lag`` is the longest that this process was late itself, in seconds: by so much the time of a
    departure may seem late, and no more.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._serving: set[asyncio.Task[None]] = set()
        self._lines: set[asyncio.StreamWriter] = set()
        self.host, self.port = LOOPBACK, 0
        self.departures: list[Departure] = []
        self.lag = 0.0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._beating = asyncio.create_task(self._beat(), name="heartbeat")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in (self._beating, *self._serving):
            task.cancel()
        await asyncio.gather(self._beating, *self._serving, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Cut every connection, as a network would."""
        for line in self._lines:
            line.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self._lines.add(writer)
        to_broker = None
        try:
            from_broker, to_broker = await asyncio.open_connection(
                self._broker.host, self._broker.port
            )
            back = asyncio.create_task(_copy(from_broker, writer), name="tap, back")
            self._serving.add(back)
            back.add_done_callback(self._serving.discard)
            await self._watch(reader, to_broker)
        except OSError:
            pass
        finally:
            self._serving.discard(task)
            self._lines.discard(writer)
            for end in (writer, to_broker):
                if end is not None:
                    end.close()

    async def _watch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = wire.Frames()
        while data := await reader.read(65536):
            at = time.time()
            for first, body in frames.feed(data):
                if first >> 4 == wire.PUBLISH:
                    self._note(at, wire.read_publish(first, body, with_properties=True))
            writer.write(data)

    def _note(self, at: float, message: wire.Message) -> None:
        if message.topic.startswith("devices/"):
            self.departures.append(Departure(at, message.topic, json.loads(message.payload)))

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _HEARTBEAT
            await asyncio.sleep(_HEARTBEAT)
            self.lag = max(self.lag, loop.time() - due)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()
