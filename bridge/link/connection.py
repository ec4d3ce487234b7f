"""The connection itself: from CONNECT until it is lost or closed."""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.enums import MQTTErrorCode

from ..errors import PayloadTooLarge
from . import loops, packets, paho_adapter
from .address import BrokerAddress
from .inbox import SLEPT_SECONDS, Inbox
from .outbox import LinkError, Outbox, Outgoing, with_expiry
from .stream import READ_MOST, WOULD_BLOCK, received

# A broker that says nothing for so long, though pinged, is taken for gone (seconds).
SILENCE_BEFORE_PING = 2.0
SILENCE_UNTIL_LOST = 6.0
# A PUBACK that does not come for so long never will: Mosquitto drops PUBACKs too, for a client that
# reads too slowly, and each that is missing takes its place in the send quota for good. Only a new
# connection frees it (MQTT 5.0, section 4.4).
UNACKNOWLEDGED_UNTIL_LOST = 10.0

SESSION_TAKEN_OVER = 0x8E
REFUSED_FROM = 0x80

_CONNECT_SECONDS = 5.0
_KEEPALIVE_SECONDS = 30
# When the broker takes what we write too slowly, we read no more until it has caught up (bytes).
_UNSENT_HIGH = 4 * 1024 * 1024
_UNSENT_LOW = 1024 * 1024
# How often we look whether we are awake, and the broker too.
_WATCH_SECONDS = 0.25


class Link:
    """One connection, from CONNECT until it is lost or closed; never used twice.

    Raises:
        RuntimeError: the event loop can't watch a socket.
    """

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
        # Whether the network connection (and TLS) stood, whatever the broker then said.
        self.reached_broker = False
        self._client = paho_adapter.client(
            broker,
            identifier,
            will,
            session_expiry=session_expiry,
            clean=clean or session_expiry == 0,
            timeout=_CONNECT_SECONDS,
            keepalive=_KEEPALIVE_SECONDS,
        )
        self._socket: socket.socket | None = None
        self._for_paho = paho_adapter.PahoSocket(self)
        self._unsent = bytearray()
        self._fresh: list[bytes] = []
        self._reading = self._writing = self._flush_due = False
        self._outbox = Outbox(self._fresh.append, self._flush_soon)
        self._inbox = Inbox(
            self._take, self._outbox.acknowledged, self._malformed, self._watch_socket
        )
        self._last_heard = self._last_sent = self._last_ping = self._loop.time()
        self._watching: asyncio.Task[None] | None = None
        self._maximum_packet: int | None = None
        self.session_present = False
        self.lost: asyncio.Future[LinkError] = self._loop.create_future()
        paho_adapter.take_over(
            self._client,
            self._for_paho,
            timeout=_CONNECT_SECONDS,
            on_connack=self._on_connack,
            socket_opened=self._watch_socket,
        )

    # ---- life -----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and log in.

        Raises:
            LinkError: the broker can't be reached, or refuses us.
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
                self._lose(LinkError("not connected"))
        self._client._disconnected.add_done_callback(self._on_disconnected)
        self._watching = self._loop.create_task(self._watch(), name="mqtt watch")

    async def subscribe(self, filters: Sequence[str], *, retained: bool = False) -> None:
        """Subscribe at QoS 1, with the retain flag kept.

        Args:
            retained: whether stored retained messages are wanted.

        Raises:
            LinkError: the broker refused a filter, or the connection was lost.
        """
        options: Any = 1
        if self.version5:
            options = paho_adapter.subscribe_options(retained=retained)
        granted: Sequence[Any] = await self._unless_lost(
            self._client.subscribe([(topic, options) for topic in filters])
        )
        for topic, code in zip(filters, granted, strict=True):
            reason = code if isinstance(code, int) else int(code.value)
            if reason >= REFUSED_FROM:
                raise LinkError(f"the broker refused the subscription to {topic}", reason)

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe.

        Raises:
            LinkError: no acknowledgement came.
        """
        await self._unless_lost(self._client.unsubscribe(list(filters)))

    async def _unless_lost(self, call: Coroutine[Any, Any, Any]) -> Any:
        """What a call of aiomqtt returns, in a task of its own.

        It waits by `asyncio.wait_for`, which before Python 3.12 may swallow a cancellation, and
        it waits its whole time for the answer of a broker that is gone.

        Raises:
            LinkError: the call failed, or the connection was lost first.
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
            self._flush()
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
        silence = self._loop.time() - self._last_heard
        return not self.lost.done() and silence < SILENCE_BEFORE_PING + 1.5

    # ---- what requests cost ---------------------------------------------------------------------

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        properties: bytes = b"",
        expires: float | None = None,
        never_late: bool = False,
        on_left: Callable[[], None] | None = None,
    ) -> asyncio.Future[int] | None:
        """Hand a message over; at QoS 1 the future is its PUBACK's reason code.

        At QoS 1 it may have to wait until the broker takes more. The future fails with
        `NotSentError` if it never leaves, and with `LinkError` when the connection is lost after
        that. What is cancelled before it leaves never does.

        Args:
            properties: all but the Message Expiry.
            expires: on the monotonic clock; what is left of it goes along as Message Expiry.
            never_late: it does not leave once that has passed.
            on_left: called when it leaves.

        Raises:
            LinkError: there is no connection any more; nothing was sent.
            PayloadTooLarge: the broker takes no packet of that size.
        """
        if self.lost.done():
            raise LinkError("not connected")
        encoded = topic.encode()
        props = properties if self.version5 else None
        limit = self._maximum_packet
        if limit is not None and len(encoded) + len(payload) + len(properties) + 21 > limit:
            raise PayloadTooLarge(limit=limit)
        if qos == 0:
            props = with_expiry(props, expires)
            self._write(
                packets.publish(
                    encoded, payload, qos=0, retain=retain, packet_id=0, properties=props
                )
            )
            return None
        acknowledged: asyncio.Future[int] = self._loop.create_future()
        self._outbox.put(
            Outgoing(
                encoded,
                payload,
                retain,
                props,
                expires,
                never_late,
                on_left,
                acknowledged,
            )
        )
        return acknowledged

    def acknowledge(self, packet_id: int) -> None:
        """Acknowledge a message that came in at QoS 1."""
        if not self.lost.done():
            self._write(packets.puback(packet_id))

    # ---- reading --------------------------------------------------------------------------------

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = received(self._socket)
        except WOULD_BLOCK:
            return
        except OSError as error:
            self._lose(LinkError(str(error)))
            return
        if not data:
            self._lose(LinkError("the broker closed the connection"))
            return
        self._last_heard = self._loop.time()
        self._inbox.feed(data, all_read=len(data) < READ_MOST)
        # There may be too much of it now.
        self._watch_socket()

    def _malformed(self, error: packets.MalformedPacketError) -> None:
        self._lose(LinkError(f"the broker sent a malformed packet: {error}"))

    def _take(self, first: int, body: bytes, came: float, read: float) -> None:
        kind = first >> 4
        if kind == packets.PUBLISH:
            message = packets.read_publish(first, body, with_properties=self.version5)
            message.came, message.read = came, read
            self._on_message(self, message)
        elif kind == packets.DISCONNECT:
            # Not left to paho: the end of the stream, which comes with it, would be heard first.
            reason = body[0] if body else 0
            words = f"the broker ended the connection (reason code 0x{reason:02X})"
            self._lose(LinkError(words, reason))
        else:
            self._for_paho.give(first, body)
            while self._for_paho.pending() and not self.lost.done():
                # Once paho has given the connection up, it reads no more.
                if self._client._client.loop_read() == MQTTErrorCode.MQTT_ERR_NO_CONN:
                    break

    # ---- writing --------------------------------------------------------------------------------

    def _write(self, packet: bytes) -> None:
        self._fresh.append(packet)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._socket is not None:
            self._outbox.send()
        if self._fresh:
            self._unsent += b"".join(self._fresh)
            self._fresh.clear()
        if self._unsent and self._socket is not None:
            try:
                sent = self._socket.send(self._unsent)
            except WOULD_BLOCK:
                sent = 0
            except OSError as error:
                self._lose(LinkError(str(error)))
                return
            if sent:
                del self._unsent[:sent]
                self._last_sent = self._loop.time()
        self._watch_socket()

    def _watch_socket(self) -> None:
        """Ask the loop for reading, unless too much is unsent, and for writing, if anything is."""
        if self._socket is None:
            return
        descriptor = self._socket.fileno()
        if bool(self._unsent) != self._writing:
            self._writing = not self._writing
            if self._writing:
                self._loop.add_writer(descriptor, self._flush)
            else:
                self._loop.remove_writer(descriptor)
        limit = _UNSENT_HIGH if self._reading else _UNSENT_LOW
        wanted = len(self._unsent) < limit and not self._inbox.is_full
        if wanted != self._reading:
            self._reading = not self._reading
            if self._reading:
                self._loop.add_reader(descriptor, self._readable)
            else:
                self._loop.remove_reader(descriptor)

    # ---- what paho tells ------------------------------------------------------------------------

    def _on_connack(self, flags: Any, props: Any) -> None:
        self.session_present = bool(getattr(flags, "session_present", False))
        if props is not None:
            self._outbox.quota = min(
                paho_adapter.OUR_PACKET_IDS, getattr(props, "ReceiveMaximum", 65535)
            )
            self._maximum_packet = getattr(props, "MaximumPacketSize", None)

    def _on_disconnected(self, disconnected: "asyncio.Future[None]") -> None:
        error = None if disconnected.cancelled() else disconnected.exception()
        reason = _reason_of(error) if error is not None else None
        words = "closed" if error is None else str(error)
        self._lose(LinkError(words, reason))

    def carry(self, packet: bytes) -> None:
        """See `paho_adapter.Carrier`."""
        # Rare packets: they go at once, and what a DISCONNECT follows goes before it.
        self._fresh.append(packet)
        self._flush()

    async def _watch(self) -> None:
        """Ping a silent broker, and let go of one that stays silent or no longer acknowledges."""
        checked = oldest_since = time.monotonic()
        oldest: Outgoing | None = None
        while not self.lost.done():
            await asyncio.sleep(_WATCH_SECONDS)
            now = time.monotonic()
            if self._outbox.oldest is not oldest:
                oldest, oldest_since = self._outbox.oldest, now
            slept = now - checked > 2 * SLEPT_SECONDS
            checked = now
            if slept:
                # A suspended process or machine: hear first what has come meanwhile.
                continue
            if self._reading:
                # Or it would have been read by now.
                self._inbox.nothing_came()
            self._check_broker(None if oldest is None else now - oldest_since)

    def _check_broker(self, oldest_age: float | None) -> None:
        now = self._loop.time()
        # One that we don't listen to, but that takes what we write, is there.
        silence = now - (self._last_heard if self._reading else self._last_sent)
        if silence > SILENCE_UNTIL_LOST:
            self._lose(LinkError("the broker does not answer"))
        elif oldest_age is not None and oldest_age > UNACKNOWLEDGED_UNTIL_LOST:
            self._lose(LinkError("the broker does not acknowledge"))
        elif silence >= SILENCE_BEFORE_PING or now - self._last_sent >= _KEEPALIVE_SECONDS / 2:
            # For the broker's keepalive only what we send counts, however much it says itself.
            self._ping()

    def _ping(self) -> None:
        now = self._loop.time()
        if now - self._last_ping >= 1.0:
            self._last_ping = now
            self._client._client._send_pingreq()

    def _lose(self, error: LinkError) -> None:
        if not self.lost.done():
            self.lost.set_result(error)
        if self._socket is not None:
            lost_socket, self._socket = self._socket, None
            self._loop.remove_reader(lost_socket.fileno())
            self._loop.remove_writer(lost_socket.fileno())
            lost_socket.close()
            # Releases what paho keeps of it (a socket pair, its own state).
            self._client._client._sock_close()
        self._inbox.clear()
        self._outbox.fail()

    def attach(self, real: socket.socket) -> None:
        """See `paho_adapter.Carrier`."""
        # In the thread in which paho connects, which may outlive the attempt.
        if self.lost.done():
            real.close()
            raise ConnectionAbortedError("the attempt was given up")
        real.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reached_broker = True
        self._socket = real


def _look_at(ended: "asyncio.Task[Any]") -> None:
    # Its failure may come when nobody waits for it any more.
    if not ended.cancelled():
        ended.exception()


def _reason_of(error: BaseException) -> int | None:
    code = getattr(error, "rc", None)
    value = getattr(code, "value", code)
    return value if isinstance(value, int) else None
