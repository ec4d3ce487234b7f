"""The connection itself: from CONNECT until it is lost or closed."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.enums import MQTTErrorCode

from ..errors import PayloadTooLarge
from . import loops, packets, paho_adapter
from .address import BrokerAddress
from .heartbeat import KEEPALIVE_SECONDS, SILENCE_BEFORE_PING, Heartbeat
from .inbox import Inbox
from .limits import BrokerLimits
from .outbox import LinkError, Outbox, Outgoing, all_properties
from .stream import Stream

SESSION_TAKEN_OVER = 0x8E
REFUSED_FROM = 0x80

_CONNECT_SECONDS = 5.0


class Link:
    """One connection, from CONNECT until it is lost or closed; never used twice.

    Raises RuntimeError if the event loop can't watch a socket.
    """

    # Whether the broker closed the connection instead of answering our CONNECT.
    hung_up = False
    # Whether TCP (and TLS) was connected, whatever followed.
    reached_broker = False
    session_present = False
    limits = BrokerLimits()
    # The reason codes of the last UNSUBACK.
    _unsuback: Sequence[int] = ()

    def __init__(
        self,
        broker: BrokerAddress,
        *,
        identifier: str,
        on_message: Callable[["Link", packets.Message], None],
        will: aiomqtt.Will | None = None,
        session_expiry: int = 0,
        clean: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        loops.check(self._loop)
        self._on_message = on_message
        self.version5 = broker.version5
        self._client = paho_adapter.client(
            broker,
            identifier,
            will,
            session_expiry=session_expiry,
            clean=clean or session_expiry == 0,
            timeout=_CONNECT_SECONDS,
            keepalive=KEEPALIVE_SECONDS,
        )
        self._for_paho = paho_adapter.PahoSocket(self._attach, self._carry)
        self._stream = Stream(
            on_data=lambda data, all_read: self._inbox.feed(data, all_read=all_read),
            on_lost=lambda words: self._lose(LinkError(words)),
            before_write=self._before_write,
            may_read=lambda: not self._inbox.is_full,
        )
        self._outbox = Outbox(self._stream.put, self._stream.flush_soon)
        self._inbox = Inbox(
            self._take,
            self._outbox.acknowledged,
            self._malformed,
            self._stream.watch,
            broker.largest_packet,
        )
        self._watching: asyncio.Task[None] | None = None
        self.lost: asyncio.Future[LinkError] = self._loop.create_future()
        # One at a time: aiomqtt does not say whose reason codes came.
        self._unsubscribing = asyncio.Lock()
        paho_adapter.take_over(
            self._client,
            self._for_paho,
            on_connack=self._on_connack,
            socket_opened=self._stream.watch,
        )
        paho_adapter.hear_unsubacks(self._client, self._on_unsuback)

    async def open(self) -> None:
        """Connect and log in.

        Raises LinkError if the broker can't be reached, or (with its reason code) refuses us.
        """
        entering = self._loop.create_task(self._client.__aenter__(), name="mqtt connect")
        entering.add_done_callback(_look_at)
        try:
            await asyncio.wait(
                (entering, self.lost),
                timeout=2 * _CONNECT_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self.lost.done():
                # A refusal and its reason may still be on their way through aiomqtt.
                await asyncio.wait((entering,), timeout=0.05)
            if not entering.done():
                raise self.lost.result() if self.lost.done() else LinkError("no CONNACK in time")
            await entering
        except MqttConnectError as error:
            raise LinkError(str(error), _reason_of(error)) from None
        except (aiomqtt.MqttError, OSError, ssl.SSLError, ValueError) as error:
            raise LinkError(str(error) or type(error).__name__) from None
        finally:
            entering.cancel()
            if not (entering.done() and not entering.cancelled() and not entering.exception()):
                self.hung_up = self.reached_broker and self.lost.done()
                self._lose(LinkError("not connected"))
        self._client._disconnected.add_done_callback(self._on_disconnected)
        heartbeat = Heartbeat(
            self._stream,
            self._inbox,
            self._outbox,
            send_ping=self._client._client._send_pingreq,
            lose=self._lose,
            keepalive=self.limits.keepalive or KEEPALIVE_SECONDS,
        )
        self._watching = self._loop.create_task(heartbeat.run(), name="mqtt heartbeat")

    async def subscribe(
        self, filters: Sequence[str], *, retained: bool = False, identifier: int | None = None
    ) -> None:
        """Subscribe at QoS 1, with the retain flag kept.

        `retained`: stored messages are wanted too; then these alone bear the flag.

        `identifier` comes with each message, where the broker can do so (MQTT 5.0, 3.8.2.1.2).

        Raises LinkError if the broker refuses a filter (with its code), or the connection is lost.
        """
        options: Any = 1
        properties = None
        if self.version5:
            options = paho_adapter.subscribe_options(retained=retained)
            if identifier is not None and self.limits.subscription_identifiers:
                properties = paho_adapter.identified(identifier)
        granted: Sequence[Any] = await self._unless_lost(
            self._client.subscribe([(topic, options) for topic in filters], properties=properties)
        )
        if len(granted) != len(filters):
            raise LinkError("the broker's SUBACK has another number of codes than the SUBSCRIBE")
        for topic, code in zip(filters, granted, strict=True):
            reason = code if isinstance(code, int) else int(code.value)
            if reason >= REFUSED_FROM:
                raise LinkError(f"the broker refused the subscription to {topic}", reason)

    async def unsubscribe(self, filters: Sequence[str]) -> Sequence[int]:
        """Unsubscribe; the reason code of each filter, none on 3.1.1.

        Raises LinkError if no UNSUBACK comes.
        """
        async with self._unsubscribing:
            await self._unless_lost(self._client.unsubscribe(list(filters)))
            return self._unsuback

    async def _unless_lost(self, call: Coroutine[Any, Any, Any]) -> Any:
        """What a call of aiomqtt returns, in a task of its own; LinkError if it fails.

        It waits by `asyncio.wait_for`, which before Python 3.12 may swallow a cancellation, and it
        waits its whole time for the answer of a broker that is gone.
        """
        calling = self._loop.create_task(call, name="mqtt call")
        calling.add_done_callback(_look_at)
        try:
            await asyncio.wait((calling, self.lost), return_when=asyncio.FIRST_COMPLETED)
            if not calling.done():
                raise self.lost.result()
            return calling.result()
        except aiomqtt.MqttError as error:
            raise LinkError(str(error)) from None
        finally:
            calling.cancel()

    async def drop(self) -> None:
        """Give the connection up without a goodbye: the session stays, and the will speaks."""
        self._lose(LinkError("given up"))
        await self._end_watch()

    async def close(self, *, keep_session: bool = False) -> None:
        """Leave; the session ends with us unless it is to be kept."""
        if not self.lost.done():
            ends_session = self.version5 and not keep_session
            leaving = paho_adapter.leaving() if ends_session else None
            self._stream.flush()
            self._client._client.disconnect(properties=leaving)
            # paho wrote and closed at once where the socket took it all; else we wait a moment.
            await asyncio.wait((self.lost,), timeout=0.5)
        self._lose(LinkError("closed"))
        await self._end_watch()

    async def _end_watch(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    @property
    def responsive(self) -> bool:
        """Whether the broker has been heard of late."""
        silence = self._loop.time() - self._stream.last_heard
        return not self.lost.done() and silence < SILENCE_BEFORE_PING + 1.5

    @property
    def is_congested(self) -> bool:
        """Whether 64 MiB wait already for the broker to take them."""
        return self._outbox.is_full

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        properties: bytes = b"",
        correlation: bytes | None = None,
        expires: float | None = None,
        never_late: bool = False,
        on_left: Callable[[], None] | None = None,
    ) -> asyncio.Future[int] | None:
        """Hand a message over; at QoS 1 the future is its PUBACK's reason code.

        It may have to wait until the broker takes more. The future fails with `NotSentError` if it
        never leaves (as when it is cancelled before), and with `LinkError` if the connection is
        lost after that.

        Args:
            properties: all but Correlation Data, which is not copied while it waits, and expiry.
            expires: on the monotonic clock; what is left of it goes along as Message Expiry.
            never_late: it does not leave once that has passed.
            on_left: called when it leaves.

        Raises:
            LinkError: there is no connection any more; nothing was sent.
            PayloadTooLarge: the broker takes no packet of that size.
        """
        if self.lost.done():
            raise LinkError("not connected")
        encoded, props = topic.encode(), properties if self.version5 else None
        limit = self.limits.maximum_packet
        size = len(encoded) + len(payload) + len(properties) + len(correlation or b"") + 24
        if limit is not None and size > limit:
            raise PayloadTooLarge(limit=limit)
        if qos == 0:
            props = all_properties(props, correlation, expires)
            packet = packets.publish(
                encoded, payload, qos=0, retain=retain, packet_id=0, properties=props
            )
            self._stream.write(packet)
            return None
        puback: asyncio.Future[int] = self._loop.create_future()
        self._outbox.put(
            Outgoing(
                encoded, payload, retain, props, correlation, expires, never_late, on_left, puback
            )
        )
        return puback

    def acknowledge(self, packet_id: int) -> None:
        """Acknowledge a message of QoS 1; does nothing once the connection is lost."""
        if not self.lost.done():
            self._stream.write(packets.puback(packet_id))

    def _malformed(self, error: packets.MalformedPacketError) -> None:
        self._lose(LinkError(f"the broker sent a malformed packet: {error}"))

    def _take(self, first: int, body: bytes, came: float, read: float) -> None:
        kind = first >> 4
        if kind == packets.PUBLISH:
            message = packets.read_publish(first, body, with_properties=self.version5)
            message.came, message.read = came, read
            self._on_message(self, message)
        elif kind == packets.DISCONNECT:
            # Not left to paho, which would report the end of the stream first.
            reason = body[0] if body else 0
            words = f"the broker ended the connection (reason code 0x{reason:02X})"
            self._lose(LinkError(words, reason))
        else:
            self._for_paho.give(first, body)
            while self._for_paho.pending() and not self.lost.done():
                # paho has given the connection up.
                if self._client._client.loop_read() == MQTTErrorCode.MQTT_ERR_NO_CONN:
                    break

    def _on_connack(self, flags: Any, props: Any) -> None:
        self.session_present = bool(getattr(flags, "session_present", False))
        if props is not None:
            self.limits = BrokerLimits.of(props)
            self._outbox.quota = min(paho_adapter.OUR_PACKET_IDS, self.limits.receive_maximum)

    def _on_unsuback(self, reasons: Sequence[int]) -> None:
        self._unsuback = reasons

    def _on_disconnected(self, disconnected: "asyncio.Future[None]") -> None:
        error = None if disconnected.cancelled() else disconnected.exception()
        reason = _reason_of(error) if error is not None else None
        words = "closed" if error is None else str(error)
        self._lose(LinkError(words, reason))

    def _carry(self, packet: bytes) -> None:
        # These packets are rare. What was written before a DISCONNECT leaves before it.
        self._stream.put(packet)
        self._stream.flush()

    def _before_write(self) -> None:
        self._outbox.send()

    def _lose(self, error: LinkError) -> None:
        if not self.lost.done():
            self.lost.set_result(error)
        if self._stream.close():
            # Releases what paho keeps of it (a socket pair, its own state).
            self._client._client._sock_close()
        if self._watching is not None:
            self._watching.cancel()
        self._inbox.clear()
        self._outbox.fail()

    def _attach(self, real: socket.socket) -> None:
        self._stream.attach(real)
        self.reached_broker = True


def _look_at(ended: "asyncio.Task[Any]") -> None:
    # Nobody may await its failure any more, which asyncio would log.
    if not ended.cancelled():
        ended.exception()


def _reason_of(error: BaseException) -> int | None:
    code = getattr(error, "rc", None)
    value = getattr(code, "value", code)
    return value if isinstance(value, int) else None
