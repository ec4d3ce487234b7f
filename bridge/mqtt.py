"""The MQTT transport: requests in, replies out, acknowledgements, presence, commands.

A request's way: `_on_message` (read, drop or accept) -> `_serve` (open, address, answer, reply)
-> `_settle` (acknowledge, in order of receipt). A reply that could not be delivered because the
connection was lost is sent again on the next one.
"""

import asyncio
import hashlib
import logging
import math
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Generator
from dataclasses import dataclass, field
from typing import Any

import aiomqtt
import orjson

from . import __version__, wire
from .dispatch import Dispatcher, Request
from .envelope import TRACE_SHAPES, Envelope, open_payload
from .errors import (
    BridgeError,
    MqttUnavailable,
    OutcomeUnknown,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from .link import REFUSED_FROM, SESSION_TAKEN_OVER, BrokerAddress, Link, LinkError
from .logs import printable
from .metrics import Metrics
from .operations import OPERATION_NAMES, OPERATIONS
from .replies import Reply, reply_to_error
from .settings import Settings
from .topics import Asked, Topics, is_plain

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 3.0
# How long a reply waits for a connection to come back, at the least (seconds).
_REPLY_PATIENCE = 30.0
# A connection that others would not close so soon, and so often.
_SHORT_LIVED_SECONDS, _SHORT_LIVED_IN_A_ROW = 5.0, 3
_CONTENT_TYPE = b"application/json"
_LONGEST_PROPERTY = 300
_JSON_TYPE = re.compile(r"\s*(application/([\w.-]+\+)?json|text/json)\s*(;.*)?", re.IGNORECASE)


@dataclass(slots=True, eq=False)
class _Delivery:
    """One message from the broker, until it is acknowledged."""

    packet_id: int
    qos: int
    received: float
    # The connection on which it is to be acknowledged; None once that is lost.
    link: Link | None
    # None once it is settled: what waits only for its turn to be acknowledged keeps no payload.
    message: wire.Message | None
    # By which its repetition on a new connection is known; made when it may be needed.
    digest: bytes = b""

    @property
    def settled(self) -> bool:
        """Whether nothing more is owed for it but its acknowledgement."""
        return self.message is None

    def settle(self, *, keep_digest: bool) -> None:
        """Nothing more is owed for it but its acknowledgement."""
        if keep_digest and self.message is not None:
            self.digest = _digest_of(self.message)
        self.message = None

    def is_repeated_by(self, message: wire.Message) -> bool:
        """Whether the broker sends it again with this message."""
        digest = self.digest if self.message is None else _digest_of(self.message)
        return message.duplicate and digest == _digest_of(message)


@dataclass(slots=True)
class _Return:
    """Where and how a reply goes back."""

    topic: str
    request_id: str | None
    qos: int
    expires: float | None = None
    correlation: bytes | None = None
    trace: list[tuple[str, str]] = field(default_factory=list)


class MqttTransport:
    """Serves requests over MQTT, and publishes commands for all transports."""

    def __init__(self, settings: Settings, metrics: Metrics, instance: str) -> None:
        self._settings = settings
        self._metrics = metrics
        self._instance = instance
        self._topics = Topics(
            settings.mqtt_topic_prefix, settings.mqtt_share, instance, settings.mqtt_reply_topics
        )
        self._dispatcher: Dispatcher | None = None
        self._link: Link | None = None
        self._linked = asyncio.Event()
        self._serving_since: str | None = None
        self._stopping = False
        # Deliveries at QoS 1 in order of receipt, in which they are to be acknowledged.
        self._unsettled: deque[_Delivery] = deque()
        # Those of a lost connection: the broker sends them again if the session has survived.
        self._orphans: dict[int, _Delivery] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._trouble: str | None = None
        # How many connections in a row were closed a moment after their login.
        self._short_lived = 0
        self.ready = False

    @property
    def available(self) -> bool:
        """Whether we are subscribed, and the broker answers."""
        return self.ready and self._link is not None and self._link.responsive

    # ---- connection -----------------------------------------------------------------------------

    async def run(self, dispatcher: Dispatcher, since: str) -> None:
        """Connect, serve, and connect again whenever the connection is lost; until cancelled."""
        self._dispatcher = dispatcher
        self._serving_since = since
        pause = _FIRST_PAUSE
        connected_before = False
        while not self._stopping:
            try:
                link = await self._connect()
                if self._stopping:
                    await link.close()
                    return
                if connected_before:
                    self._metrics.reconnected("mqtt")
                connected_before, pause = True, _FIRST_PAUSE
                connected = time.monotonic()
                error = await asyncio.shield(link.lost)
                self._watch_for_rivals(error, time.monotonic() - connected)
            except LinkError as refused:
                error = refused
            self._disconnected(error)
            if self._stopping:
                return
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  mere jitter
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _connect(self) -> Link:
        try:
            address = BrokerAddress.of(self._settings)
        except OSError as unusable:
            raise LinkError(str(unusable)) from None
        link = Link(
            address,
            identifier=self._instance,
            on_message=self._on_message,
            will=self._presence_will(),
            session_expiry=self._settings.mqtt_session_expiry,
        )
        await link.open()
        if not link.session_present:
            # With the session the duty to acknowledge has gone; the replies still go out.
            self._orphans.clear()
        self._link = link
        self._linked.set()
        try:
            await link.subscribe(self._topics.filters)
            await self._announce(link, "online")
        except (LinkError, asyncio.CancelledError):
            await link.close()
            raise
        self.ready = True
        self._trouble = None
        self._metrics.connected("mqtt", True)
        logger.info(
            "mqtt connected",
            extra={
                "broker": f"{self._settings.mqtt_broker}:{self._settings.mqtt_port}",
                "instance": self._instance,
                "subscribed": ", ".join(self._topics.filters),
            },
        )
        return link

    def _disconnected(self, error: LinkError) -> None:
        self.ready = False
        self._link = None
        self._linked.clear()
        self._metrics.connected("mqtt", False)
        for delivery in self._unsettled:
            delivery.link = None
            self._orphans[delivery.packet_id] = delivery
        self._unsettled.clear()
        if self._stopping or str(error) == self._trouble:
            return
        self._trouble = str(error)
        logger.warning(
            "mqtt unavailable: %s",
            printable(str(error)),
            extra={"broker": f"{self._settings.mqtt_broker}:{self._settings.mqtt_port}"},
        )

    def _watch_for_rivals(self, error: LinkError, lasted: float) -> None:
        """Tell of another client with our name: the two throw each other out for ever.

        MQTT 5 brokers say so (0x8E). Others, and Mosquitto 2.0.11, just close the connection:
        again and again, a moment after each login.
        """
        if self._stopping:
            return
        self._short_lived = self._short_lived + 1 if lasted < _SHORT_LIVED_SECONDS else 0
        if error.reason == SESSION_TAKEN_OVER or self._short_lived == _SHORT_LIVED_IN_A_ROW:
            self._trouble = str(error)
            logger.error(
                "another client connects as %r and the broker closes our connection; "
                "give each bridge a MQTT_INSTANCE of its own",
                self._instance,
            )

    async def drain(self) -> None:
        """Take no new requests, and finish what is in hand; until cancelled by a deadline."""
        self._stopping = True
        link = self._link
        if link is not None:
            try:
                await link.unsubscribe(self._topics.filters)
            except LinkError as error:
                logger.debug("could not unsubscribe: %s", error)
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        """Give up what is still in hand, say that we are offline, and leave."""
        self._stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        link, self._link = self._link, None
        self.ready = False
        if link is None:
            return
        try:
            async with asyncio.timeout(0.5):
                await self._announce(link, "offline")
        except (LinkError, TimeoutError):
            logger.debug("could not say that we are offline")
        await link.close()

    def _presence(self, status: str) -> bytes:
        return orjson.dumps(
            {"status": status, "version": __version__, "since": self._serving_since}
        )

    def _presence_will(self) -> aiomqtt.Will:
        return aiomqtt.Will(self._topics.presence, self._presence("offline"), qos=1, retain=True)

    async def _announce(self, link: Link, status: str) -> None:
        acknowledged = link.publish(
            self._topics.presence, self._presence(status), qos=1, retain=True
        )
        assert acknowledged is not None
        reason = await acknowledged
        if reason >= REFUSED_FROM:
            logger.warning(
                "the broker refuses our presence on %s (reason code 0x%02X)",
                self._topics.presence,
                reason,
            )

    # ---- commands -------------------------------------------------------------------------------

    def hand_over(self, topic: str, payload: bytes, expiry: float) -> Awaitable[int]:
        """See `Publisher.hand_over`."""
        link = self._link
        if link is None or not self.ready:
            raise MqttUnavailable()
        try:
            acknowledged = link.publish(
                topic, payload, qos=1, properties=wire.properties(expiry=_whole_seconds(expiry))
            )
        except LinkError:
            raise MqttUnavailable() from None
        assert acknowledged is not None
        return _Acknowledgement(acknowledged)

    # ---- requests -------------------------------------------------------------------------------

    def _on_message(self, link: Link, message: wire.Message) -> None:
        """Take one message; called as it is read, so that order of receipt is order of work."""
        if message.qos:
            delivery = self._redelivered(message)
            if delivery is not None:
                delivery.link = link
                self._unsettled.append(delivery)
                self._acknowledge_settled()
                return
        loop = asyncio.get_running_loop()
        delivery = _Delivery(message.packet_id, message.qos, time.monotonic(), link, message)
        if message.qos:
            self._unsettled.append(delivery)
        if message.retain:
            self._metrics.dropped("retained")
            self._settle(delivery)
            return
        task = loop.create_task(self._settle_after(delivery), name="mqtt request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _redelivered(self, message: wire.Message) -> _Delivery | None:
        """The request in hand of which this is the broker's repetition on a new connection."""
        orphan = self._orphans.pop(message.packet_id, None)
        return orphan if orphan is not None and orphan.is_repeated_by(message) else None

    async def _settle_after(self, delivery: _Delivery) -> None:
        """One request, from the message to its acknowledgement."""
        message = delivery.message
        assert message is not None
        try:
            await self._serve(delivery, message)
        except Exception:
            # A mistake of ours; unacknowledged, it would hold up all acknowledgements after it.
            logger.exception("a request could not be answered")
            self._metrics.dropped("internal_error")
        self._settle(delivery)

    async def _serve(self, delivery: _Delivery, message: wire.Message) -> None:
        """Answer one request, or drop it by one of the rules."""
        assert self._dispatcher is not None
        asked = self._topics.asked(message.topic)
        envelope = self._open(message, asked)
        back = self._way_back(message, asked, envelope)
        if message.expiry is not None:
            back.expires = delivery.received + message.expiry
            if back.expires <= time.monotonic():
                self._metrics.dropped("expired")
                return
        if not is_plain(back.topic):
            self._metrics.dropped("unanswerable")
            return
        reply = await self._dispatcher.answer(
            Request(
                transport="mqtt",
                operation=asked.operation,
                envelope=envelope,
                received=delivery.received,
                requester=asked.client or back.topic,
                once_id=envelope.request_id or message.correlation or None,
                expires=back.expires,
                on_begun=lambda: self._settle(delivery),
                traceparent=next((v for k, v in back.trace if k == "traceparent"), None),
            )
        )
        await self._deliver(reply, back)

    def _open(self, message: wire.Message, asked: Asked) -> Envelope:
        row = OPERATIONS.get(asked.operation)
        envelope = open_payload(
            message.payload,
            self._settings.max_payload,
            may_be_empty=row is not None and row.always,
        )
        try:
            _check_media_type(message)
        except UnsupportedMediaType as refusal:
            envelope.refusal = refusal
        return envelope

    def _way_back(self, message: wire.Message, asked: Asked, envelope: Envelope) -> _Return:
        """Where the reply goes; a topic that may not be used refuses the request."""
        back = _Return(
            self._topics.default_reply(asked, envelope.request_id),
            envelope.request_id,
            message.qos,
            correlation=message.correlation,
            trace=_trace_of(message),
        )
        named = message.response_topic
        if named is None:
            named = envelope.reply_to
        try:
            self._topics.check_client(asked, OPERATION_NAMES)
            if named is not None:
                back.topic = self._topics.check_reply(named, asked)
        except BridgeError as refusal:
            envelope.refusal = refusal
        return back

    async def _deliver(self, reply: Reply, back: _Return) -> None:
        """Publish a reply; on the next connection if this one is lost before the PUBACK."""
        loop = asyncio.get_running_loop()
        body = reply.encode(back.request_id)
        patience = max(_REPLY_PATIENCE, self._settings.mqtt_session_expiry)
        give_up = min(loop.time() + patience, back.expires or float("inf"))
        while True:
            try:
                link = await self._next_link(give_up)
            except TimeoutError:
                self._metrics.dropped("undeliverable")
                return
            try:
                acknowledged = link.publish(
                    back.topic, body, qos=back.qos, properties=_properties(reply, back)
                )
                reason = 0 if acknowledged is None else await acknowledged
            except LinkError:
                self._give_up_link(link)
                continue
            except PayloadTooLarge as too_large:
                reply = reply_to_error(too_large, self._settings.language)
                body = reply.encode(back.request_id)
                continue
            if reason >= REFUSED_FROM:
                self._metrics.dropped("reply_refused")
                logger.warning(
                    "the broker refused a reply",
                    extra={"topic": printable(back.topic), "reason": f"0x{reason:02X}"},
                )
            return

    async def _next_link(self, give_up: float) -> Link:
        if self._link is None:
            async with asyncio.timeout_at(give_up):
                while self._link is None:
                    await self._linked.wait()
        return self._link

    def _give_up_link(self, link: Link) -> None:
        """Look for the next connection from now on; `run` hears of the loss a moment later."""
        if self._link is link:
            self._link = None
            self._linked.clear()

    def _settle(self, delivery: _Delivery) -> None:
        """Nothing more is owed for this request but its acknowledgement."""
        if not delivery.qos:
            return
        waits = bool(self._unsettled) and self._unsettled[0] is not delivery
        delivery.settle(keep_digest=waits or delivery.link is None)
        self._acknowledge_settled()

    def _acknowledge_settled(self) -> None:
        # MQTT 5.0, section 4.6: PUBACKs in the order in which the PUBLISHes came.
        while self._unsettled and self._unsettled[0].settled:
            delivery = self._unsettled.popleft()
            if delivery.link is not None:
                delivery.link.acknowledge(delivery.packet_id)


def _digest_of(message: wire.Message) -> bytes:
    parts = (message.topic.encode("utf-8", "surrogateescape"), message.correlation or b"")
    digest = hashlib.blake2b(message.payload, digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()


class _Acknowledgement:
    """A command's PUBACK, to be awaited or not; a lost connection leaves its outcome unknown."""

    __slots__ = ("_acknowledged",)

    def __init__(self, acknowledged: "asyncio.Future[int]") -> None:
        self._acknowledged = acknowledged

    def __await__(self) -> Generator[Any, None, int]:
        try:
            return (yield from self._acknowledged.__await__())
        except LinkError:
            raise OutcomeUnknown() from None


def _check_media_type(message: wire.Message) -> None:
    """Whether the payload is said to be JSON, or nothing is said; the property at fault is named.

    Raises:
        UnsupportedMediaType: it is said to be something else.
    """
    declared = message.content_type
    if declared and not _JSON_TYPE.fullmatch(declared):
        raise UnsupportedMediaType("Content Type", declared)
    if message.payload_format not in (None, 0, 1):
        raise UnsupportedMediaType("Payload Format Indicator", message.payload_format)


def _trace_of(message: wire.Message) -> list[tuple[str, str]]:
    """The trace that the request belongs to, as far as it will do."""
    return [
        (name, value)
        for name, value in message.user_properties
        if name in TRACE_SHAPES and TRACE_SHAPES[name].fullmatch(value)
    ]


def _properties(reply: Reply, back: _Return) -> bytes:
    user = [("__stat", str(reply.code))]
    if reply.error is not None:
        user.append(("__stMsg", printable(reply.detail or "", _LONGEST_PROPERTY)))
        if reply.in_operation:
            user.append(("__apErr", "true"))
        if reply.property_name is not None:
            user.append(("__propName", printable(reply.property_name, _LONGEST_PROPERTY)))
        if reply.property_value is not None:
            user.append(("__propVal", printable(reply.property_value, _LONGEST_PROPERTY)))
    left = None
    if back.expires is not None:
        # Not the loop's clock, which stands still during a turn and may lag behind `received`.
        left = _whole_seconds(back.expires - time.monotonic())
    return wire.properties(
        expiry=left,
        content_type=_CONTENT_TYPE,
        correlation=back.correlation,
        user=user + back.trace,
    )


def _whole_seconds(seconds: float) -> int:
    # An expiry of 0 would be delivered as none at all. What the clock's arithmetic adds is no time.
    return max(1, math.ceil(seconds - 1e-6))
