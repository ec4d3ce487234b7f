"""One connection to the broker: aiomqtt, and all that reaches below its public face.

aiomqtt (with paho under it) connects, logs in, subscribes, pings and disconnects. Requests,
replies and their acknowledgements go past it, because as its guide shows it, aiomqtt 2.5
acknowledges a request before any work, hides the reason code of a PUBACK, starts a task a message,
and makes three system calls a packet. What is relied on below the public face is listed in
`tests/test_link.py`, which fails if any of it moves.

- paho's socket is a wrapper of ours (`_create_socket`): we read the real one, hand paho the packets
  that are not PUBLISH or PUBACK, and join what is written in one turn of the loop.
- packet ids up to 60000 are ours; paho counts on from there (`_last_mid`).
- paho's CONNACK callback is kept, for the session's and the broker's limits.

aiomqtt 3 (pure asyncio, manual acknowledgements) will replace this file.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from . import wire
from .errors import PayloadTooLarge
from .settings import Settings

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
_RECEIVE_MAXIMUM = 65535
_OUR_PACKET_IDS = 60000
_READ_BYTES = 256 * 1024
# What a turn of the loop reads at the most. Work paces the turns, and what is not read in time the
# broker may drop: Mosquitto holds 1000 packets for a socket that is full, and lets the rest go,
# PUBACKs among them. What we have read, we can at least refuse.
_READ_MOST = 8 * 1024 * 1024
_TLS_RECORD = 16 * 1024
# When the broker takes what we write too slowly, we read no more requests until it has caught up.
_UNSENT_HIGH = 4 * 1024 * 1024
_UNSENT_LOW = 1024 * 1024

_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class LinkError(Exception):
    """No connection, or no more; `reason` is the MQTT reason code if there is one."""

    def __init__(self, words: str, reason: int | None = None) -> None:
        super().__init__(words)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is, who we are there, and what we speak with it."""

    host: str
    port: int = 1883
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None
    version5: bool = True
    # The largest packet that we take (bytes).
    largest_packet: int = 1024 * 1024

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The broker of the `MQTT_` settings."""
        return cls(
            settings.mqtt_broker,
            settings.mqtt_port,
            settings.mqtt_username,
            settings.mqtt_password.get_secret_value(),
            tls_context(settings),
            settings.mqtt_protocol == "5",
            max(1024 * 1024, 4 * settings.max_payload),
        )


class Link:
    """One connection, from CONNECT until it is lost or closed; never used twice."""

    def __init__(
        self,
        broker: BrokerAddress,
        *,
        identifier: str,
        on_message: Callable[["Link", wire.Message], None],
        will: aiomqtt.Will | None = None,
        session_expiry: int = 0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._version5 = broker.version5
        self._client = _client(broker, identifier, will, session_expiry)
        self._frames = wire.Frames()
        self._socket: socket.socket | None = None
        self._for_paho = _PahoSocket(self)
        self._unsent = bytearray()
        self._fresh: list[bytes] = []
        self._reading = self._writing = self._flush_due = False
        self._pending: dict[int, asyncio.Future[int]] = {}
        self._held: deque[tuple[bytes, bytes, bool, bytes | None, asyncio.Future[int]]] = deque()
        self._last_packet_id = 0
        self._last_heard = self._last_sent = self._loop.time()
        self._watching: asyncio.Task[None] | None = None
        self._send_quota = _RECEIVE_MAXIMUM
        self._maximum_packet: int | None = None
        self.session_present = False
        self.lost: asyncio.Future[LinkError] = self._loop.create_future()
        self._reach_below()

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

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe at QoS 1, without stored retained messages and with the retain flag kept.

        Raises:
            LinkError: the broker refused a filter, or the connection was lost.
        """
        options: Any = 1
        if self._version5:
            options = SubscribeOptions(
                qos=1,
                retainAsPublished=True,
                retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND,
            )
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

    async def close(self) -> None:
        """Leave, and let the session end with us."""
        if not self.lost.done():
            leaving = None
            if self._version5:
                leaving = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
                leaving.SessionExpiryInterval = 0
            self._flush()
            self._client._client.disconnect(properties=leaving)
            # paho wrote and closed at once where the socket took it all; else we wait a moment.
            await asyncio.wait((self.lost,), timeout=0.5)
        self._lose(LinkError("closed"))
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
    ) -> asyncio.Future[int] | None:
        """Hand a message over; at QoS 1 the future is its PUBACK's reason code.

        The future fails with `LinkError` when the connection is lost first.

        Raises:
            LinkError: there is no connection any more; nothing was sent.
            PayloadTooLarge: the broker takes no packet of that size.
        """
        if self.lost.done():
            raise LinkError("not connected")
        encoded = topic.encode()
        props = properties if self._version5 else None
        limit = self._maximum_packet
        if limit is not None and len(encoded) + len(payload) + len(properties) + 16 > limit:
            raise PayloadTooLarge(limit=limit)
        if qos == 0:
            self._write(
                wire.publish(encoded, payload, qos=0, retain=retain, packet_id=0, properties=props)
            )
            return None
        acknowledged: asyncio.Future[int] = self._loop.create_future()
        if len(self._pending) >= self._send_quota:
            self._held.append((encoded, payload, retain, props, acknowledged))
        else:
            self._send(encoded, payload, retain, props, acknowledged)
        return acknowledged

    def acknowledge(self, packet_id: int) -> None:
        """Acknowledge a message that came in at QoS 1."""
        if not self.lost.done():
            self._write(wire.puback(packet_id))

    def _send(
        self,
        topic: bytes,
        payload: bytes,
        retain: bool,
        properties: bytes | None,
        acknowledged: asyncio.Future[int],
    ) -> None:
        packet_id = self._last_packet_id
        while True:
            packet_id = packet_id % _OUR_PACKET_IDS + 1
            if packet_id not in self._pending:
                break
        self._last_packet_id = packet_id
        self._pending[packet_id] = acknowledged
        self._write(
            wire.publish(
                topic, payload, qos=1, retain=retain, packet_id=packet_id, properties=properties
            )
        )

    def _acknowledged(self, packet_id: int, reason: int) -> None:
        acknowledged = self._pending.pop(packet_id, None)
        if acknowledged is not None and not acknowledged.done():
            acknowledged.set_result(reason)
        while self._held and len(self._pending) < self._send_quota:
            held = self._held.popleft()
            # Nobody waits any more for what was cancelled here: it need not leave late.
            if not held[-1].cancelled():
                self._send(*held)

    # ---- reading --------------------------------------------------------------------------------

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = _received(self._socket)
        except _WOULD_BLOCK:
            return
        except OSError as error:
            self._lose(LinkError(str(error)))
            return
        if not data:
            self._lose(LinkError("the broker closed the connection"))
            return
        self._last_heard = self._loop.time()
        try:
            for first, body in self._frames.feed(data):
                self._take(first, body)
        except wire.MalformedPacketError as error:
            self._lose(LinkError(f"the broker sent a malformed packet: {error}"))

    def _take(self, first: int, body: bytes) -> None:
        kind = first >> 4
        if kind == wire.PUBLISH:
            self._on_message(self, wire.read_publish(first, body, with_properties=self._version5))
        elif kind == wire.PUBACK:
            self._acknowledged(*wire.read_puback(body))
        elif kind == wire.DISCONNECT:
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
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._fresh:
            self._unsent += b"".join(self._fresh)
            self._fresh.clear()
        if self._unsent and self._socket is not None:
            try:
                sent = self._socket.send(self._unsent)
            except _WOULD_BLOCK:
                sent = 0
            except OSError as error:
                self._lose(LinkError(str(error)))
                return
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
        if (len(self._unsent) < limit) != self._reading:
            self._reading = not self._reading
            if self._reading:
                self._loop.add_reader(descriptor, self._readable)
            else:
                self._loop.remove_reader(descriptor)

    # ---- below the public face ------------------------------------------------------------------

    def _reach_below(self) -> None:
        below = self._client._client
        below.connect_timeout = _CONNECT_SECONDS
        below._last_mid = _OUR_PACKET_IDS
        create_socket = below._create_socket

        def create_wrapped() -> _PahoSocket:
            return self._for_paho.wrap(create_socket())

        below._create_socket = create_wrapped  # type: ignore[method-assign]
        on_connect = below.on_connect
        assert on_connect is not None

        def on_connack(client: Any, userdata: Any, flags: Any, reason: Any, props: Any) -> None:
            self._on_connack(flags, props)
            on_connect(client, userdata, flags, reason, props)  # type: ignore[call-arg]

        below.on_connect = on_connack

        # These may be called from the thread in which paho connects.
        def watch_socket(*_: object) -> None:
            self._loop.call_soon_threadsafe(self._watch_socket)

        def write(*_: object) -> None:
            self._loop.call_soon_threadsafe(below.loop_write)

        def ignore(*_: object) -> None:
            """The link itself looks after its socket."""

        below.on_socket_open = watch_socket
        below.on_socket_close = ignore
        below.on_socket_register_write = write
        below.on_socket_unregister_write = ignore

    def _on_connack(self, flags: Any, props: Any) -> None:
        self.session_present = bool(getattr(flags, "session_present", False))
        if props is not None:
            self._send_quota = min(_OUR_PACKET_IDS, getattr(props, "ReceiveMaximum", 65535))
            self._maximum_packet = getattr(props, "MaximumPacketSize", None)

    def _on_disconnected(self, disconnected: "asyncio.Future[None]") -> None:
        error = None if disconnected.cancelled() else disconnected.exception()
        reason = _reason_of(error) if error is not None else None
        words = "closed" if error is None else str(error)
        self._lose(LinkError(words, reason))

    async def _watch(self) -> None:
        """Ping a silent broker, and let go of one that stays silent or no longer acknowledges."""
        checked = oldest_since = self._loop.time()
        oldest: asyncio.Future[int] | None = None
        while not self.lost.done():
            await asyncio.sleep(1.0)
            now = self._loop.time()
            # PUBACKs come in order, so that the first of the dictionary is the one longest due.
            first = next(iter(self._pending.values()), None)
            if first is not oldest:
                oldest, oldest_since = first, now
            stalled = now - checked > 2.0
            checked = now
            if stalled:
                # It was we who slept (a suspended machine): hear first what has come meanwhile.
                continue
            silence = now - self._last_heard
            if silence > SILENCE_UNTIL_LOST:
                self._lose(LinkError("the broker does not answer"))
            elif oldest is not None and now - oldest_since > UNACKNOWLEDGED_UNTIL_LOST:
                self._lose(LinkError("the broker does not acknowledge"))
            elif silence >= SILENCE_BEFORE_PING or now - self._last_sent >= _KEEPALIVE_SECONDS / 2:
                # For the broker's keepalive only what we send counts, however much it says itself.
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
        waiting = [*self._pending.values(), *(held[-1] for held in self._held)]
        self._pending.clear()
        self._held.clear()
        for acknowledged in waiting:
            if not acknowledged.done():
                acknowledged.set_exception(LinkError("the connection was lost"))
                # Whoever waits raises it; a command whose request was given up has nobody.
                acknowledged.exception()

    def _attach(self, real: socket.socket) -> None:
        # In the thread in which paho connects, which may outlive the attempt.
        if self.lost.done():
            real.close()
            raise ConnectionAbortedError("the attempt was given up")
        real.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = real


def _received(connected: socket.socket) -> bytes:
    """What the socket holds, up to `_READ_MOST`; nothing at the end of the stream.

    Raises:
        OSError: the connection is broken, or (of `_WOULD_BLOCK`) there is nothing yet.
    """
    piece = data = connected.recv(_READ_BYTES)
    full = _TLS_RECORD if isinstance(connected, ssl.SSLSocket) else _READ_BYTES
    while len(piece) >= full and len(data) < _READ_MOST:
        try:
            piece = connected.recv(_READ_BYTES)
        except _WOULD_BLOCK:
            break
        data += piece
    return data


class _ClosingSocket(ssl.SSLSocket):
    """Closes itself when a handshake fails; paho would leave that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class _PahoSocket:
    """What paho takes for its socket: reads what we give it, writes through us."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._given = bytearray()
        self._real: socket.socket | None = None

    def wrap(self, real: Any) -> "_PahoSocket":
        """Stand in for the socket that paho has connected."""
        self._real = real
        self._link._attach(real)
        return self

    def give(self, first: int, body: bytes) -> None:
        """Let paho read a packet."""
        self._given += bytes((first,)) + wire._to_varint(len(body)) + body

    def pending(self) -> int:
        return len(self._given)

    def recv(self, buffer_size: int) -> bytes:
        if not self._given:
            raise BlockingIOError
        taken = bytes(self._given[:buffer_size])
        del self._given[:buffer_size]
        return taken

    def send(self, buffer: bytes | bytearray) -> int:
        # Rare packets: they go at once, and what a DISCONNECT follows goes before it.
        self._link._fresh.append(bytes(buffer))
        self._link._flush()
        return len(buffer)

    def close(self) -> None:
        """paho is done with it; the link closes the real one when it is lost."""
        self._given.clear()

    def fileno(self) -> int:
        return -1 if self._real is None else self._real.fileno()

    def setblocking(self, flag: bool) -> None:
        if self._real is not None:
            self._real.setblocking(flag)


def _client(
    broker: BrokerAddress, identifier: str, will: aiomqtt.Will | None, session_expiry: int
) -> aiomqtt.Client:
    if broker.tls is not None:
        broker.tls.sslsocket_class = _ClosingSocket
    username = broker.username or None
    password = broker.password or None
    common: dict[str, Any] = {
        "hostname": broker.host,
        "port": broker.port,
        "username": username,
        "password": password if username is not None else None,
        "identifier": identifier,
        "will": will,
        "keepalive": _KEEPALIVE_SECONDS,
        "tls_context": broker.tls,
        "timeout": _CONNECT_SECONDS,
    }
    if not broker.version5:
        return aiomqtt.Client(
            **common,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=session_expiry == 0,
        )
    connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    connect.SessionExpiryInterval = session_expiry
    connect.ReceiveMaximum = _RECEIVE_MAXIMUM
    connect.MaximumPacketSize = broker.largest_packet
    return aiomqtt.Client(
        **common,
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=session_expiry == 0,
        properties=connect,
    )


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """The context for `MQTT_TLS`, which always verifies; None for plain TCP.

    The files are read anew for each connection, so that renewed certificates are taken up.

    Raises:
        OSError: they can't be used; its words name the settings.
    """
    if not (settings.mqtt_tls or settings.mqtt_tls_ca or settings.mqtt_tls_cert):
        return None
    ca, cert, key = (
        None if path is None else str(path)
        for path in (settings.mqtt_tls_ca, settings.mqtt_tls_cert, settings.mqtt_tls_key)
    )
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise OSError(f"MQTT_TLS_CA: {ca!r} holds no PEM certificates ({error})") from None
    if cert is not None:
        try:
            # With a password, as OpenSSL would ask for one at the terminal, and wait.
            context.load_cert_chain(cert, key, password="")
        except OSError as error:
            raise OSError(
                "MQTT_TLS_CERT, MQTT_TLS_KEY: not a PEM certificate and its unencrypted key "
                f"({error})"
            ) from None
    return context


def _look_at(ended: "asyncio.Task[Any]") -> None:
    # Its failure may come when nobody waits for it any more.
    if not ended.cancelled():
        ended.exception()


def _reason_of(error: BaseException) -> int | None:
    code = getattr(error, "rc", None)
    value = getattr(code, "value", code)
    return value if isinstance(value, int) else None
