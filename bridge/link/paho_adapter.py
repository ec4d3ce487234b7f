"""All that reaches below aiomqtt's public face, to paho, but the few calls in `connection.py`.

What is relied on here and there is listed in `tests/link/test_connection.py`, which fails if any
of it moves.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Any

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from . import packets
from .address import BrokerAddress

OUR_PACKET_IDS = 60000
"""Packet ids up to this are ours; paho counts on from there."""

RECEIVE_MAXIMUM = 65535


def client(
    broker: BrokerAddress,
    identifier: str,
    will: aiomqtt.Will | None,
    *,
    session_expiry: int,
    clean: bool,
    timeout: float,
    keepalive: int,
) -> aiomqtt.Client:
    """A client that has not connected yet.

    `session_expiry`, `timeout` (of a connection attempt) and `keepalive` are in seconds.
    """
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
        "keepalive": keepalive,
        "tls_context": broker.tls,
        "timeout": timeout,
    }
    if not broker.version5:
        return aiomqtt.Client(
            **common,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=clean,
        )
    connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    connect.SessionExpiryInterval = session_expiry
    connect.ReceiveMaximum = RECEIVE_MAXIMUM
    connect.MaximumPacketSize = broker.largest_packet
    return aiomqtt.Client(
        **common,
        protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=clean,
        properties=connect,
    )


def take_over(
    aiomqtt_client: aiomqtt.Client,
    stand_in: "PahoSocket",
    *,
    on_connack: Callable[[Any, Any], None],
    socket_opened: Callable[[], None],
) -> None:
    """Put ourselves between paho and its socket, and before aiomqtt where a CONNACK is heard.

    Args:
        on_connack: hears of its flags and properties, before aiomqtt does.
        socket_opened: called in the loop once the socket is connected.
    """
    loop = asyncio.get_running_loop()
    paho = aiomqtt_client._client
    paho.connect_timeout = aiomqtt_client.timeout
    paho._last_mid = OUR_PACKET_IDS
    create_socket, aiomqtts_own = paho._create_socket, paho.on_connect
    assert aiomqtts_own is not None

    def create_wrapped() -> PahoSocket:
        return stand_in.wrap(create_socket())

    def heard(client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        on_connack(flags, properties)
        aiomqtts_own(client, userdata, flags, reason, properties)  # type: ignore[call-arg]

    # These may be called from the thread in which paho connects.
    def watch_socket(*_: object) -> None:
        loop.call_soon_threadsafe(socket_opened)

    def write(*_: object) -> None:
        loop.call_soon_threadsafe(paho.loop_write)

    def ignore(*_: object) -> None:
        """The link itself looks after its socket."""

    paho._create_socket = create_wrapped  # type: ignore[method-assign]
    paho.on_connect = heard
    paho.on_socket_open = watch_socket
    paho.on_socket_close = ignore
    paho.on_socket_register_write = write
    paho.on_socket_unregister_write = ignore


def hear_unsubacks(
    aiomqtt_client: aiomqtt.Client, on_unsuback: Callable[[Sequence[int]], None]
) -> None:
    """Hear of an UNSUBACK's reason codes, before aiomqtt hears that it came."""
    paho = aiomqtt_client._client
    aiomqtts_own = paho.on_unsubscribe
    assert aiomqtts_own is not None

    def heard(client: Any, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        on_unsuback([reason.value for reason in reasons])
        aiomqtts_own(client, userdata, mid, reasons, properties)  # type: ignore[call-arg]

    paho.on_unsubscribe = heard


def subscribe_options(*, retained: bool) -> SubscribeOptions:
    """At QoS 1 with the retain flag kept.

    If stored messages are wanted, these alone bear it.
    """
    handling = (
        SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
        if retained
        else SubscribeOptions.RETAIN_DO_NOT_SEND
    )
    return SubscribeOptions(qos=1, retainAsPublished=not retained, retainHandling=handling)


def identified(identifier: int) -> Properties:
    """A SUBSCRIBE's properties that have the broker name it in each message (1..268435455)."""
    properties = Properties(PacketTypes.SUBSCRIBE)  # type: ignore[no-untyped-call]
    properties.SubscriptionIdentifier = identifier
    return properties


def leaving() -> Properties:
    """A DISCONNECT's properties that end the session at once."""
    properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = 0
    return properties


class _ClosingSocket(ssl.SSLSocket):
    """Closes itself when a handshake fails; paho would leave that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


class PahoSocket:
    """What paho takes for its socket: reads what we give it, writes through us.

    Args:
        attach: takes the socket that paho has connected.
        carry: sends a packet at once, and before it all that waits to be sent.
    """

    def __init__(self, attach: Callable[[Any], None], carry: Callable[[bytes], None]) -> None:
        self._attach = attach
        self._carry = carry
        self._given = bytearray()
        self._real: Any = None

    def wrap(self, real: Any) -> "PahoSocket":
        """Stand in for the socket that paho has connected; called in the thread that connects."""
        self._real = real
        self._attach(real)
        return self

    def give(self, first: int, body: bytes) -> None:
        """Let paho read a packet: its first byte, and what follows the remaining length."""
        self._given += bytes((first,)) + packets.varint(len(body)) + body

    def pending(self) -> int:
        return len(self._given)

    def recv(self, buffer_size: int) -> bytes:
        if not self._given:
            raise BlockingIOError
        taken = bytes(self._given[:buffer_size])
        del self._given[:buffer_size]
        return taken

    def send(self, buffer: bytes | bytearray) -> int:
        self._carry(bytes(buffer))
        return len(buffer)

    def close(self) -> None:
        """paho is done with it; the link closes the real one when it is lost."""
        self._given.clear()

    def fileno(self) -> int:
        return -1 if self._real is None else self._real.fileno()

    def setblocking(self, flag: bool) -> None:
        if self._real is not None:
            self._real.setblocking(flag)
