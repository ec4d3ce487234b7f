"""The MQTT transport: requests in, replies out, acknowledgements, presence, commands.

A request's way: `_on_message` (drop, turn away or accept) -> `_serve` (read, answer, deliver) ->
`Deliveries.settle` (acknowledge, in order of receipt). A reply that could not be delivered because
the connection was lost is sent again on the next one.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, NamedTuple

import aiomqtt
import orjson

from .. import __version__, wire
from ..dispatch import Dispatcher, Request
from ..errors import MqttUnavailable, OutcomeUnknown, PayloadTooLarge
from ..link import (
    REFUSED_FROM,
    SESSION_TAKEN_OVER,
    BrokerAddress,
    Link,
    LinkError,
    NotSentError,
)
from ..logs import printable
from ..metrics import Metrics
from ..operations import OPERATIONS
from ..replies import Reply, reply_to_error
from ..settings import Settings
from ..topics import Topics
from .addressing import Addressing, Dropped, Return, properties
from .deliveries import Deliveries, Delivery

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 3.0
# How long a reply waits for a connection to come back, at the least (seconds).
_REPLY_PATIENCE = 30.0
# How long a request may wait for its turn after it was read (seconds).
_LONGEST_WAIT = 0.5
# While no more replies than this wait, the messages that they answer are not worth forgetting.
_MANY_REPLIES = 256
# A connection that others would not close so soon, and so often.
_SHORT_LIVED_SECONDS, _SHORT_LIVED_IN_A_ROW = 5.0, 3


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
        # Draining, and then leaving for good.
        self._stopping = self._closed = False
        self._addressing = Addressing(settings, self._topics)
        self._deliveries = Deliveries()
        self._tasks: set[asyncio.Task[None]] = set()
        # The PUBACKs to come of replies.
        self._replies: set[asyncio.Future[int]] = set()
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
        """Connect, serve, and connect again whenever the connection is lost; until cancelled.

        While we stop, only to bring out the replies that are still owed.
        """
        self._dispatcher = dispatcher
        self._serving_since = since
        pause = _FIRST_PAUSE
        connected_before = False
        while not self._stopping or self._tasks or self._replies:
            try:
                link = await self._connect()
                if connected_before:
                    self._metrics.reconnected("mqtt")
                connected_before, pause = True, _FIRST_PAUSE
                connected = time.monotonic()
                error = await asyncio.shield(link.lost)
                self._watch_for_rivals(error, time.monotonic() - connected)
            except LinkError as refused:
                error = refused
            self._disconnected(error)
            if self._closed:
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
            self._deliveries.forgotten()
        self._link = link
        self._linked.set()
        try:
            await self._take_up(link)
        except LinkError:
            # Not by a goodbye, which would end the session with all that it holds for us.
            await link.drop()
            raise
        return link

    async def _take_up(self, link: Link) -> None:
        """Subscribe and say so; while we stop, the reverse."""
        if self._stopping:
            await link.unsubscribe(self._topics.filters)
            return
        await link.subscribe(self._topics.filters)
        await self._announce(link, "online")
        if self._stopping:
            await link.unsubscribe(self._topics.filters)
            return
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

    def _disconnected(self, error: LinkError) -> None:
        self.ready = False
        self._link = None
        self._linked.clear()
        self._metrics.connected("mqtt", False)
        self._deliveries.lost()
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
        while self._tasks or self._replies:
            owed: set[asyncio.Future[Any]] = {*self._tasks, *self._replies}
            await asyncio.wait(owed)

    async def close(self) -> None:
        """Give up what is still in hand, say that we are offline, and leave."""
        self._stopping = self._closed = True
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
        # Before the replies that wait for a slow broker: there may be no time for all of these.
        acknowledged = link.publish(
            self._topics.presence, self._presence(status), qos=1, retain=True, never_late=True
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

    def hand_over(
        self, topic: str, payload: bytes, expires: float, on_left: Callable[[], None]
    ) -> "_Acknowledgement":
        """See `Publisher.hand_over`."""
        if self._link is None:
            raise MqttUnavailable()
        try:
            acknowledged = self._link.publish(
                topic, payload, qos=1, expires=expires, never_late=True, on_left=on_left
            )
        except LinkError:
            raise MqttUnavailable() from None
        assert acknowledged is not None
        return _Acknowledgement(acknowledged)

    # ---- requests -------------------------------------------------------------------------------

    def _on_message(self, link: Link, message: wire.Message) -> None:
        """Take one message; called as it is read, so that order of receipt is order of work."""
        if self._closed:
            return
        delivery = self._deliveries.arrived(link, message)
        if delivery is None:
            return
        if message.retain:
            self._drop("retained", delivery)
        elif not self._is_turned_away(delivery, message):
            self._begin(self._serve(delivery, message), delivery)

    def _drop(self, reason: str, delivery: Delivery) -> None:
        self._metrics.dropped(reason)
        self._deliveries.settle(delivery)

    def _begin(self, work: Coroutine[Any, Any, None], delivery: Delivery) -> None:
        task = asyncio.get_running_loop().create_task(
            self._watched(work, delivery), name="mqtt request"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watched(self, work: Coroutine[Any, Any, None], delivery: Delivery) -> None:
        try:
            await work
        except Exception:
            # A mistake of ours; unacknowledged, it would hold up all acknowledgements after it.
            logger.exception("a request could not be answered")
            self._drop("internal_error", delivery)

    async def _serve(self, delivery: Delivery, message: wire.Message) -> None:
        """Answer one request, or drop it by one of the rules."""
        assert self._dispatcher is not None
        try:
            request, back = self._read(delivery, message)
        except Dropped as dropped:
            self._drop(dropped.reason, delivery)
            return
        self._send_off(await self._dispatcher.answer(request), back, delivery)

    def _read(self, delivery: Delivery, message: wire.Message) -> tuple[Request, Return]:
        return self._addressing.read(message, lambda: self._deliveries.settle(delivery))

    def _is_turned_away(self, delivery: Delivery, message: wire.Message) -> bool:
        """Refuse a request without a task, when no more can be taken; false: it is to be served.

        What has waited for its turn for long is refused too, wherever there is room just now: more
        comes than we can do, and what we do is better done for those who still wait for it.
        """
        assert self._dispatcher is not None
        overdue = time.monotonic() - message.read > _LONGEST_WAIT
        arriving = self._settings.max_in_flight if overdue else 0
        if not self._dispatcher.is_full(arriving):
            return False
        try:
            request, back = self._read(delivery, message)
        except Dropped as dropped:
            self._drop(dropped.reason, delivery)
            return True
        except Exception:
            # A mistake of ours, which costs this request its answer and no other.
            logger.exception("a request could not be read")
            self._drop("internal_error", delivery)
            return True
        row = OPERATIONS.get(request.operation)
        if row is None or not row.over_mqtt or request.envelope.refusal is not None:
            return False
        if not self._dispatcher.turns_away(row, request.requester, request.once_id, arriving):
            return False
        self._send_off(self._dispatcher.turned_away(row, request), back, delivery)
        return True

    # ---- replies --------------------------------------------------------------------------------

    def _send_off(self, reply: Reply, back: Return, delivery: Delivery) -> None:
        """Publish a reply; when the broker has it, its request is settled.

        Without a task: thousands may wait for a slow broker, and each would keep all that its
        request was.
        """
        link = self._link
        try:
            if link is None:
                raise LinkError("not connected")
            acknowledged = self._publish(link, reply, back)
        except (LinkError, PayloadTooLarge):
            self._begin(self._deliver(reply, back, delivery), delivery)
            return
        if acknowledged is None:
            self._deliveries.settle(delivery)
            return
        if len(self._replies) > _MANY_REPLIES:
            delivery.forget_message()
        self._replies.add(acknowledged)
        sent = _Sent(reply, back, delivery)
        acknowledged.add_done_callback(partial(self._sent_off, sent))

    def _sent_off(self, sent: "_Sent", acknowledged: "asyncio.Future[int]") -> None:
        self._replies.discard(acknowledged)
        reply, back, delivery = sent
        if acknowledged.exception() is not None:
            if not self._closed:
                self._begin(self._deliver(reply, back, delivery), delivery)
            return
        self._note_reason(acknowledged.result(), back)
        self._deliveries.settle(delivery)

    async def _deliver(self, reply: Reply, back: Return, delivery: Delivery) -> None:
        """Publish a reply that could not just be sent off: later, or with less in it."""
        loop = asyncio.get_running_loop()
        patience = max(_REPLY_PATIENCE, self._settings.mqtt_session_expiry)
        give_up = min(loop.time() + patience, back.expires or float("inf"))
        try:
            while not await self._is_delivered(reply, back, give_up):
                if back.bare:
                    raise TimeoutError
                # Correlation Data may be so long that nothing else fits beside it.
                back.bare = reply.code == PayloadTooLarge.code
                reply = reply_to_error(
                    PayloadTooLarge(limit=self._settings.max_payload), self._settings.language
                )
        except TimeoutError:
            self._drop_reply("undeliverable", back)
        self._deliveries.settle(delivery)

    async def _is_delivered(self, reply: Reply, back: Return, give_up: float) -> bool:
        """Publish on this connection or the next; false if the broker takes no such packet.

        Raises:
            TimeoutError: there was no connection in time.
        """
        while True:
            link = await self._next_link(give_up)
            try:
                acknowledged = self._publish(link, reply, back)
                if acknowledged is not None:
                    self._note_reason(await acknowledged, back)
                return True
            except LinkError:
                self._give_up_link(link)
            except PayloadTooLarge:
                return False

    def _publish(self, link: Link, reply: Reply, back: Return) -> "asyncio.Future[int] | None":
        return link.publish(
            back.topic,
            b"" if back.bare else reply.encode(back.request_id),
            qos=back.qos,
            properties=properties(reply, back),
            expires=back.expires,
        )

    def _note_reason(self, reason: int, back: Return) -> None:
        if reason >= REFUSED_FROM:
            self._drop_reply("reply_refused", back, f"0x{reason:02X}")

    def _drop_reply(self, why: str, back: Return, reason: str | None = None) -> None:
        self._metrics.dropped(why)
        logger.warning(
            "a reply could not be delivered",
            extra={"why": why, "topic": printable(back.topic), "reason": reason},
        )

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


class _Sent(NamedTuple):
    """A reply that was handed to a connection."""

    reply: Reply
    back: Return
    delivery: Delivery


class _Acknowledgement:
    """A command's PUBACK, to be awaited or not; one that does not come is told by our errors."""

    __slots__ = ("_acknowledged",)

    def __init__(self, acknowledged: "asyncio.Future[int]") -> None:
        self._acknowledged = acknowledged

    def __await__(self) -> Generator[Any, None, int]:
        try:
            return (yield from self._acknowledged.__await__())
        except NotSentError:
            raise MqttUnavailable() from None
        except LinkError:
            raise OutcomeUnknown() from None

    def cancel(self) -> bool:
        """See `calls.Acknowledgement`."""
        return self._acknowledged.cancel()
