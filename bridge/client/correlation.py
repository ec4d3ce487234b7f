"""Which reply answers which request: known by its Correlation Data (MQTT 5.0, section 4.10)."""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import orjson

from ..devices.models import JsonObject
from ..link import Link, packets


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """A reply that somebody waits for: what to send for it to be known by, and its body."""

    correlation: bytes
    reply: asyncio.Future[JsonObject]


class Replies:
    """What comes to our reply topic, for whoever waits for it."""

    def __init__(self) -> None:
        self._pending: dict[bytes, asyncio.Future[JsonObject]] = {}

    @contextmanager
    def expected(self) -> Iterator[Expected]:
        """Wait for one reply, as long as the context lasts."""
        correlation = secrets.token_bytes(16)
        reply: asyncio.Future[JsonObject] = asyncio.get_running_loop().create_future()
        self._pending[correlation] = reply
        try:
            yield Expected(correlation, reply)
        finally:
            del self._pending[correlation]

    def arrived(self, link: Link, message: packets.Message) -> None:
        """Acknowledge a message, and hand it over if it is the reply that somebody waits for."""
        if message.qos:
            link.acknowledge(message.packet_id)
        reply = self._pending.get(message.correlation or b"")
        if reply is None or reply.done():
            return
        body = _body_of(message.payload)
        if body is not None:
            reply.set_result(body)


def _body_of(payload: bytes) -> JsonObject | None:
    """A reply's body; None for whatever else was sent to our reply topic."""
    try:
        body: object = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    if isinstance(body, dict) and isinstance(body.get("code"), int):
        return body
    return None
