"""Replies as a command invoker of Azure IoT Operations reads them.

`Invoker` asks as those do and accepts what those accept: its rules are written from the protocol's
documents (github.com/Azure/iot-operations-sdks, doc/reference: message-metadata.md,
command-errors.md, error-model.md, command-cache.md). What the bridge accepts beyond that protocol
is its own contract's, and tested with that.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from bridge.link import packets as wire
from tests.lab.board import Board
from tests.lab.bridge import Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Connection, Message
from tests.lab.platform import BOARD_A, BOARD_C, ORDINARY_PRESET, UNKNOWN_BOARD
from tests.lab.scripted import (
    ACCEPTED,
    CONNECT,
    PUBACK,
    PUBLISH,
    SUBSCRIBE,
    UNSUBSCRIBE,
    Scripted,
)
from tests.lab.servers import free_port

READING = {"device_uuid": BOARD_A, "sensor": "温度"}
LIGHT = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}

_DURATION = re.compile(r"P(?=.)(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?")
_TIMESTAMP = re.compile(r"\d{15}:\d{5}:.+")


class RemoteError(Exception):
    """An error that the executor told, as the invoker hands it to its user."""

    def __init__(self, kind: str, told: dict[str, str]) -> None:
        super().__init__(f"{kind}: {told.get('__stMsg')}")
        self.kind = kind
        self.in_application = told.get("__apErr", "").casefold() not in ("", "false")
        self.name = told.get("__propName")
        self.value = told.get("__propVal")


class UnacceptableError(Exception):
    """A reply that an invoker would not accept; this one has no place in the protocol."""


class Invoker(Connection):
    """Invokes commands; every message that comes on its response topics must be acceptable."""

    def __init__(self, broker: Any, **options: Any) -> None:
        self.client_id = f"invoker-{os.urandom(4).hex()}"
        super().__init__(broker, client_id=self.client_id, **options)
        self.replies: list[Message] = []
        self._active: dict[bytes, asyncio.Future[Any]] = {}
        self._subscribed: set[str] = set()

    async def invoke(
        self,
        command: str,
        fields: Any,
        *,
        correlation: bytes | None = None,
        payload: bytes | None = None,
        content_type: str = "application/json",
        timeout: int = 10,
    ) -> Any:
        """The response's payload; `RemoteError` for an error that was told."""
        topic = f"plugin/request/{command}"
        response_topic = f"clients/{self.client_id}/{topic}"
        if response_topic not in self._subscribed:
            assert await self.subscribe(response_topic) == 1
            self._subscribed.add(response_topic)
        correlation = correlation or uuid.uuid4().bytes
        answered = self._active[correlation] = asyncio.get_running_loop().create_future()
        await self.publish(
            topic,
            json.dumps(fields).encode() if payload is None else payload,
            response_topic=response_topic,
            correlation=correlation,
            content_type=content_type,
            payload_format=1,
            expiry=timeout,
            user_properties={
                "__protVer": "1.0",
                "__srcId": self.client_id,
                "__invId": self.client_id,
                "$partition": self.client_id,
                "__ts": f"{time.time_ns() // 1_000_000:015}:00000:{self.client_id}",
            },
        )
        try:
            return await asyncio.wait_for(answered, timeout)
        finally:
            del self._active[correlation]

    def received(self, message: Message) -> None:
        self.replies.append(message)
        answered = self._active.get(message.correlation or b"")
        if answered is None or answered.done():
            return
        try:
            answered.set_result(accept(message))
        except (RemoteError, UnacceptableError) as error:
            answered.set_exception(error)


def accept(reply: Message) -> Any:
    """The payload of a reply, after the rules of "Invalid Response Messages".

    Raises:
        RemoteError: it tells an error.
        UnacceptableError: an invoker would not take it.
    """
    told = reply.user_properties
    if len(told) != len(reply.user_property_pairs):
        raise UnacceptableError("a property twice")
    if told.get("__protVer", "1.0").partition(".")[0] != "1":
        raise UnacceptableError("unsupported version")
    if not re.fullmatch(r"\d{3}", told.get("__stat", "")):
        raise UnacceptableError("status missing or no number")
    if "__ts" in told and not _TIMESTAMP.fullmatch(told["__ts"]):
        raise UnacceptableError("timestamp invalid")
    if reply.content_type not in (None, "application/json"):
        raise UnacceptableError("content type not supported")
    if reply.payload_format not in (None, 0, 1):
        raise UnacceptableError("format indicator invalid")
    if reply.qos != 1 or reply.retain:
        raise UnacceptableError("not at QoS 1, or retained")
    if told["__stat"] == "200":
        return reply.json
    raise RemoteError(_kind(told), told)


def _kind(told: dict[str, str]) -> str:
    """By appendix 2 of error-model.md; a status that is not in it, as the invokers take it."""
    named, valued = "__propName" in told, "__propVal" in told
    match told["__stat"]:
        case "400" | "415":
            return "invalid header" if valued else "missing header" if named else "invalid payload"
        case "408":
            # .NET's invoker loses the reply where this is no duration.
            if not (named and valued and _DURATION.fullmatch(told["__propVal"])):
                raise UnacceptableError("a timeout without its duration")
            return "timeout"
        case "422":
            return "invocation error"
        case "500":
            if told.get("__apErr") == "true":
                return "execution error"
            return "internal logic error" if named else "unknown error"
        case "503":
            return "invalid state"
        case _:
            return "unknown error"


# The broker takes all of it, but no reply below void/.
ACL = "\n".join(f"topic readwrite {topic}/#" for topic in ("plugin", "devices", "clients"))


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    with Mosquitto(acl=ACL) as server:
        yield server


@pytest.fixture(scope="module")
def executor(broker: Mosquitto, mariadb: MariaDb) -> Iterator[Bridge]:
    """A bridge that may answer where invokers listen by default."""
    with Bridge(broker, mariadb, MQTT_REPLY_TOPICS="clients/#, void/#", LANGUAGE="en") as process:
        yield process


@pytest.fixture
async def invoker(broker: Mosquitto, executor: Bridge) -> AsyncIterator[Invoker]:
    async with Invoker(broker) as connected:
        yield connected


@pytest.fixture
async def device(broker: Mosquitto, executor: Bridge) -> AsyncIterator[Board]:
    async with Board(broker, BOARD_A) as board:
        yield board


COMMANDS: dict[str, Any] = {
    "sensor-data": READING,
    "control": LIGHT,
    "preset": {"device_uuid": BOARD_A, "preset_key": ORDINARY_PRESET},
    "device": {"device_uuid": BOARD_A},
    "batch": {"requests": [{"operation": "sensor-data", **READING}]},
    "health": {},
    "operations": {},
}


@pytest.mark.parametrize("command", COMMANDS)
async def test_invoker_accepts_the_answer_to_every_command(invoker, device, command):
    answer = await invoker.invoke(command, COMMANDS[command])
    assert answer["code"] == 200
    assert answer["data"]


# Kind, whether the application failed, the property's name and value.
TOLD: dict[str, tuple[str, dict[str, Any], tuple[str, bool, str | None, str | None]]] = {
    "field missing": (
        "sensor-data", {"fields": {"device_uuid": BOARD_A}},
        ("invocation error", False, "sensor", None),
    ),
    "field out of range": (
        "control", {"fields": {**LIGHT, "port_type": "servo", "action": "set", "value": 181}},
        ("invocation error", False, "value", "181"),
    ),
    "no JSON": ("control", {"payload": b"on"}, ("invalid payload", False, None, None)),
    "nothing": ("control", {"payload": b""}, ("invalid payload", False, None, None)),
    "nested without end": (
        "control", {"payload": b'{"a":' * 300 + b"1" + b"}" * 300},
        ("invalid payload", False, None, None),
    ),
    "content type": (
        "control", {"content_type": "application/protobuf"},
        ("invalid header", False, "Content Type", "application/protobuf"),
    ),
    "timeout": (
        "control", {"fields": {**LIGHT, "expires_at": 1}}, ("timeout", False, "expires_at", "PT0S"),
    ),
    "unknown command": ("dance", {}, ("unknown error", False, None, None)),
    "unknown device": (
        "sensor-data", {"fields": {**READING, "device_uuid": UNKNOWN_BOARD}},
        ("unknown error", True, "device_uuid", UNKNOWN_BOARD),
    ),
    "unreachable device": (
        "control", {"fields": {**LIGHT, "device_uuid": BOARD_C}},
        ("unknown error", True, None, None),
    ),
    "unknown action": (
        "control", {"fields": {**LIGHT, "action": "explode"}},
        ("invalid header", True, "action", "explode"),
    ),
    "value that could break a header": (
        "control", {"fields": {**LIGHT, "action": "\x1b[31m\n灯"}},
        ("invalid header", True, "action", "\\u001b[31m\\u000a灯"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("command", "options", "told"), TOLD.values(), ids=TOLD)
async def test_invoker_reads_what_was_wrong(invoker, command, options, told):
    with pytest.raises(RemoteError) as error:
        await invoker.invoke(command, **{"fields": LIGHT, **options})
    one = error.value
    assert (one.kind, one.in_application, one.name, one.value) == told


@pytest.mark.parametrize("server", ["database", "device"])
async def test_invoker_reads_that_a_server_is_away(
    private_bridge, private_mosquitto, mariadb, server
):
    denying = private_mosquitto(acl=ACL.replace("devices/", "nowhere/"))
    away = {"DB_PORT": str(free_port())} if server == "database" else {}
    site = private_bridge(broker=denying, wait="live", MQTT_REPLY_TOPICS="clients/#", **away)
    await asyncio.to_thread(site.wait_for_line, "mqtt connected")
    if server == "device":
        await asyncio.to_thread(site.wait_until_it_is, "ready")
    async with Invoker(denying) as invoker:
        with pytest.raises(RemoteError) as error:
            await invoker.invoke("control", LIGHT)
    assert (error.value.kind, error.value.in_application) == ("invalid state", True)


# ---- duplicates ---------------------------------------------------------------------------------


async def test_duplicate_is_answered_from_the_cache(invoker, device):
    correlation = uuid.uuid4().bytes
    for _ in range(3):
        await invoker.invoke("control", LIGHT, correlation=correlation)
    assert len({reply.payload for reply in invoker.replies}) == 1
    # An equivalent request under another correlation id is one of its own.
    await invoker.invoke("control", {**LIGHT, "action": "off"})
    actions = [command["action"] for command in await device.next_commands(2)]
    assert actions == ["on", "off"]
    assert len(device.commands) == 2


async def test_same_correlation_of_another_invoker_is_no_duplicate(invoker, device, broker):
    correlation = uuid.uuid4().bytes
    async with Invoker(broker) as other:
        await invoker.invoke("control", LIGHT, correlation=correlation)
        await other.invoke("control", LIGHT, correlation=correlation)
    assert len(await device.next_commands(2)) == 2


# ---- acknowledgements ---------------------------------------------------------------------------

# With Subscription Identifier Available 0: nothing more is asked about the session.
SESSION_PRESENT = b"\x20\x05\x01\x00\x02\x29\x00"


class Recording(Scripted):
    """A broker on which requests are acknowledged, or not, before our eyes."""

    async def reconnected(self) -> list[wire.Message]:
        """Cut the connection, take the next one; the two messages that the bridge sends on it."""
        assert self._writer is not None
        self._writer.transport.abort()
        await self.packet(CONNECT)
        self.send(SESSION_PRESENT)
        messages = []
        while len(messages) < 2:
            first, body = await self._one_of(UNSUBSCRIBE, SUBSCRIBE, PUBLISH)
            if first >> 4 == UNSUBSCRIBE:
                # The session's marker was there, and the other filter was not.
                self.send(b"\xb0\x05" + body[:2] + b"\x00\x00\x11")
            elif first >> 4 == SUBSCRIBE:
                self._grant(body)
            else:
                messages.append(self._acknowledge(first, body))
        return messages

    async def subscribed(self) -> None:
        """Wait until the bridge serves."""
        for _ in ("the session's marker", "the requests"):
            self._grant((await self.packet(SUBSCRIBE))[1])
        await self.acknowledge_publish()

    def ask(
        self, packet_id: int, properties: bytes, payload: bytes = b"{}", flags: int = 0
    ) -> None:
        packet = wire.publish(
            b"plugin/request/health",
            payload,
            qos=1,
            retain=False,
            packet_id=packet_id,
            properties=properties,
        )
        self.send(bytes((packet[0] | flags,)) + packet[1:])

    async def published(self) -> wire.Message:
        """The next message of the bridge's."""
        first, body = await self.packet(PUBLISH)
        return wire.read_publish(first, body, with_properties=True)

    async def acknowledge_publish(self, reason: int = 0) -> wire.Message:
        """Acknowledge the bridge's next message."""
        return self._acknowledge(*await self.packet(PUBLISH), reason)

    def _grant(self, body: bytes) -> None:
        granted = b"\x01" if b"/status/" in body else b"\x01\x01"
        self.send(bytes((0x90, 3 + len(granted))) + body[:2] + b"\x00" + granted)

    def _acknowledge(self, first: int, body: bytes, reason: int = 0) -> wire.Message:
        message = wire.read_publish(first, body, with_properties=True)
        self.send(b"\x40\x03" + message.packet_id.to_bytes(2, "big") + bytes((reason,)))
        return message

    async def _one_of(self, *kinds: int) -> tuple[int, bytes]:
        async with asyncio.timeout(10):
            while True:
                while self._unread:
                    first, body = self._unread.popleft()
                    if first >> 4 in kinds:
                        return first, body
                self._arrived.clear()
                await self._arrived.wait()

    async def acknowledged(self) -> int:
        """The packet id of the request that the bridge acknowledges next."""
        return wire.read_puback((await self.packet(PUBACK))[1])[0]


RecordingBridge = Callable[[], Any]


@pytest.fixture
def recorded(private_bridge) -> RecordingBridge:
    """A scripted broker, with a bridge on it."""

    @asynccontextmanager
    async def start() -> AsyncIterator[Recording]:
        async with Recording(ACCEPTED) as broker:
            starting = asyncio.create_task(
                asyncio.to_thread(lambda: private_bridge(broker=broker, wait="live"))
            )
            await broker.subscribed()
            await starting
            yield broker

    return start


FORMAT_INDICATOR, MESSAGE_EXPIRY = b"\x01", b"\x02"


async def test_unusable_format_indicator_is_told(recorded):
    async with recorded() as broker:
        broker.ask(1, FORMAT_INDICATOR + b"\x02")
        told = dict((await broker.acknowledge_publish()).user_properties)
        assert await broker.acknowledged() == 1
    assert told["__stat"] == "415"
    assert (told["__propName"], told["__propVal"]) == ("Payload Format Indicator", "2")


@pytest.mark.parametrize("indicator", [0, 1])
async def test_either_format_indicator_is_served(recorded, indicator):
    async with recorded() as broker:
        broker.ask(1, FORMAT_INDICATOR + bytes((indicator,)))
        properties = dict((await broker.published()).user_properties)
        assert properties == {"__stat": "200", "__protVer": "1.0"}


async def test_expired_request_is_acknowledged_and_not_answered(recorded):
    async with recorded() as broker:
        broker.ask(1, MESSAGE_EXPIRY + bytes(4), b'{"request_id":"late"}')
        broker.ask(2, b"", b'{"request_id":"in-time"}')
        assert await broker.acknowledged() == 1
        assert json.loads((await broker.acknowledge_publish()).payload)["request_id"] == "in-time"
        assert await broker.acknowledged() == 2


async def test_request_is_acknowledged_though_its_reply_was_refused(recorded):
    async with recorded() as broker:
        broker.ask(7, b"")
        await broker.acknowledge_publish(reason=0x87)
        assert await broker.acknowledged() == 7


async def test_reply_lost_with_the_connection_is_sent_on_the_next(recorded):
    async with recorded() as broker:
        broker.ask(9, b"", b'{"request_id":"once"}')
        lost = await broker.published()
        again = {message.topic: message for message in await broker.reconnected()}[lost.topic]
        assert again.payload == lost.payload
        # The broker repeats what was not acknowledged, and gets no third reply.
        broker.ask(9, b"", b'{"request_id":"once"}', flags=0x08)
        assert await broker.acknowledged() == 9
        assert not broker.holds(PUBLISH)


async def test_refused_reply_is_counted_and_the_bridge_goes_on(invoker, executor):
    await invoker.publish("plugin/request/health", b"{}", response_topic="void/x")
    assert (await invoker.invoke("health", {}))["code"] == 200
    async with aiohttp.ClientSession(executor.url) as http, http.get("/metrics") as metrics:
        assert 'bridge_dropped_total{reason="reply_refused"} 1.0' in await metrics.text()
    assert executor.output.count("mqtt connected") == 1
