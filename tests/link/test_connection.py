"""One connection to the broker, and what it relies on below the public face of aiomqtt and paho.

First that what `bridge/link/` reaches for is there and behaves so: when one of these fails after
an upgrade, that is where to look. Then what the link promises, against real brokers, and against
scripted ones where a real one would have to misbehave.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
import pytest

from bridge.errors import PayloadTooLarge
from bridge.link import (
    SESSION_TAKEN_OVER,
    BrokerAddress,
    ExpiredBeforeSentError,
    Link,
    LinkError,
    NotSentError,
    heartbeat,
    stream,
)
from bridge.link import connection as link_module
from bridge.link import packets as wire
from bridge.settings import Settings
from tests.lab.certificates import Certificates
from tests.lab.mosquitto import Mosquitto
from tests.lab.scripted import (
    ACCEPTED,
    ACCEPTED_311,
    CONNECT,
    PINGREQ,
    PUBLISH,
    SUBSCRIBE,
    Scripted,
)
from tests.lab.servers import LOOPBACK, free_port
from tests.lab.timing import at_most


def settings_for(broker: Any, **chosen: Any) -> Settings:
    values = {"mqtt_broker": LOOPBACK, "mqtt_port": getattr(broker, "port", broker)}
    return Settings(**{"_env_file": None, **values, **chosen})


class Inbox:
    """Takes a link's messages and keeps them."""

    def __init__(self) -> None:
        self.messages: list[wire.Message] = []
        self._queue: asyncio.Queue[wire.Message] = asyncio.Queue()

    def __call__(self, _link: Link, message: wire.Message) -> None:
        self.messages.append(message)
        self._queue.put_nowait(message)

    async def next(self, timeout: float = 5.0) -> wire.Message:
        return await asyncio.wait_for(self._queue.get(), timeout)


class MakeLink:
    """Makes links; those that were opened are closed at the end of the test."""

    def __init__(self) -> None:
        self._links: list[Link] = []

    def __call__(
        self,
        broker: Any,
        on_message: Callable[[Link, wire.Message], None] | None = None,
        *,
        identifier: str = "",
        will: aiomqtt.Will | None = None,
        session_expiry: int = 0,
        **chosen: Any,
    ) -> Link:
        link = Link(
            BrokerAddress.of(settings_for(broker, **chosen)),
            identifier=identifier or f"link-{os.urandom(4).hex()}",
            on_message=on_message or Inbox(),
            will=will,
            session_expiry=session_expiry,
        )
        self._links.append(link)
        return link

    async def opened(self, *arguments: Any, **options: Any) -> Link:
        link = self(*arguments, **options)
        async with asyncio.timeout(15):
            await link.open()
        return link

    async def close(self) -> None:
        for link in self._links:
            await link.close()


@pytest.fixture
async def links() -> AsyncIterator[MakeLink]:
    maker = MakeLink()
    yield maker
    await maker.close()


async def until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def no_noise(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is left for the event loop to complain of: no task, future or callback."""
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


# Below the public face

PAHO = {
    "connect_timeout": "a property",
    "_last_mid": "an attribute",
    "_create_socket": "a method",
    "_sock_close": "a method",
    "_send_pingreq": "a method",
    "loop_read": "a method",
    "loop_write": "a method",
    "disconnect": "a method",
    "on_connect": "a property",
    "on_unsubscribe": "a property",
    "on_socket_open": "a property",
    "on_socket_close": "a property",
    "on_socket_register_write": "a property",
    "on_socket_unregister_write": "a property",
}


@pytest.fixture
async def below() -> paho.Client:
    """The paho client of a fresh aiomqtt client."""
    client = aiomqtt.Client(LOOPBACK, protocol=aiomqtt.ProtocolVersion.V5)
    assert type(client._client) is paho.Client
    return client._client


@pytest.mark.parametrize("name", PAHO)
async def test_paho_has_what_we_reach_for(below, name):
    kind = inspect.getattr_static(below, name)
    described = {
        "a property": isinstance(kind, property) and kind.fset is not None,
        "a method": callable(kind),
        "an attribute": name in vars(below),
    }
    assert described[PAHO[name]]


async def test_aiomqtt_takes_up_pahos_callbacks_before_we_wrap_them(below):
    for callback, taken in (
        (below.on_connect, ["client", "userdata", "flags", "reason_code", "properties"]),
        (below.on_unsubscribe, ["client", "userdata", "mid", "reason_codes", "properties"]),
    ):
        assert callback is not None
        assert list(inspect.signature(callback).parameters) == taken


async def test_paho_counts_packet_ids_on_from_where_we_set_them(below):
    below._last_mid = 60000
    assert below._mid_generate() == 60001


async def test_paho_keeps_to_the_socket_it_was_given(links):
    """All it needs of one is what our stand-in has, and it never asks for the real one."""
    async with Scripted(ACCEPTED) as broker:
        link = await links.opened(broker)
        assert link._client._client._sock is link._for_paho
        assert isinstance(link._stream._socket, socket.socket)


async def test_aiomqtt_starts_no_loop_of_its_own_on_our_connection(links):
    async with Scripted(ACCEPTED) as broker:
        link = await links.opened(broker)
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert link._client._misc_task is None
        assert "mqtt heartbeat" in names


async def test_aiomqtt_keeps_the_future_of_its_disconnection(links):
    """We add a callback to it once it is connected: it must be the one that paho's end settles."""
    async with Scripted(ACCEPTED) as broker:
        link = await links.opened(broker)
        disconnected = link._client._disconnected
        # DISCONNECT, reason 0x8E
        broker.send(b"\xe0\x02\x8e\x00")
        async with asyncio.timeout(5):
            error = await link.lost
        assert link._client._disconnected is disconnected
        assert error.reason == SESSION_TAKEN_OVER


async def test_our_packet_ids_and_pahos_never_meet(links):
    async with Scripted(ACCEPTED) as broker:
        link = await links.opened(broker)
        subscribing = asyncio.create_task(link.subscribe(["a"]))
        _, body = await broker.packet(SUBSCRIBE)
        packet_id = int.from_bytes(body[:2], "big")
        assert packet_id > 60000
        link.publish("t", b"x", qos=1)
        first, body = await broker.packet(wire.PUBLISH)
        assert wire.read_publish(first, body, with_properties=True).packet_id == 1
        broker.send(b"\x90\x04" + body_id(packet_id) + b"\x00\x01")
        await asyncio.wait_for(subscribing, 5)


def body_id(packet_id: int) -> bytes:
    return struct.pack("!H", packet_id)


async def test_packet_ids_start_again_after_the_last_and_pass_over_those_in_use(links):
    async with Scripted(ACCEPTED) as broker:
        link = await links.opened(broker)
        link.publish("t", b"held", qos=1)
        await broker.packet(wire.PUBLISH)
        link._outbox.last_packet_id = 59999
        ids = []
        for _ in range(2):
            link.publish("t", b"x", qos=1)
            first, body = await broker.packet(wire.PUBLISH)
            ids.append(wire.read_publish(first, body, with_properties=True).packet_id)
        assert ids == [60000, 2]


# Connecting


async def test_connection_has_no_nagle_delay(links, mosquitto):
    link = await links.opened(mosquitto)
    assert link._stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_connect_says_what_the_contract_wants(links, protocol):
    connack = ACCEPTED if protocol == "5" else ACCEPTED_311
    async with Scripted(connack) as broker:
        will = aiomqtt.Will("plugin/status/x", b"{}", qos=1, retain=True)
        await links.opened(
            broker, identifier="me", will=will, session_expiry=30, mqtt_protocol=protocol
        )
        _, body = await broker.packet(CONNECT)
    flags = body[7]
    assert body[6] == (5 if protocol == "5" else 4)
    assert flags & 0x02 == 0, "clean start would throw the session away"
    assert flags & 0x3C == 0x2C, "a retained will at QoS 1"
    if protocol == "5":
        assert b"\x21\xff\xff" in body, "Receive Maximum 65535"
        assert b"\x11\x00\x00\x00\x1e" in body, "Session Expiry 30 s"


async def test_no_session_is_asked_for_when_none_is_to_be_kept(links):
    async with Scripted(ACCEPTED) as broker:
        await links.opened(broker, session_expiry=0)
        _, body = await broker.packet(CONNECT)
    assert body[7] & 0x02


CLOSES_AT_ONCE, SILENT, CLOSES_AFTER_CONNECT, GARBAGE, HTTP, HALF = (
    "closes at once",
    "says nothing",
    "closes after CONNECT",
    "sends garbage",
    "speaks HTTP",
    "stops in the middle of CONNACK",
)


@contextlib.asynccontextmanager
async def bad_broker(kind: str) -> AsyncIterator[int]:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if kind != CLOSES_AT_ONCE:
            await reader.read(1)
        if kind in says:
            writer.write(says[kind])
        if kind in (SILENT, HALF):
            await reader.read()
        writer.close()

    says = {
        GARBAGE: os.urandom(1) + b"\xff" * 200,
        HTTP: b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        HALF: ACCEPTED[:3],
    }
    server = await asyncio.start_server(accept, LOOPBACK, 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    "kind", [CLOSES_AT_ONCE, SILENT, CLOSES_AFTER_CONNECT, GARBAGE, HTTP, HALF]
)
async def test_broker_that_misbehaves_is_an_error_in_time(links, kind, monkeypatch, no_noise):
    monkeypatch.setattr(link_module, "_CONNECT_SECONDS", 0.3)
    async with bad_broker(kind) as port:
        link = links(port)
        with at_most(2), pytest.raises(LinkError):
            await link.open()
        assert link.lost.done()
        assert not link.responsive
        await link.close()


async def test_closed_port_is_an_error_at_once(links, no_noise):
    with at_most(2), pytest.raises(LinkError):
        await links(free_port()).open()


async def test_unknown_host_is_an_error(links):
    with pytest.raises(LinkError):
        await links(1, mqtt_broker="no-such-host.invalid").open()


async def test_attempts_that_fail_leave_no_open_file(links, monkeypatch):
    monkeypatch.setattr(link_module, "_CONNECT_SECONDS", 0.05)

    async def attempt(port: int) -> None:
        with pytest.raises(LinkError):
            await links(port).open()

    def open_files() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    async with bad_broker(SILENT) as silent, bad_broker(CLOSES_AT_ONCE) as closing:
        await asyncio.gather(attempt(silent), attempt(closing))
        before = open_files()
        for _ in range(10):
            await asyncio.gather(attempt(silent), attempt(closing))
        await until(lambda: open_files() <= before + 2)


async def test_attempt_that_is_cancelled_leaves_nothing_behind(links, no_noise):
    async with Scripted() as broker:
        link = links(broker)
        opening = asyncio.create_task(link.open())
        await broker.packet(CONNECT)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert link.lost.done()
        await broker.clients_gone()


@pytest.mark.parametrize(("protocol", "reason"), [("5", 0x87), ("3.1.1", 0x87)])
async def test_refused_login_tells_its_reason(links, private_mosquitto, protocol, reason):
    broker = private_mosquitto(anonymous=False, passwords={"kim": "s3cret"})
    wrong = {"mqtt_username": "kim", "mqtt_password": "wrong", "mqtt_protocol": protocol}
    with pytest.raises(LinkError) as refusal:
        await links(broker, **wrong).open()
    assert refusal.value.reason == reason
    await links.opened(broker, **{**wrong, "mqtt_password": "s3cret"})


# TLS


async def test_tls_carries_packets_larger_than_its_records(links, private_mosquitto, certificates):
    broker = private_mosquitto(certificates=certificates)
    inbox = Inbox()
    link = await links.opened(broker, inbox, mqtt_tls_ca=certificates.ca)
    await link.subscribe(["big/#"])
    payload = os.urandom(700_000)
    assert await asyncio.wait_for(link.publish("big/one", payload, qos=1), 10) == 0
    assert (await inbox.next(10)).payload == payload


async def test_tls_refuses_a_certificate_it_does_not_trust(
    links, private_mosquitto, certificates, tmp_path, no_noise
):
    broker = private_mosquitto(certificates=certificates)
    with pytest.raises(LinkError, match=r"(?i)certificate"):
        await links(broker, mqtt_tls_ca=Certificates(tmp_path).ca).open()


async def test_tls_shows_the_clients_certificate(links, private_mosquitto, certificates):
    broker = private_mosquitto(certificates=certificates, require_client_certificate=True)
    mine = certificates.client("bridge")
    await links.opened(
        broker,
        mqtt_tls_ca=certificates.ca,
        mqtt_tls_cert=mine.certificate,
        mqtt_tls_key=mine.key,
    )
    with pytest.raises(LinkError):
        link = await links.opened(broker, mqtt_tls_ca=certificates.ca)
        # In TLS 1.3 the refusal comes after the handshake.
        raise await asyncio.wait_for(link.lost, 5)


# Subscribing


@pytest.mark.parametrize(
    ("protocol", "connack", "suback"),
    [("5", ACCEPTED, b"\x00\x01\x87"), ("3.1.1", ACCEPTED_311, b"\x01\x80")],
)
async def test_refused_subscription_is_an_error(links, protocol, connack, suback):
    """Mosquitto's ACL file refuses none, whatever it says; its other plugins and brokers do."""
    async with Scripted(connack) as broker:
        link = await links.opened(broker, mqtt_protocol=protocol)
        subscribing = asyncio.create_task(link.subscribe(["allowed/#", "forbidden/#"]))
        _, body = await broker.packet(SUBSCRIBE)
        codes = body[:2] + suback
        broker.send(bytes((0x90, len(codes))) + codes)
        with pytest.raises(LinkError) as refusal:
            await asyncio.wait_for(subscribing, 5)
    assert refusal.value.reason == suback[-1]
    assert "forbidden/#" in str(refusal.value)


@pytest.mark.parametrize("codes", [b"\x01", b"\x01\x01\x01"])
async def test_suback_of_another_length_is_an_error(links, codes):
    async with Scripted(ACCEPTED) as broker:
        link = await links.opened(broker)
        subscribing = asyncio.create_task(link.subscribe(["a", "b"]))
        _, body = await broker.packet(SUBSCRIBE)
        broker.send(bytes((0x90, 3 + len(codes))) + body[:2] + b"\x00" + codes)
        with pytest.raises(LinkError, match="SUBACK"):
            await asyncio.wait_for(subscribing, 5)


async def test_stored_retained_messages_are_not_sent_and_live_ones_keep_their_flag(
    links, mosquitto
):
    inbox = Inbox()
    link = await links.opened(mosquitto, inbox)
    root = f"retained/{os.urandom(4).hex()}"
    await link.publish(f"{root}/before", b"stored", qos=1, retain=True)
    await link.subscribe([f"{root}/#"])
    await link.publish(f"{root}/live", b"live", qos=1, retain=True)
    message = await inbox.next()
    assert (message.payload, message.retain) == (b"live", True)
    for topic in ("before", "live"):
        await link.publish(f"{root}/{topic}", b"", qos=1, retain=True)


async def test_unsubscribed_topics_bring_nothing_more(links, mosquitto):
    inbox = Inbox()
    link = await links.opened(mosquitto, inbox)
    topics = [f"unsubscribed/{os.urandom(4).hex()}", f"still/{os.urandom(4).hex()}"]
    await link.subscribe(topics)
    assert await link.unsubscribe(topics[:1]) == [0x00]
    for topic in topics:
        await link.publish(topic, topic.encode(), qos=1)
    assert (await inbox.next()).topic == topics[1]


async def test_unsuback_tells_of_each_filter_whether_it_was_subscribed(links, mosquitto):
    link = await links.opened(mosquitto)
    await link.subscribe(["there", "still/there"])
    codes = await asyncio.gather(
        link.unsubscribe(["there", "never"]), link.unsubscribe(["never", "still/there"])
    )
    assert codes == [[0x00, 0x11], [0x11, 0x00]]


async def test_unsuback_of_3_1_1_tells_nothing(links, mosquitto):
    link = await links.opened(mosquitto, mqtt_protocol="3.1.1")
    assert await link.unsubscribe(["never"]) == []


async def test_subscribing_on_a_lost_connection_is_an_error(links, private_mosquitto, no_noise):
    broker = private_mosquitto()
    link = await links.opened(broker)
    await asyncio.to_thread(broker.kill)
    await asyncio.wait_for(link.lost, 5)
    with at_most(2):
        with pytest.raises(LinkError):
            await link.subscribe(["a"])
        with pytest.raises(LinkError):
            await link.unsubscribe(["a"])


# Publishing


async def test_puback_tells_who_heard_it(links, private_mosquitto):
    broker = private_mosquitto(acl="topic readwrite allowed/#\n")
    link = await links.opened(broker)
    await link.subscribe(["allowed/heard"])
    reasons = [
        await asyncio.wait_for(link.publish(topic, b"x", qos=1), 5)
        for topic in ("allowed/heard", "allowed/nobody", "forbidden")
    ]
    assert reasons == [0, 0x10, 0x87]


async def test_on_3_1_1_every_puback_is_success(links, mosquitto):
    link = await links.opened(mosquitto, mqtt_protocol="3.1.1")
    assert await asyncio.wait_for(link.publish("to/nobody", b"x", qos=1), 5) == 0


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_burst_beyond_the_brokers_receive_maximum_is_acknowledged_whole(
    links, mosquitto, protocol
):
    inbox = Inbox()
    link = await links.opened(mosquitto, inbox, mqtt_protocol=protocol)
    topic = f"burst/{os.urandom(4).hex()}"
    await link.subscribe([topic])
    pubacks = [link.publish(topic, b"%d" % n, qos=1) for n in range(500)]
    async with asyncio.timeout(10):
        assert set(await asyncio.gather(*pubacks)) == {0}
    for _ in range(500):
        message = await inbox.next()
        link.acknowledge(message.packet_id)
    assert [int(message.payload) for message in inbox.messages] == list(range(500))
    assert not link.lost.done()


async def test_never_more_in_flight_than_the_broker_allows(links):
    # CONNACK with Receive Maximum 3
    async with Scripted(b"\x20\x06\x00\x00\x03\x21\x00\x03") as broker:
        link = await links.opened(broker)
        pubacks = [link.publish("t", b"%d" % n, qos=1) for n in range(10)]
        in_flight = [await sent_id(broker) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert not broker.holds(PUBLISH)
        for done in range(10):
            broker.send(wire.puback(in_flight.pop(0)))
            assert await asyncio.wait_for(pubacks[done], 5) == 0
            if done < 7:
                in_flight.append(await sent_id(broker))
        assert not broker.holds(PUBLISH)


async def sent_id(broker: Scripted) -> int:
    first, body = await broker.packet(wire.PUBLISH)
    return wire.read_publish(first, body, with_properties=True).packet_id


async def test_message_that_the_broker_would_not_take_is_refused_here(links, private_mosquitto):
    broker = private_mosquitto("max_packet_size 2000")
    link = await links.opened(broker)
    assert await asyncio.wait_for(link.publish("t", b"x" * 1000, qos=1), 5) == 0x10
    for qos in (0, 1):
        with pytest.raises(PayloadTooLarge):
            link.publish("t", b"x" * 2000, qos=qos)
    assert await asyncio.wait_for(link.publish("t", b"x" * 1000, qos=1), 5) == 0x10


async def test_largest_message_that_is_not_refused_here_passes_the_broker(links, private_mosquitto):
    broker = private_mosquitto("max_packet_size 2000")
    link = await links.opened(broker)
    size = 2000
    while True:
        try:
            puback = link.publish("t", b"x" * size, qos=1)
            break
        except PayloadTooLarge:
            size -= 1
    assert await asyncio.wait_for(puback, 5) == 0x10
    assert not link.lost.done()


# Reading


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_large_packet_comes_through_whole(links, mosquitto, protocol):
    inbox = Inbox()
    link = await links.opened(mosquitto, inbox, mqtt_protocol=protocol)
    topic = f"large/{os.urandom(4).hex()}"
    await link.subscribe([topic])
    payload = os.urandom(1_000_000)
    async with asyncio.timeout(10):
        await link.publish(topic, payload, qos=1)
    assert (await inbox.next(10)).payload == payload


async def test_packets_that_come_in_many_pieces_come_through_whole(links):
    async with Scripted(ACCEPTED) as broker:
        inbox = Inbox()
        await links.opened(broker, inbox)
        stream = b"\xd0\x00".join(incoming(b"%d" % n * 50, packet_id=n + 1) for n in range(5))
        for at in range(0, len(stream), 7):
            broker.send(stream[at : at + 7])
            await asyncio.sleep(0)
        payloads = [(await inbox.next()).payload for _ in range(5)]
        assert payloads == [b"%d" % n * 50 for n in range(5)]


def incoming(payload: bytes, *, packet_id: int, properties: bytes = b"") -> bytes:
    return wire.publish(
        b"plugin/request/health",
        payload,
        qos=1,
        retain=False,
        packet_id=packet_id,
        properties=properties,
    )


@pytest.mark.parametrize("odd", ["\ufeff", "\uffff", "\x01"], ids=ascii)
async def test_odd_text_in_a_message_does_not_cost_the_connection(links, odd):
    """paho would take the connection for broken: a U+FEFF is malformed to it."""
    async with Scripted(ACCEPTED) as broker:
        inbox = Inbox()
        link = await links.opened(broker, inbox)
        broker.send(incoming(b"1", packet_id=1, properties=wire.properties(user=[(odd, odd)])))
        assert (await inbox.next()).user_properties == [(odd, odd)]
        assert not link.lost.done()


@pytest.mark.parametrize(
    "packet",
    [b"\x30\xff\xff\xff\xff\x7f", b"\x32\x03\x00\x09t", b"\x40\x01\x00"],
    ids=["endless length", "PUBLISH cut short", "PUBACK cut short"],
)
async def test_malformed_packet_ends_the_connection(links, packet):
    async with Scripted(ACCEPTED) as broker:
        link = await links.opened(broker)
        broker.send(packet)
        error = await asyncio.wait_for(link.lost, 5)
        assert "malformed" in str(error)


async def test_acknowledgement_says_which_message(links):
    async with Scripted(ACCEPTED) as broker:
        inbox = Inbox()
        link = await links.opened(broker, inbox)
        broker.send(incoming(b"{}", packet_id=0xABCD))
        link.acknowledge((await inbox.next()).packet_id)
        _, body = await broker.packet(wire.PUBACK)
        assert wire.read_puback(body) == (0xABCD, 0)


async def test_reading_pauses_while_the_broker_does_not_read_and_goes_on_when_it_does(
    links, monkeypatch
):
    monkeypatch.setattr(stream, "_UNSENT_HIGH", 200_000)
    monkeypatch.setattr(stream, "_UNSENT_LOW", 50_000)
    async with Scripted(ACCEPTED) as broker:
        inbox = Inbox()
        link = await links.opened(broker, inbox)
        broker.pause()
        sent = 0
        while len(link._stream._unsent) < 400_000:
            link.publish("t", bytes(100_000), qos=0)
            sent += 1
            await asyncio.sleep(0)
        broker.send(incoming(b"not yet", packet_id=1))
        await asyncio.sleep(0.2)
        assert inbox.messages == []
        broker.resume()
        assert (await inbox.next()).payload == b"not yet"
        for _ in range(sent):
            await broker.packet(wire.PUBLISH)
        assert link._stream._unsent == b""
        assert not link.lost.done()


# The end of a connection


async def lost_by(way: str, broker: Mosquitto, link: Link) -> LinkError:
    if way == "killed":
        await asyncio.to_thread(broker.kill)
    else:
        await asyncio.to_thread(broker.stop)
    return await asyncio.wait_for(link.lost, 5)


async def test_what_the_broker_is_slow_to_take_leaves_in_time_or_never(links, private_mosquitto):
    """Mosquitto takes 20 at a time; the others wait here, and are not to leave late."""
    broker = private_mosquitto()
    link = await links.opened(broker)
    left: list[int] = []
    broker.pause()
    expires = time.monotonic() + 0.3
    waiting = [
        link.publish(
            "t",
            b"x",
            qos=1,
            expires=expires,
            never_late=True,
            on_left=lambda number=number: left.append(number),
        )
        for number in range(50)
    ]
    await asyncio.sleep(0)
    assert left == list(range(20))
    while time.monotonic() <= expires:
        await asyncio.sleep(0.05)
    broker.resume()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [int] * 20 + [ExpiredBeforeSentError] * 30
    assert left == list(range(20))


async def test_command_whose_time_ends_before_its_bytes_are_written_never_leaves(links):
    """A turn of the event loop may take long when thousands of requests arrive."""
    async with Scripted(ACCEPTED) as broker:
        link = await links.opened(broker)
        left: list[str] = []
        late, good = (
            link.publish(
                "t",
                payload,
                qos=1,
                expires=time.monotonic() + seconds,
                never_late=True,
                on_left=lambda payload=payload: left.append(payload.decode()),
            )
            for payload, seconds in ((b"late", 0.02), (b"good", 5.0))
        )
        time.sleep(0.05)
        _, body = await broker.packet(PUBLISH)
        assert wire.read_publish(0x32, body, with_properties=True).payload == b"good"
        with pytest.raises(ExpiredBeforeSentError):
            await late
        broker.send(wire.puback(1))
        assert await good == 0
        assert left == ["good"]


async def test_what_is_cancelled_before_it_left_never_does(links, private_mosquitto):
    broker = private_mosquitto()
    inbox = Inbox()
    link, hearer = await links.opened(broker), await links.opened(broker, inbox)
    await hearer.subscribe(["t"])
    broker.pause()
    waiting = [link.publish("t", b"%d" % number, qos=1) for number in range(22)]
    waiting[20].cancel()
    broker.resume()
    await waiting[21]
    heard = [(await inbox.next()).payload for _ in range(21)]
    assert heard == [b"%d" % number for number in (*range(20), 21)]


async def test_commands_go_before_replies_that_wait_but_do_not_keep_them_all(
    links, private_mosquitto
):
    """A flood that is being refused does not hold up what was accepted, nor the reverse."""
    broker = private_mosquitto()
    inbox = Inbox()
    link, hearer = await links.opened(broker), await links.opened(broker, inbox)
    await hearer.subscribe(["t"])
    broker.pause()
    replies = [link.publish("t", b"reply", qos=1) for _ in range(50)]
    await asyncio.sleep(0)
    commands = [link.publish("t", b"command", qos=1, never_late=True) for _ in range(30)]
    broker.resume()
    await asyncio.gather(*replies, *commands)
    heard = [(await inbox.next()).payload for _ in range(80)]
    # The first 20 left before there was a command; of the next 40, three of four are commands.
    assert [heard[start : start + 20].count(b"command") for start in (0, 20, 40, 60)] == [
        0,
        15,
        15,
        0,
    ]


async def test_expiry_is_told_as_a_message_leaves(links):
    async with Scripted(b"\x20\x06\x00\x00\x03\x21\x00\x01") as broker:
        link = await links.opened(broker)
        expires = time.monotonic() + 2.2
        first, second = (link.publish("t", b"x", qos=1, expires=expires) for _ in range(2))
        _, body = await broker.packet(PUBLISH)
        assert wire.read_publish(0x32, body, with_properties=True).expiry == 3
        while expires - time.monotonic() > 1.9:
            await asyncio.sleep(0.02)
        broker.send(wire.puback(1))
        _, body = await broker.packet(PUBLISH)
        assert wire.read_publish(0x32, body, with_properties=True).expiry == 2
        broker.send(wire.puback(2))
        await asyncio.gather(first, second)


@pytest.mark.parametrize("way", ["killed", "stopped"])
async def test_end_of_the_broker_is_noticed_and_reaches_all_who_wait(
    links, private_mosquitto, way, no_noise
):
    broker = private_mosquitto()
    link = await links.opened(broker)
    assert link.responsive
    broker.pause()
    waiting = [link.publish("t", b"x", qos=1) for _ in range(50)]
    await asyncio.sleep(0.05)
    if way == "killed":
        await lost_by(way, broker, link)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        # As many as the broker takes at a time had left, the others had not.
        assert [type(outcome) for outcome in outcomes] == [LinkError] * 20 + [NotSentError] * 30
    else:
        broker.resume()
        await lost_by(way, broker, link)
        await asyncio.gather(*waiting, return_exceptions=True)
    assert all(puback.done() for puback in waiting)
    assert not link.responsive
    with pytest.raises(LinkError):
        link.publish("t", b"x", qos=1)


async def test_broker_that_falls_silent_is_pinged_and_then_let_go(links, monkeypatch, no_noise):
    monkeypatch.setattr(heartbeat, "SILENCE_BEFORE_PING", 0.5)
    monkeypatch.setattr(heartbeat, "SILENCE_UNTIL_LOST", 1.5)
    async with Scripted(ACCEPTED) as broker:
        link = await links.opened(broker)
        await broker.packet(PINGREQ)
        assert not link.lost.done()
        error = await asyncio.wait_for(link.lost, 5)
        assert "does not answer" in str(error)


async def test_broker_that_answers_pings_is_kept(links, monkeypatch):
    monkeypatch.setattr(heartbeat, "SILENCE_BEFORE_PING", 0.5)
    monkeypatch.setattr(heartbeat, "SILENCE_UNTIL_LOST", 1.5)
    async with Scripted(ACCEPTED) as broker:
        link = await links.opened(broker)
        for _ in range(3):
            await broker.packet(PINGREQ)
            broker.send(b"\xd0\x00")
        assert not link.lost.done()


async def test_broker_that_answers_pings_but_acknowledges_no_more_is_let_go(links, monkeypatch):
    """A PUBACK that was dropped on the way would take its place in the send quota for good."""
    monkeypatch.setattr(heartbeat, "SILENCE_BEFORE_PING", 0.2)
    monkeypatch.setattr(heartbeat, "UNACKNOWLEDGED_UNTIL_LOST", 1.5)
    async with Scripted(ACCEPTED) as broker:
        link = await links.opened(broker)
        acknowledged = link.publish("plugin/reply/me", b"{}", qos=1)

        async def answer_pings() -> None:
            while True:
                await broker.packet(PINGREQ)
                broker.send(b"\xd0\x00")

        answering = asyncio.create_task(answer_pings())
        await asyncio.wait_for(asyncio.shield(link.lost), 8)
        answering.cancel()
        assert "does not acknowledge" in str(link.lost.result())
        with pytest.raises(LinkError):
            await acknowledged


async def test_broker_that_talks_without_end_is_told_that_we_live(links, monkeypatch):
    """What it sends does not count for its keepalive: only what we send does."""
    monkeypatch.setattr(link_module, "KEEPALIVE_SECONDS", 2)
    async with Scripted(ACCEPTED) as broker:
        await links.opened(broker)

        async def talk() -> None:
            while True:
                broker.send(
                    wire.publish(b"t", b"x", qos=0, retain=False, packet_id=0, properties=b"")
                )
                await asyncio.sleep(0.1)

        talking = asyncio.create_task(talk())
        await broker.packet(PINGREQ)
        talking.cancel()


async def test_second_client_of_the_same_name_ends_the_first(links, mosquitto):
    name = f"twin-{os.urandom(4).hex()}"
    first = await links.opened(mosquitto, identifier=name)
    second = await links.opened(mosquitto, identifier=name)
    # Mosquitto 2.0.11 closes without the DISCONNECT that would say why.
    await asyncio.wait_for(first.lost, 5)
    assert await asyncio.wait_for(second.publish("to/nobody", b"x", qos=1), 5) == 0x10


def power_cut(link: Link) -> None:
    """Its connection ends as when its process is killed: without a DISCONNECT."""
    assert link._stream._socket is not None
    link._stream._socket.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_session_survives_a_kill_and_brings_what_was_not_acknowledged(
    links, mosquitto, protocol
):
    name = f"survivor-{os.urandom(4).hex()}"
    options = {"identifier": name, "session_expiry": 30, "mqtt_protocol": protocol}
    inbox = Inbox()
    link = await links.opened(mosquitto, inbox, **options)
    assert not link.session_present
    await link.subscribe([f"to/{name}"])
    sender = await links.opened(mosquitto)
    for payload in (b"acknowledged", b"not acknowledged"):
        await sender.publish(f"to/{name}", payload, qos=1)
    first, second = await inbox.next(), await inbox.next()
    link.acknowledge(first.packet_id)
    # Its answer proves that the acknowledgement before it has arrived.
    await link.publish("to/nobody", b"x", qos=1)
    power_cut(link)
    await asyncio.wait_for(link.lost, 5)

    again = Inbox()
    link = await links.opened(mosquitto, again, **options)
    assert link.session_present
    message = await again.next()
    assert message.payload == b"not acknowledged"
    assert message.duplicate
    assert message.packet_id == second.packet_id
    link.acknowledge(message.packet_id)


async def test_closing_ends_the_session_and_publishes_no_will(links, mosquitto):
    name = f"leaver-{os.urandom(4).hex()}"
    inbox = Inbox()
    witness = await links.opened(mosquitto, inbox)
    await witness.subscribe([f"will/{name}"])
    will = aiomqtt.Will(f"will/{name}", b"gone", qos=1)
    options = {"identifier": name, "session_expiry": 30, "will": will}
    link = await links.opened(mosquitto, **options)
    with at_most(2):
        await link.close()
    link = await links.opened(mosquitto, **options)
    assert not link.session_present
    await witness.publish(f"will/{name}", b"none before me", qos=1)
    assert (await inbox.next()).payload == b"none before me"
    power_cut(link)


async def test_will_is_published_when_the_connection_is_cut(links, mosquitto):
    name = f"cut-{os.urandom(4).hex()}"
    inbox = Inbox()
    witness = await links.opened(mosquitto, inbox)
    await witness.subscribe([f"will/{name}"])
    link = await links.opened(
        mosquitto, will=aiomqtt.Will(f"will/{name}", b"gone", qos=1), identifier=name
    )
    power_cut(link)
    assert (await inbox.next()).payload == b"gone"


async def test_what_was_published_before_closing_arrives(links, mosquitto):
    inbox = Inbox()
    listener = await links.opened(mosquitto, inbox)
    topic = f"last/{os.urandom(4).hex()}"
    await listener.subscribe([topic])
    link = await links.opened(mosquitto)
    link.publish(topic, b"last words", qos=0)
    await link.close()
    assert (await inbox.next()).payload == b"last words"


async def test_closing_does_not_wait_for_a_broker_that_hangs(links, private_mosquitto, no_noise):
    broker = private_mosquitto()
    link = await links.opened(broker)
    broker.pause()
    with at_most(3):
        await link.close()


async def test_closing_twice_is_closing_once(links, mosquitto):
    link = await links.opened(mosquitto)
    await link.close()
    await link.close()
