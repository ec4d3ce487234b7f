"""One port for MQTT 5 and MQTT 3.1.1 in front of rumqttd, and a workaround for two of its faults.

rumqttd needs a listener for each version, and its listener for 3.1.1 panics when a subscriber gets
a message with MQTT 5 properties, as all our replies and commands have. So rumqttd listens for MQTT
5 only, and 3.1.1 is translated here: most packets of MQTT 5 have a block of properties, which is
added empty on the way to the broker and removed on the way back (MQTT 5.0, chapter 3).

To a client with 100 unacknowledged messages rumqttd sends nothing more, not even PUBACKs. The
bridge acknowledges a request after the PUBACK of its reply, so that 100 requests at once would
stall it. Therefore all subscriptions are made at QoS 0 (MQTT 5.0, section 3.9.3), which loses
nothing over loopback.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ..link import packets
from .loopback import LOOPBACK, free_port, wanted_port

USUAL_PORT = 1883

_CONNECT, _CONNACK, _SUBSCRIBE, _SUBACK, _UNSUBSCRIBE, _UNSUBACK = 1, 2, 8, 9, 10, 11
_PUBACK, _PUBREC, _PUBREL, _PUBCOMP, _DISCONNECT = 4, 5, 6, 7, 14
_NAME = b"\x00\x04MQTT"
_LEVEL_311, _LEVEL_5 = 4, 5
_HAS_WILL = 0x04
_QOS = 0x03
_NO_PROPERTIES = b"\x00"
# The one reason that 3.1.1 has for a broker's own troubles.
_SERVER_UNAVAILABLE = 3
_FAILURE = 0x80
_READ_BYTES = 64 * 1024

_Translate = Callable[[int, bytes], bytes]


@asynccontextmanager
async def front_door(broker_port: int, wanted: int | None = None) -> AsyncIterator[int]:
    """Listen for clients of both versions, as long as the context lasts; the port.

    `broker_port` is the broker's own, `wanted` the one to listen on instead of the usual or a free
    one. Raises NoFreePortError if `wanted` is taken, or no port is left.
    """
    open_now: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_now[task] = writer
        try:
            await _carry(reader, writer, broker_port)
        finally:
            del open_now[task]

    port = free_port(USUAL_PORT) if wanted is None else wanted_port(wanted)
    server = await asyncio.start_server(serve, LOOPBACK, port)
    try:
        yield port
    finally:
        server.close()
        for writer in open_now.values():
            writer.close()
        await asyncio.gather(*open_now, return_exceptions=True)


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, broker_port: int
) -> None:
    """Serve one client until it or the broker leaves; what either does wrong ends no other."""
    try:
        from_broker, to_broker = await asyncio.open_connection(LOOPBACK, broker_port)
    except OSError:
        writer.close()
        return
    session = Session()
    ways = [
        asyncio.create_task(_pass_on(reader, to_broker, session.to_broker), name="to broker"),
        asyncio.create_task(_pass_on(from_broker, writer, session.to_client), name="to client"),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        # These send what is still unsent before they close.
        to_broker.close()
        writer.close()
        await asyncio.gather(*ways, return_exceptions=True)


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, translate: _Translate
) -> None:
    frames = packets.Frames()
    while data := await reader.read(_READ_BYTES):
        for first, body in frames.feed(data):
            writer.write(translate(first, body))
        await writer.drain()


class Session:
    """The translation of one connection; the version is as its CONNECT says.

    Both ways take a packet's first byte and what follows its length, and return a whole packet,
    or nothing where the other side has no such packet. Malformed ones raise.
    """

    def __init__(self) -> None:
        self._level = _LEVEL_5

    def to_broker(self, first: int, body: bytes) -> bytes:
        """A client's packet in MQTT 5: `first` byte, and `body` after the remaining length."""
        kind = first >> 4
        if kind == _CONNECT:
            self._level = _level_of(body)
        if self._level == _LEVEL_311:
            body = _in_5(first, body)
        return _packet(first, _at_qos_0(body) if kind == _SUBSCRIBE else body)

    def to_client(self, first: int, body: bytes) -> bytes:
        """The broker's packet in the client's version; arguments as in `to_broker`."""
        kind = first >> 4
        if self._level == _LEVEL_5:
            return _packet(first, body)
        if kind == _CONNACK:
            return _packet(first, bytes((body[0], _SERVER_UNAVAILABLE if body[1] else 0)))
        if kind == packets.PUBLISH:
            at = _after_packet_id(first, body)
            return _packet(first, body[:at] + body[_after_properties(body, at) :])
        if kind == _SUBACK:
            codes = body[_after_properties(body, 2) :]
            return _packet(first, body[:2] + bytes(min(code, _FAILURE) for code in codes))
        if kind in (_PUBACK, _PUBREC, _PUBREL, _PUBCOMP, _UNSUBACK):
            return _packet(first, body[:2])
        return b"" if kind == _DISCONNECT else _packet(first, body)


def _level_of(connect: bytes) -> int:
    level = connect[len(_NAME)]
    if not connect.startswith(_NAME) or level not in (_LEVEL_311, _LEVEL_5):
        raise packets.MalformedPacketError("neither MQTT 3.1.1 nor MQTT 5")
    return level


def _in_5(first: int, body: bytes) -> bytes:
    kind = first >> 4
    if kind == _CONNECT:
        return _connect_in_5(body)
    if kind == packets.PUBLISH:
        at = _after_packet_id(first, body)
        return body[:at] + _NO_PROPERTIES + body[at:]
    if kind in (_SUBSCRIBE, _UNSUBSCRIBE):
        return body[:2] + _NO_PROPERTIES + body[2:]
    return body


def _at_qos_0(subscribe: bytes) -> bytes:
    body = bytearray(subscribe)
    at = _after_properties(subscribe, 2)
    while at < len(body):
        options = _after_text(subscribe, at)
        body[options] &= ~_QOS
        at = options + 1
    return bytes(body)


def _connect_in_5(body: bytes) -> bytes:
    # Name, level, flags, two bytes of keep alive; then client id, will, user name, password.
    payload = len(_NAME) + 4
    flags = body[len(_NAME) + 1]
    will = _after_text(body, payload)
    return b"".join(
        (
            _NAME,
            bytes((_LEVEL_5,)),
            body[len(_NAME) + 1 : payload],
            _NO_PROPERTIES,
            body[payload:will],
            _NO_PROPERTIES if flags & _HAS_WILL else b"",
            body[will:],
        )
    )


def _after_packet_id(first: int, publish: bytes) -> int:
    has_packet_id = bool(first & 0x06)
    return _after_text(publish, 0) + (2 if has_packet_id else 0)


def _after_text(body: bytes, at: int) -> int:
    return at + 2 + int.from_bytes(body[at : at + 2], "big")


def _after_properties(body: bytes, at: int) -> int:
    length, start = packets.read_varint(body, at)
    return start + length


def _packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + packets.varint(len(body)) + body
