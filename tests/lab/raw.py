"""An MQTT 5 connection that sends what it is told, be it valid or not.

Client libraries refuse to send much of what a hostile client would, and cost a load generator more
than the bridge spends on the request. This one checks nothing and does no more than it must.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Self, cast

from bridge.link import packets as wire
from tests.lab.mqtt import Broker

_CONNACK, _SUBACK = 2, 9
_SUBSCRIBE_ID = 65535
_PUBLISH_IDS = 65000


class Raw(asyncio.Protocol):
    """One connection; it does not come back when the broker closes it.

    ``on_message`` is called with each message, which is acknowledged before.
    """

    def __init__(
        self, broker: Broker, on_message: Callable[[wire.Message], None] | None = None
    ) -> None:
        self._broker = broker
        self._on_message = on_message
        self._frames = wire.Frames()
        self._last_id = 0
        self._waiting: dict[tuple[int, int], asyncio.Future[int]] = {}
        self._transport: asyncio.Transport

    async def connect(self, timeout: float = 10.0) -> Self:
        """Connect and log in, anonymously, with no session and no keepalive."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        connected = self._expect(_CONNACK, 0)
        async with asyncio.timeout(timeout):
            await loop.create_connection(lambda: self, self._broker.host, self._broker.port)
            name = b"raw-" + os.urandom(6).hex().encode()
            body = b"\x00\x04MQTT\x05\x02\x00\x00\x03\x21\xff\xff" + _text(name)
            self.send(bytes((0x10, len(body))) + body)
            reason = await connected
        if reason:
            raise ConnectionRefusedError(f"the broker refused us: 0x{reason:02x}")
        return self

    async def subscribe(self, topic_filter: bytes, qos: int = 1) -> int:
        """Subscribe; the SUBACK's reason code. The filter is of less than 100 bytes."""
        body = _SUBSCRIBE_ID.to_bytes(2, "big") + b"\x00" + _text(topic_filter) + bytes((qos,))
        granted = self._expect(_SUBACK, _SUBSCRIBE_ID)
        self.send(bytes((0x82, len(body))) + body)
        return await granted

    def publish(
        self, topic: bytes, payload: bytes, properties: bytes = b"", *, retain: bool = False
    ) -> asyncio.Future[int]:
        """Publish at QoS 1; the future is the PUBACK's reason code.

        It fails with ConnectionError if the broker closes the connection first.
        """
        while True:
            self._last_id = self._last_id % _PUBLISH_IDS + 1
            if (wire.PUBACK, self._last_id) not in self._waiting:
                break
        acknowledged = self._expect(wire.PUBACK, self._last_id)
        self.send(
            wire.publish(
                topic,
                payload,
                qos=1,
                retain=retain,
                packet_id=self._last_id,
                properties=properties,
            )
        )
        return acknowledged

    def send(self, data: bytes) -> None:
        """Send these bytes."""
        self._transport.write(data)

    @property
    def open(self) -> bool:
        return not self._transport.is_closing()

    async def close(self) -> None:
        """Close the connection without a goodbye."""
        self._transport.abort()
        await asyncio.sleep(0)

    def _expect(self, kind: int, identifier: int) -> asyncio.Future[int]:
        future = self._waiting[kind, identifier] = self._loop.create_future()
        return future

    def _settle(self, kind: int, identifier: int, reason: int) -> None:
        future = self._waiting.pop((kind, identifier), None)
        if future is not None and not future.done():
            future.set_result(reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none by inheritance.
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, _: Exception | None) -> None:
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(ConnectionError("the broker closed the connection"))
                # Who does not wait for it any more need not be told.
                future.exception()

    def data_received(self, data: bytes) -> None:
        for first, body in self._frames.feed(data):
            kind = first >> 4
            if kind == wire.PUBACK:
                self._settle(kind, *wire.read_puback(body))
            elif kind == wire.PUBLISH:
                message = wire.read_publish(first, body, with_properties=True)
                if message.qos:
                    self.send(wire.puback(message.packet_id))
                if self._on_message is not None:
                    self._on_message(message)
            elif kind == _CONNACK:
                self._settle(kind, 0, body[1])
            elif kind == _SUBACK:
                self._settle(kind, _SUBSCRIBE_ID, body[-1])


def _text(raw: bytes) -> bytes:
    return len(raw).to_bytes(2, "big") + raw
