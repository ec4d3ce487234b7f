"""The two packets of the request path, PUBLISH and PUBACK, read and written as bytes.

Everything else of the protocol (CONNECT, SUBSCRIBE, PING …) is left to paho. These two are ours
because they are all that a request costs, and because a property that is odd but legal (a U+FEFF
in a string, say) must not cost the connection. After the OASIS standards MQTT 5.0 and 3.1.1,
sections 3.3 and 3.4; properties after section 2.2.2 of MQTT 5.0.
"""

import struct
from dataclasses import dataclass, field

PUBLISH = 3
PUBACK = 4
DISCONNECT = 14

_PAYLOAD_FORMAT_INDICATOR = 0x01
_MESSAGE_EXPIRY_INTERVAL = 0x02
_CONTENT_TYPE = 0x03
_RESPONSE_TOPIC = 0x08
_CORRELATION_DATA = 0x09
_SUBSCRIPTION_IDENTIFIER = 0x0B
_TOPIC_ALIAS = 0x23
_USER_PROPERTY = 0x26

# A packet of a megabyte holds 200,000 of them, which would take a tenth of a second to read.
MOST_USER_PROPERTIES = 256

_UINT16 = struct.Struct("!H")
_UINT32 = struct.Struct("!I")


class MalformedPacketError(Exception):
    """The bytes are no such packet."""


@dataclass(slots=True)
class Message:
    """A PUBLISH that came in. Text that is not UTF-8 holds surrogates, which never validate."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    duplicate: bool
    packet_id: int
    # Whole seconds that it may still take.
    expiry: int | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    content_type: str | None = None
    payload_format: int | None = None
    user_properties: list[tuple[str, str]] = field(default_factory=list)
    # It has too many user properties; what follows them was not read.
    overloaded: bool = False
    # It was longer than we take: there is no payload, and there are no properties.
    oversized: bool = False
    # Of the packet, in bytes.
    size: int = 0
    # When it came, on the monotonic clock; where we slept, the last moment at which it had not.
    came: float = 0.0
    # When we read it.
    read: float = 0.0


def read_publish(header: int, body: bytes, *, with_properties: bool) -> Message:
    """Read a PUBLISH from its first byte and what follows the remaining length.

    Raises MalformedPacketError if the lengths in it do not add up.
    """
    try:
        topic, at = _text(body, 0)
        qos = header >> 1 & 3
        packet_id = 0
        if qos:
            (packet_id,) = _UINT16.unpack_from(body, at)
            at += 2
        message = Message(topic, b"", qos, bool(header & 1), bool(header & 8), packet_id)
        message.size = len(body)
        if isinstance(body, Truncated):
            message.oversized = True
            return message
        if with_properties:
            length, at = read_varint(body, at)
            if at + length > len(body):
                raise MalformedPacketError("properties longer than the packet")
            if length:
                _read_properties(message, body, at, at + length)
            at += length
        message.payload = body[at:]
    except (struct.error, IndexError):
        raise MalformedPacketError("shorter than its lengths say") from None
    return message


def read_puback(body: bytes) -> tuple[int, int]:
    """The packet id and reason code of a PUBACK; 3.1.1 has no reason, which is success.

    Raises MalformedPacketError if it is too short.
    """
    if len(body) < 2:
        raise MalformedPacketError("a PUBACK without packet id")
    return int.from_bytes(body[:2], "big"), body[2] if len(body) > 2 else 0


def puback(packet_id: int) -> bytes:
    return b"\x40\x02" + _UINT16.pack(packet_id)


def publish(
    topic: bytes,
    payload: bytes,
    *,
    qos: int,
    retain: bool,
    packet_id: int,
    properties: bytes | None,
) -> bytes:
    """A PUBLISH; `properties` is None for 3.1.1."""
    head = _UINT16.pack(len(topic)) + topic
    if qos:
        head += _UINT16.pack(packet_id)
    if properties is not None:
        head += varint(len(properties)) + properties
    first = PUBLISH << 4 | qos << 1 | retain
    return bytes((first,)) + varint(len(head) + len(payload)) + head + payload


def properties(
    *,
    expiry: int | None = None,
    content_type: bytes | None = None,
    response_topic: bytes | None = None,
    correlation: bytes | None = None,
    user: tuple[tuple[str, str], ...] | list[tuple[str, str]] = (),
) -> bytes:
    """The properties of a PUBLISH of ours; a content type also says that the payload is UTF-8."""
    parts: list[bytes] = []
    if content_type is not None:
        parts += [bytes((_PAYLOAD_FORMAT_INDICATOR, 1)), bytes((_CONTENT_TYPE,))]
        parts += [_UINT16.pack(len(content_type)), content_type]
    if expiry is not None:
        parts.append(bytes((_MESSAGE_EXPIRY_INTERVAL,)) + _UINT32.pack(expiry))
    if response_topic is not None:
        parts += [bytes((_RESPONSE_TOPIC,)), _UINT16.pack(len(response_topic)), response_topic]
    if correlation is not None:
        parts += [bytes((_CORRELATION_DATA,)), _UINT16.pack(len(correlation)), correlation]
    for name, value in user:
        parts.append(bytes((_USER_PROPERTY,)))
        for text in (name.encode(), value.encode()):
            parts += [_UINT16.pack(len(text)), text]
    return b"".join(parts)


def _read_properties(message: Message, body: bytes, at: int, end: int) -> None:
    while at < end:
        kind = body[at]
        at += 1
        if kind == _USER_PROPERTY:
            if len(message.user_properties) == MOST_USER_PROPERTIES:
                message.overloaded = True
                return
            name, at = _text(body, at)
            value, at = _text(body, at)
            message.user_properties.append((name, value))
        elif kind == _CORRELATION_DATA:
            message.correlation, at = _binary(body, at)
        elif kind == _RESPONSE_TOPIC:
            message.response_topic, at = _text(body, at)
        elif kind == _MESSAGE_EXPIRY_INTERVAL:
            (message.expiry,) = _UINT32.unpack_from(body, at)
            at += 4
        elif kind == _CONTENT_TYPE:
            message.content_type, at = _text(body, at)
        elif kind == _PAYLOAD_FORMAT_INDICATOR:
            message.payload_format = body[at]
            at += 1
        elif kind == _SUBSCRIPTION_IDENTIFIER:
            _, at = read_varint(body, at)
        elif kind == _TOPIC_ALIAS:
            # We announce a Topic Alias Maximum of 0.
            raise MalformedPacketError("a topic alias that was not allowed")
        else:
            raise MalformedPacketError(f"unknown property 0x{kind:02X}")
    if at != end:
        raise MalformedPacketError("a property longer than the properties")


def _binary(body: bytes, at: int) -> tuple[bytes, int]:
    (length,) = _UINT16.unpack_from(body, at)
    at += 2
    end = at + length
    if end > len(body):
        raise MalformedPacketError("a string longer than the packet")
    return body[at:end], end


def _text(body: bytes, at: int) -> tuple[str, int]:
    raw, at = _binary(body, at)
    return raw.decode("utf-8", "surrogateescape"), at


def read_varint(body: bytes, at: int) -> tuple[int, int]:
    """A variable byte integer (MQTT 5.0, section 1.5.5), and where what follows it begins.

    Raises MalformedPacketError if it has more than four bytes, IndexError if it breaks off.
    """
    value = body[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for shift in (7, 14, 21):
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedPacketError("a length of more than four bytes")


def varint(value: int) -> bytes:
    """A Variable Byte Integer (MQTT 5.0, section 1.5.5)."""
    if value < 0x80:
        return bytes((value,))
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class Truncated(bytes):
    """The beginning of a packet that is longer than we take."""


# What holds the topic and the packet id of any PUBLISH.
_HEAD_BYTES = 2 + 65535 + 2


class Frames:
    """Cuts what a socket delivers into packets: (first byte, what follows the length).

    Of a packet longer than `limit` bytes only the beginning is kept, as `Truncated`; the rest is
    skipped as it arrives. On MQTT 3.1.1 a client can't tell a broker what it takes.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._buffer = b""
        # The packet that is skipped: its first byte, its beginning, and how much is still to come.
        self._skipped: tuple[int, Truncated, int] | None = None

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The packets that are complete now, each as its first byte and its content.

        Raises MalformedPacketError if a length has more than four bytes.
        """
        packets: list[tuple[int, bytes]] = []
        if self._skipped is not None:
            data = self._skip(data, packets)
        buffer = self._buffer + data if self._buffer else data
        at, size = 0, len(buffer)
        while size - at >= 2 and (header := _header_at(buffer, at)) is not None:
            start, length = header
            end = start + length
            if self._limit is not None and length > self._limit:
                if size - start < min(length, _HEAD_BYTES):
                    break
                head = Truncated(buffer[start : start + _HEAD_BYTES])
                self._skipped = (buffer[at], head, length)
                rest = self._skip(buffer[start:], packets)
                return packets + (self.feed(rest) if rest else [])
            if end > size:
                break
            packets.append((buffer[at], buffer[start:end]))
            at = end
        self._buffer = buffer[at:]
        return packets

    def _skip(self, data: bytes, packets: list[tuple[int, bytes]]) -> bytes:
        """What follows the packet that is skipped; once it has ended it is one of `packets`."""
        assert self._skipped is not None
        self._buffer = b""
        first, head, left = self._skipped
        if len(data) < left:
            self._skipped = (first, head, left - len(data))
            return b""
        self._skipped = None
        packets.append((first, head))
        return data[left:]


def _header_at(buffer: bytes, at: int) -> tuple[int, int] | None:
    """Where a packet's content begins, and its length; None while these have not come whole."""
    try:
        length, start = read_varint(buffer, at + 1)
    except IndexError:
        return None
    return start, length
