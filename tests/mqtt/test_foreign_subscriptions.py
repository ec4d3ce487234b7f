"""A login that subscribes in the bridge's session: nothing is executed twice by that."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from pydantic import SecretStr

from bridge.link import Link
from bridge.link.packets import Message
from bridge.link.topics import Topics
from bridge.mqtt.echo import Echo
from bridge.mqtt.own_subscriptions import OwnSubscriptions
from bridge.observability.metrics import Metrics
from bridge.settings import Settings
from tests.conftest import ConnectBoard, ConnectRequester, StartBridge
from tests.lab.board import Board
from tests.lab.bridge import Bridge
from tests.lab.line import Line
from tests.lab.platform import BOARD_A
from tests.lab.requester import ABSENT, Requester
from tests.lab.scripted import SUBSCRIBE

COMMAND = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
READING = {"device_uuid": BOARD_A, "sensor": "temperature"}
FOUND = "by a subscription that is not ours"

# MQTT_SHARE, and what another client subscribes to in the bridge's session.
ATTACKS = {
    "shared": ("bridge", ["plugin/request/+", "plugin/request/+/+"]),
    "plain": ("", ["$share/other/plugin/request/+"]),
    "everything": ("bridge", ["#"]),
}


async def subscribe_as(bridge: Bridge, filters: list[str], version: Any = "5") -> None:
    """Connect with the bridge's client id, subscribe in its session, and leave it there."""
    async with Requester(
        bridge.broker,
        version=version,
        client_id=bridge.instance,
        clean_start=False,
        session_expiry=3600,
        reconnect=False,
    ) as thief:
        for each in filters:
            await thief.subscribe(each)


async def command(requester: Requester, **options: Any) -> int:
    """The code of the reply to a command without an id."""
    topic = requester.reply_topic()
    request = json.dumps({**COMMAND, "reply_to": topic})
    reply = await requester.ask_raw(
        "plugin/request/control", request, response_topic=topic, correlation=ABSENT, **options
    )
    return reply.code


async def executes_once(requester: Requester, device: Board, times: int) -> None:
    already = len(device.commands)
    for _ in range(times):
        assert await command(requester) == 200
    # What a second execution had sent came before the answer to this.
    assert (await requester.ask("health")).code == 200
    await device.next_commands(times)
    assert len(device.commands) == already + times


async def dropped(bridge: Bridge, reason: str = "foreign_subscription") -> float:
    async with aiohttp.ClientSession(bridge.url) as http, http.get("/metrics") as metrics:
        for line in (await metrics.text()).splitlines():
            if line.startswith(f'bridge_dropped_total{{reason="{reason}"}}'):
                return float(line.split()[-1])
    return 0


async def connected(bridge: Bridge, times: int) -> None:
    """Wait until the bridge has connected so often since its first start."""
    await asyncio.to_thread(
        bridge.wait_for, lambda: bridge.output.count("mqtt connected") == times, "connecting"
    )
    await asyncio.to_thread(bridge.wait_until_it_is, "ready")


@pytest.mark.parametrize(("share", "filters"), ATTACKS.values(), ids=ATTACKS)
async def test_subscription_made_while_the_bridge_was_dead_executes_nothing_twice(
    private_bridge: StartBridge,
    board: ConnectBoard,
    connect_requester: ConnectRequester,
    share: str,
    filters: list[str],
):
    bridge = private_bridge(MQTT_SHARE=share)
    device = await board(BOARD_A, bridge.broker)
    requester = await connect_requester(bridge.broker)

    await asyncio.to_thread(bridge.kill)
    await subscribe_as(bridge, filters)
    waiting = asyncio.create_task(command(requester))
    await asyncio.to_thread(bridge.start)
    assert await waiting == 200
    await executes_once(requester, device, 1)
    await connected(bridge, 3)
    await executes_once(requester, device, 5)

    assert len(device.commands) == 7
    assert bridge.output.count(FOUND) == 1
    counted = await dropped(bridge)
    assert counted >= 1
    # The new session is served as it is: nothing is dropped, and there is no further reconnect.
    await executes_once(requester, device, 1)
    assert await dropped(bridge) == counted
    assert bridge.output.count("mqtt connected") == 3
    assert "mqtt unavailable" not in bridge.output


@pytest.mark.parametrize("asked_before", [True, False], ids=["asked before", "not asked before"])
async def test_subscription_made_while_the_bridge_runs_executes_nothing_twice(
    private_bridge: StartBridge,
    board: ConnectBoard,
    connect_requester: ConnectRequester,
    asked_before: bool,
):
    bridge = private_bridge()
    device = await board(BOARD_A, bridge.broker)
    requester = await connect_requester(bridge.broker)
    if asked_before:
        await executes_once(requester, device, 1)

    await subscribe_as(bridge, ["plugin/request/+", "plugin/request/+/+"])
    await connected(bridge, 2)
    await executes_once(requester, device, 1)
    await connected(bridge, 3)
    await executes_once(requester, device, 5)
    assert bridge.output.count(FOUND) == 1
    assert bridge.output.count("mqtt connected") == 3


async def test_foreign_topic_of_3_1_1_is_dropped_and_the_session_begun_anew(
    private_bridge: StartBridge, board: ConnectBoard, connect_requester: ConnectRequester
):
    bridge = private_bridge(MQTT_PROTOCOL="3.1.1")
    device = await board(BOARD_A, bridge.broker)
    requester = await connect_requester(bridge.broker, version="3.1.1")
    await subscribe_as(bridge, ["devices/#", "plugin/request/+/+/+"], "3.1.1")
    await connected(bridge, 2)
    await requester.publish("plugin/request/control/a/b", json.dumps(COMMAND))
    await connected(bridge, 3)
    await executes_once(requester, device, 5)
    assert await dropped(bridge) == 1
    assert bridge.output.count(FOUND) == 1


def without_identifier(packet: bytes) -> bytes:
    """A SUBSCRIBE without its properties: the broker then names no subscription."""
    if packet[0] >> 4 != SUBSCRIBE:
        return packet
    # All are short: one byte each for the packet's length and that of the properties.
    rest = packet[2:4] + b"\x00" + packet[5 + packet[4] :]
    return packet[:1] + bytes((len(rest),)) + rest


async def test_broker_that_names_no_subscription_is_served_as_before(
    private_bridge: StartBridge,
    private_mosquitto,
    board: ConnectBoard,
    connect_requester: ConnectRequester,
):
    broker = private_mosquitto()
    device = await board(BOARD_A, broker)
    requester = await connect_requester(broker)
    async with Line(broker) as line:
        line.alter = without_identifier
        bridge = private_bridge(wait=None, broker=line)
        await asyncio.to_thread(bridge.wait_until_it_is, "ready")
        await executes_once(requester, device, 2)
        for _ in range(2):
            await asyncio.to_thread(bridge.kill)
            waiting = asyncio.create_task(command(requester))
            await asyncio.to_thread(bridge.start)
            assert await waiting == 200
            await executes_once(requester, device, 2)
        assert FOUND not in bridge.output
        assert "it is ended" not in bridge.output
        assert await dropped(bridge) == 0


OURS, OTHER = True, False
NEW, KEPT = False, True

# What a broker names on a connection whose session is new or was kept, and what is served of it.
NAMED: dict[str, list[tuple[bool, list[bool], bool]]] = {
    "names none": [(KEPT, [], True), (NEW, [], True), (KEPT, [], True)],
    "names ours": [(NEW, [OURS], True), (KEPT, [OURS], True), (KEPT, [], False)],
    "names another": [(KEPT, [OURS], True), (KEPT, [OTHER], False)],
    "names several of one message": [(NEW, [OURS], True), (KEPT, [OTHER, OURS], True)],
    # As for messages by a share, say: never relied on again, or each new session would be ended.
    "leaves it out at times": [
        (KEPT, [OURS], True), (KEPT, [], False), (NEW, [], True), (NEW, [OURS], True),
        (KEPT, [], True),
    ],
}  # fmt: skip


@pytest.mark.parametrize("steps", NAMED.values(), ids=NAMED)
async def test_message_is_served_unless_it_is_known_not_to_be_ours(steps):
    settings = Settings(mqtt_password=SecretStr("secret"), mqtt_instance="b")
    topics = Topics("plugin", "bridge", "b", ())
    own = OwnSubscriptions(settings, topics, Echo(topics, "plugin/status/b-1"), Metrics())
    for kept, named, served in steps:
        message = Message("plugin/request/health", b"", 1, False, False, 1)
        message.subscription_identifiers = {own.identifier + (not ours) for ours in named}
        link = cast("Link", SimpleNamespace(session_present=kept))
        assert own.delivered(link, message) is served


async def test_identifier_of_requests_is_told_by_nothing_else(
    private_bridge: StartBridge, private_mosquitto
):
    """What others may publish to would show it to whoever takes our client id for a moment."""
    identifiers: dict[str, set[bytes]] = {"request": set(), "status": set()}

    def note(packet: bytes) -> None:
        if packet[0] >> 4 == SUBSCRIBE and packet[4]:
            kind = "request" if b"/request/" in packet else "status"
            identifiers[kind].add(packet[6 : 5 + packet[4]])

    async with Line(private_mosquitto()) as line:
        line.watch = note
        bridge = private_bridge(wait=None, broker=line)
        for start in (bridge.wait_until_it_is, bridge.start):
            await asyncio.to_thread(start, "ready")
            await asyncio.to_thread(bridge.kill)
    assert len(identifiers["request"]) == len(identifiers["status"]) == 1
    assert identifiers["request"].isdisjoint(identifiers["status"])


def test_identifier_is_stable_and_another_with_another_password():
    topics = Topics("plugin", "bridge", "b", ())

    def identifier(password: str) -> int:
        settings = Settings(mqtt_password=SecretStr(password), mqtt_instance="b")
        return OwnSubscriptions(settings, topics, Echo(topics, "t"), Metrics()).identifier

    assert identifier("a") == identifier("a") != identifier("b")
    assert 1 <= identifier("") <= 268_435_455
