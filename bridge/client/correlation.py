"""Which reply answers which request: known by its Correlation Data (MQTT 5.0, section 4.10), and
where client or bridge speak MQTT 3.1.1 by the `request_id` in its body."""

import asyncio
import secrets
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import orjson

from ..devices.models import JsonObject
from ..link import Link, packets
from .errors import CallError


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """A reply that a call waits for. The future holds its body, or fails with a `CallError`."""

    request_id: str
    correlation: bytes
    reply: asyncio.Future[JsonObject]


class Replies:
    """Gives each message on the reply topic to the call that waits for it."""

    def __init__(self) -> None:
        self._by_correlation: dict[bytes, Expected] = {}
        # Several calls may use one id at a time: the first to ask gets the first reply.
        self._by_id: dict[str, deque[Expected]] = {}

    @contextmanager
    def expected(self, request_id: str) -> Iterator[Expected]:
        """Expect one reply, as long as the context lasts; several calls may use one id."""
        reply: asyncio.Future[JsonObject] = asyncio.get_running_loop().create_future()
        expected = Expected(request_id, secrets.token_bytes(16), reply)
        same_id = self._by_id.setdefault(request_id, deque())
        same_id.append(expected)
        self._by_correlation[expected.correlation] = expected
        try:
            yield expected
        finally:
            del self._by_correlation[expected.correlation]
            same_id.remove(expected)
            if not same_id:
                del self._by_id[request_id]

    def arrived(self, link: Link, message: packets.Message) -> None:
        """Acknowledge a message, and hand it over if it is a reply that a call waits for."""
        if message.qos:
            link.acknowledge(message.packet_id)
        body = _body_of(message.payload)
        if message.correlation is not None:
            expected = self._by_correlation.get(message.correlation)
        else:
            expected = self._oldest_with_id_of(body)
        if expected is None or expected.reply.done():
            return
        if body is None:
            expected.reply.set_exception(_no_reply_of_a_bridge(expected.request_id))
        else:
            expected.reply.set_result(body)

    def _oldest_with_id_of(self, body: JsonObject | None) -> Expected | None:
        request_id = None if body is None else body.get("request_id")
        if not isinstance(request_id, str):
            return None
        same_id = self._by_id.get(request_id, ())
        return next((expected for expected in same_id if not expected.reply.done()), None)


def _body_of(payload: bytes) -> JsonObject | None:
    try:
        body: object = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    if isinstance(body, dict) and isinstance(body.get("code"), int):
        return body
    return None


def _no_reply_of_a_bridge(request_id: str) -> CallError:
    return CallError(
        "the reply is not a JSON object with a code, so that no bridge sent it; does something "
        "else answer on the request topics? A command may have been executed",
        request_id,
    )
