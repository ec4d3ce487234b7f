"""PUBLISH and PUBACK as bytes; paho, over a real socket, is the witness that both ends agree."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bridge.link import packets as wire
from bridge.link.packets import Frames, MalformedPacketError, Message

# The witness


class Witness:
    """A paho client whose broker is a bare socket: what it sends can be read, and the reverse."""

    def __init__(self, listener: socket.socket, version: int) -> None:
        self.messages: list[paho.MQTTMessage] = []
        self.acknowledged: list[tuple[int, int]] = []
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, "witness", protocol=version, transport="unix"
        )
        self.client.max_inflight_messages_set(0)
        self.client.suppress_exceptions = False
        self.client.on_message = lambda _c, _u, message: self.messages.append(message)
        self.client.on_publish = lambda _c, _u, mid, reason, _p: self.acknowledged.append(
            (mid, reason.value)
        )
        self.client.connect(listener.getsockname())
        self._peer, _ = listener.accept()
        self._peer.settimeout(5)
        self.packet()
        # CONNACK: accepted, no properties.
        self.give(bytes((0x20, 2, 0, 0)) if version == paho.MQTTv311 else b"\x20\x03\0\0\0")

    def packet(self) -> tuple[int, bytes]:
        """The next packet that paho wrote: first byte, and what follows the length."""
        while self.client.want_write():
            self.client.loop_write()
        first = self._exactly(1)[0]
        length = shift = 0
        while True:
            byte = self._exactly(1)[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return first, self._exactly(length)

    def give(self, packet: bytes) -> None:
        """Let paho read one packet."""
        self._peer.sendall(packet)
        assert self.client.loop_read() == paho.MQTT_ERR_SUCCESS

    def close(self) -> None:
        self.client.on_message = None
        self.client.on_publish = None
        self.client.disconnect()
        self._peer.close()

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self._peer.recv(count - len(data))
        return data


@contextmanager
def witness_of(version: int, folder: Path) -> Iterator[Witness]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "broker"))
        listener.listen(1)
        witness = Witness(listener, version)
        try:
            yield witness
        finally:
            witness.close()


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Witness]:
    with witness_of(paho.MQTTv5, tmp_path_factory.mktemp("v5")) as witness:
        yield witness


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Witness]:
    with witness_of(paho.MQTTv311, tmp_path_factory.mktemp("v3")) as witness:
        yield witness


# The strategies. paho refuses U+FEFF, which is legal; a table below has it and its like.

# The same sockets serve all examples, which is what a connection is for.
examples = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0\ufeff"),
    max_size=60,
)
topics = texts.filter(lambda text: text and not set(text) & set("+#"))
payloads = st.binary(max_size=400)
expiries = st.none() | st.integers(0, 2**32 - 1)
correlations = st.none() | st.binary(max_size=200)
user_properties = st.lists(st.tuples(texts, texts), max_size=4)

SENT = st.fixed_dictionaries(
    {
        "MessageExpiryInterval": expiries,
        "ResponseTopic": st.none() | topics,
        "CorrelationData": correlations,
        "ContentType": st.none() | texts,
        "PayloadFormatIndicator": st.none() | st.sampled_from([0, 1]),
        "UserProperty": user_properties,
    }
)


def properties_of(values: dict[str, Any]) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)
    for name, value in values.items():
        if value is not None and value != []:
            setattr(properties, name, value)
    return properties


# Both ends agree


@examples
@given(topics, payloads, st.sampled_from([0, 1]), st.booleans(), SENT)
def test_what_paho_publishes_is_read_as_it_was_meant(newest, topic, payload, qos, retain, sent):
    info = newest.client.publish(topic, payload, qos, retain, properties_of(sent))
    first, body = newest.packet()
    message = wire.read_publish(first, body, with_properties=True)
    assert message == Message(
        topic,
        payload,
        qos,
        retain,
        duplicate=False,
        packet_id=info.mid if qos else 0,
        expiry=sent["MessageExpiryInterval"],
        response_topic=sent["ResponseTopic"],
        correlation=sent["CorrelationData"],
        content_type=sent["ContentType"],
        payload_format=sent["PayloadFormatIndicator"],
        user_properties=sent["UserProperty"],
        size=len(body),
    )


@examples
@given(topics, payloads, st.sampled_from([0, 1]), st.booleans())
def test_what_paho_publishes_on_3_1_1_is_read_as_it_was_meant(old, topic, payload, qos, retain):
    info = old.client.publish(topic, payload, qos, retain)
    first, body = old.packet()
    message = wire.read_publish(first, body, with_properties=False)
    packet_id = info.mid if qos else 0
    assert message == Message(topic, payload, qos, retain, False, packet_id, size=len(body))


@examples
@given(
    topics,
    payloads,
    st.sampled_from([0, 1]),
    st.booleans(),
    st.integers(1, 65535),
    expiries,
    correlations,
    st.none() | texts,
    user_properties,
)
def test_what_we_publish_is_read_by_paho_as_we_meant_it(
    newest, topic, payload, qos, retain, packet_id, expiry, correlation, content_type, user
):
    newest.give(
        wire.publish(
            topic.encode(),
            payload,
            qos=qos,
            retain=retain,
            packet_id=packet_id,
            properties=wire.properties(
                expiry=expiry,
                content_type=None if content_type is None else content_type.encode(),
                correlation=correlation,
                user=user,
            ),
        )
    )
    read = newest.messages.pop()
    assert (read.topic, read.payload, read.qos, read.retain) == (topic, payload, qos, retain)
    seen = read.properties.json() if read.properties else {}
    assert seen.pop("UserProperty", []) == user
    assert seen == {
        name: value
        for name, value in {
            "MessageExpiryInterval": expiry,
            "CorrelationData": None if correlation is None else correlation.hex(),
            "ContentType": content_type,
            "PayloadFormatIndicator": None if content_type is None else 1,
        }.items()
        if value is not None
    }
    if qos:
        assert wire.read_puback(newest.packet()[1]) == (packet_id, 0)


@examples
@given(topics, payloads, st.sampled_from([0, 1]), st.booleans(), st.integers(1, 65535))
def test_what_we_publish_on_3_1_1_is_read_by_paho_as_we_meant_it(
    old, topic, payload, qos, retain, packet_id
):
    old.give(
        wire.publish(
            topic.encode(), payload, qos=qos, retain=retain, packet_id=packet_id, properties=None
        )
    )
    read = old.messages.pop()
    assert (read.topic, read.payload, read.qos, read.retain) == (topic, payload, qos, retain)
    if qos:
        assert wire.read_puback(old.packet()[1]) == (packet_id, 0)


@pytest.mark.parametrize("version", ["newest", "old"])
def test_our_puback_is_read_by_paho_as_success(version, request):
    witness = request.getfixturevalue(version)
    mid = witness.client.publish("to/us", b"x", 1).mid
    witness.packet()
    witness.give(wire.puback(mid))
    assert witness.acknowledged.pop() == (mid, 0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\x12\x34", 0),
        (b"\x12\x34\x00", 0),
        (b"\x12\x34\x10", 0x10),
        (b"\x12\x34\x87\x00", 0x87),
        (b"\x12\x34\x97\x05\x1f\x00\x02no", 0x97),
    ],
    ids=["3.1.1", "success", "nobody subscribed", "not authorized", "with a reason string"],
)
def test_puback_tells_its_packet_and_reason(body, reason):
    assert wire.read_puback(body) == (0x1234, reason)


# What is odd but legal must not cost the connection


def text(value: bytes) -> bytes:
    return struct.pack("!H", len(value)) + value


def publish_body(properties: bytes = b"", topic: bytes = b"t", payload: bytes = b"{}") -> bytes:
    length = len(properties)
    assert length < 0x4000
    encoded = bytes((length,)) if length < 0x80 else bytes((length & 0x7F | 0x80, length >> 7))
    return text(topic) + b"\x00\x07" + encoded + properties + payload


QOS_1 = 0x32


@pytest.mark.parametrize(
    "odd",
    ["\ufeff", "a\ufeffb", "\ufffe", "\U0010ffff", "\x01", "\x7f", "\u2028", "😀", "é", "\x00"],
    ids=ascii,
)
def test_odd_text_is_read_as_it_is(odd):
    raw = odd.encode()
    message = wire.read_publish(
        QOS_1,
        publish_body(
            b"\x08" + text(raw) + b"\x03" + text(raw) + b"\x26" + text(raw) + text(raw), topic=raw
        ),
        with_properties=True,
    )
    assert message.topic == message.response_topic == message.content_type == odd
    assert message.user_properties == [(odd, odd)]
    assert (message.packet_id, message.payload) == (7, b"{}")


@pytest.mark.parametrize("raw", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"])
def test_text_that_is_not_utf_8_is_read_and_can_never_be_sent_on(raw):
    message = wire.read_publish(
        QOS_1, publish_body(b"\x08" + text(raw), topic=raw), with_properties=True
    )
    assert message.response_topic is not None
    for read in (message.topic, message.response_topic):
        with pytest.raises(UnicodeEncodeError):
            read.encode()


@pytest.mark.parametrize("size", [0, 1, 65535])
def test_correlation_data_of_any_size_comes_through(size):
    correlation = (bytes(range(256)) * 256)[:size]
    packet = wire.publish(
        b"t",
        b"{}",
        qos=1,
        retain=False,
        packet_id=1,
        properties=wire.properties(correlation=correlation),
    )
    ((first, body),) = Frames().feed(packet)
    assert wire.read_publish(first, body, with_properties=True).correlation == correlation


def test_flags_of_the_first_byte_are_told_apart():
    body = publish_body()
    read = {
        first: wire.read_publish(first, body, with_properties=True) for first in (0x32, 0x33, 0x3A)
    }
    assert [(m.retain, m.duplicate) for m in read.values()] == [
        (False, False),
        (True, False),
        (False, True),
    ]


def test_subscription_identifiers_are_read():
    message = wire.read_publish(
        QOS_1, publish_body(b"\x0b\xff\x7f\x0b\x01\x09\x00\x01c"), with_properties=True
    )
    assert message.correlation == b"c"
    assert message.subscription_identifiers == {0x3FFF, 1}


# What is broken is told as such, and in no other way

WHOLE = publish_body(
    b"\x01\x01\x02\x00\x00\x00\x1e\x03\x00\x01j\x08\x00\x01r\x09\x00\x01c\x26\x00\x01n\x00\x01v",
    topic=b"plugin/request/health",
    payload=b"",
)


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_publish_cut_short_is_malformed(length):
    with pytest.raises(MalformedPacketError):
        wire.read_publish(QOS_1, WHOLE[:length], with_properties=True)


@pytest.mark.parametrize(
    "properties",
    [
        b"\x23\x00\x01",
        b"\x7f",
        b"\x00",
        b"\x02\x00\x00",
        b"\x09\x00\x05ab",
        b"\x26\x00\x01n",
        b"\x0b\x80\x80\x80\x80\x01",
        b"\x01",
    ],
    ids=[
        "a topic alias we did not allow",
        "unknown",
        "zero",
        "expiry cut",
        "binary cut",
        "pair cut",
        "endless integer",
        "byte cut",
    ],
)
def test_broken_properties_are_malformed(properties):
    with pytest.raises(MalformedPacketError):
        wire.read_publish(QOS_1, publish_body(properties), with_properties=True)


@examples
@given(
    st.integers(0x30, 0x3F),
    st.binary(max_size=80) | st.binary(max_size=40).map(lambda tail: WHOLE[:30] + tail),
    st.booleans(),
)
def test_any_bytes_are_read_or_malformed_and_nothing_else(first, body, with_properties):
    try:
        message = wire.read_publish(first, body, with_properties=with_properties)
    except MalformedPacketError:
        return
    assert message.payload == body[len(body) - len(message.payload) :]


@pytest.mark.parametrize("body", [b"", b"\x01"])
def test_puback_without_packet_id_is_malformed(body):
    with pytest.raises(MalformedPacketError):
        wire.read_puback(body)


# Packets out of a stream

STREAM = [
    (0xD0, b""),
    (0x32, WHOLE),
    (0x40, b"\x00\x01"),
    (0x30, b"p" * 127),
    (0x30, b"q" * 128),
    (0x31, b"r" * 16384),
    (0x90, b"\x00\x01\x00"),
]
STREAMED = b"".join(bytes((first,)) + wire.varint(len(body)) + body for first, body in STREAM)


@examples
@given(st.lists(st.integers(0, len(STREAMED)), max_size=30).map(sorted))
def test_packets_are_the_same_however_the_stream_is_cut(cuts):
    frames = Frames()
    packets = []
    for start, end in zip([0, *cuts], [*cuts, len(STREAMED)], strict=True):
        packets += frames.feed(STREAMED[start:end])
    assert packets == STREAM


def test_packets_come_out_as_soon_as_they_are_whole():
    frames = Frames()
    counts = [len(frames.feed(STREAMED[at : at + 1])) for at in range(len(STREAMED))]
    ends = [at for at, count in enumerate(counts) if count]
    assert [counts[at] for at in ends] == [1] * len(STREAM)
    assert ends[-1] == len(STREAMED) - 1
    assert ends[0] == 1


@pytest.mark.parametrize("tail", [b"", b"\x01", b"\xff"])
def test_length_of_five_bytes_is_malformed(tail):
    with pytest.raises(MalformedPacketError):
        Frames().feed(b"\x30\xff\xff\xff\xff" + tail)


@pytest.mark.parametrize("length", [0, 127, 128, 16383, 16384, 2097151, 2097152, 268435455])
def test_length_is_written_as_paho_writes_it(length):
    from paho.mqtt.properties import VariableByteIntegers

    assert wire.varint(length) == VariableByteIntegers.encode(length)
