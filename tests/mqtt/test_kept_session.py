"""The session that the broker keeps: never served with other subscriptions, nor lost with ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Literal

import pytest

from tests.conftest import ConnectBoard, ConnectRequester, StartBridge
from tests.lab.board import Board
from tests.lab.bridge import Bridge, Readiness
from tests.lab.line import Cut, Line, Watch
from tests.lab.mqtt import NO_MATCHING_SUBSCRIBERS
from tests.lab.platform import BOARD_A
from tests.lab.requester import ABSENT, Requester
from tests.lab.scripted import PUBLISH, SUBSCRIBE, UNSUBSCRIBE

COMMAND = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
READING = {"device_uuid": BOARD_A, "sensor": "temperature"}

Protocol = Literal["5", "3.1.1"]
both_protocols = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


async def restarted(bridge: Bridge, settings: Mapping[str, str], wait: Readiness = "ready") -> None:
    """The same bridge by name, killed and started again with other settings."""
    await asyncio.to_thread(bridge.kill)
    bridge.settings.update(settings)
    await asyncio.to_thread(bridge.start, wait)


async def executes_once(
    bridge: Bridge, requester: Requester, device: Board, *, unserved: str | None = None
) -> None:
    """Five commands are executed once each, and nobody takes requests below ``unserved``."""
    prefix = bridge.settings.get("MQTT_TOPIC_PREFIX", "plugin")
    already = len(device.commands)
    for _ in range(5):
        # Without an id: nothing but the session keeps it from being executed twice.
        topic = requester.reply_topic(prefix)
        reply = await requester.ask_raw(
            f"{prefix}/request/control",
            json.dumps({**COMMAND, "reply_to": topic}),
            response_topic=topic,
            correlation=ABSENT,
        )
        assert reply.code == 200
    # What a second execution had sent came before the answer to this.
    assert (await requester.ask("health", prefix=prefix)).code == 200
    await device.next_commands(5)
    assert len(device.commands) == already + 5
    if unserved is not None:
        async with Requester(requester.broker) as publisher:
            reached = await publisher.publish(f"{unserved}/request/control", json.dumps(COMMAND))
        assert reached == NO_MATCHING_SUBSCRIBERS


@both_protocols
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"MQTT_SHARE": "bridge"}, {"MQTT_SHARE": ""}),
        ({"MQTT_TOPIC_PREFIX": "plugin"}, {"MQTT_TOPIC_PREFIX": "other"}),
    ],
    ids=["share", "prefix"],
)
async def test_settings_that_change_and_change_back_leave_no_former_subscription(
    private_bridge: StartBridge,
    board: ConnectBoard,
    connect_requester: ConnectRequester,
    protocol: Protocol,
    before: dict[str, str],
    after: dict[str, str],
):
    bridge = private_bridge(MQTT_PROTOCOL=protocol, **before)
    device = await board(BOARD_A, bridge.broker)
    requester = await connect_requester(bridge.broker, version=protocol)
    prefixes = [settings.get("MQTT_TOPIC_PREFIX") for settings in (before, after)]

    await restarted(bridge, after)
    await executes_once(bridge, requester, device, unserved=prefixes[0])
    await restarted(bridge, before)
    await executes_once(bridge, requester, device, unserved=prefixes[1])
    assert bridge.output.count("it is ended") == 2


@both_protocols
async def test_connection_cut_at_any_step_after_a_changed_setting_executes_once(
    private_bridge: StartBridge,
    private_mosquitto,
    board: ConnectBoard,
    connect_requester: ConnectRequester,
    protocol: Protocol,
):
    broker = private_mosquitto()
    device = await board(BOARD_A, broker)
    requester = await connect_requester(broker, version=protocol)
    async with Line(broker) as line:
        bridge = private_bridge(wait=None, broker=line, MQTT_PROTOCOL=protocol)
        await asyncio.to_thread(bridge.wait_until_it_is, "ready")

        # It never gets so far as to look what the session holds.
        line.watch = cut_at(1, for_ever=True)
        await restarted(bridge, {"MQTT_SHARE": "unseen"}, "live")
        await asyncio.to_thread(bridge.wait_for_line, "mqtt unavailable")
        for step in (1, 2, 3):
            line.watch = cut_at(step)
            told = bridge.output.count("mqtt unavailable")
            await restarted(bridge, {"MQTT_SHARE": f"s{step}"})
            assert bridge.output.count("mqtt unavailable") == told + 1
            await executes_once(bridge, requester, device)


def cut_at(step: int, *, for_ever: bool = False) -> Watch:
    """Cut the line at that SUBSCRIBE or UNSUBSCRIBE, counted over all connections."""
    left = step

    def cut(packet: bytes) -> None:
        nonlocal left
        if packet[0] >> 4 in (SUBSCRIBE, UNSUBSCRIBE):
            left -= 1
            if left == 0 or (left < 0 and for_ever):
                raise Cut

    return cut


async def test_session_that_another_client_has_changed_is_ended_when_the_bridge_reconnects(
    private_bridge: StartBridge, board: ConnectBoard, connect_requester: ConnectRequester
):
    bridge = private_bridge()
    device = await board(BOARD_A, bridge.broker)
    requester = await connect_requester(bridge.broker)
    thief = Requester(bridge.broker, client_id=bridge.instance, session_expiry=60, reconnect=False)
    async with thief:
        await thief.subscribe("other/request/+")
        await thief.subscribe("plugin/request/+")
        await asyncio.to_thread(bridge.wait_for_line, "it is ended")
    await asyncio.to_thread(bridge.wait_until_it_is, "ready")
    await executes_once(bridge, requester, device, unserved="other")


async def test_session_of_3_1_1_that_hears_every_status_is_not_taken_for_ours(
    private_bridge: StartBridge,
    private_mosquitto,
    board: ConnectBoard,
    connect_requester: ConnectRequester,
):
    broker = private_mosquitto()
    device = await board(BOARD_A, broker)
    requester = await connect_requester(broker, version="3.1.1")
    # As a bridge without its database leaves it that is killed.
    async with Requester(broker, version="3.1.1", client_id="b", clean_start=False) as former:
        await former.subscribe("plugin/status/+")
        await former.subscribe("$share/former/plugin/request/+")
    bridge = private_bridge(broker=broker, MQTT_PROTOCOL="3.1.1", MQTT_INSTANCE="b")
    await executes_once(bridge, requester, device)
    assert "it is ended" in bridge.output


@pytest.mark.parametrize(
    ("protocol", "refused", "answer"),
    [
        ("5", SUBSCRIBE, b"\x90\x04%b\x00\x87"),
        ("5", SUBSCRIBE, None),
        # Success, even for what was never subscribed.
        ("5", UNSUBSCRIBE, b"\xb0\x05%b\x00\x00\x00"),
        ("5", UNSUBSCRIBE, b"\xb0\x04%b\x00\x00"),
        ("3.1.1", SUBSCRIBE, b"\x90\x03%b\x80"),
        ("3.1.1", PUBLISH, b""),
        ("3.1.1", PUBLISH, None),
    ],
    ids=["refused", "fatal", "untrue", "too few", "refused", "in silence", "fatal"],
)
async def test_broker_that_lets_us_have_no_marker_executes_once(
    private_bridge: StartBridge,
    private_mosquitto,
    board: ConnectBoard,
    connect_requester: ConnectRequester,
    protocol: Protocol,
    refused: int,
    answer: bytes | None,
):
    broker = private_mosquitto()
    device = await board(BOARD_A, broker)
    requester = await connect_requester(broker, version=protocol)
    async with Line(broker) as line:
        bridge = private_bridge(wait=None, broker=line, MQTT_PROTOCOL=protocol)
        marker = f"plugin/status/{bridge.instance}-".encode()

        def forbid(packet: bytes) -> bytes | None:
            if packet[0] >> 4 != refused or marker not in packet:
                return None
            if answer is None:
                raise Cut
            return answer % packet[2:4] if answer else answer

        line.watch = forbid
        await asyncio.to_thread(bridge.wait_until_it_is, "ready")
        await restarted(bridge, {"MQTT_SHARE": "another"})
        await executes_once(bridge, requester, device)
        assert "it is ended" in bridge.output
        assert ("the session can't be marked" in bridge.output) == (refused == SUBSCRIBE)


@both_protocols
async def test_unchanged_bridge_answers_hundreds_that_it_was_killed_over(
    private_bridge: StartBridge, connect_requester: ConnectRequester, protocol: Protocol
):
    # Mosquitto sends 20 to a client of 3.1.1, and no more until these are acknowledged.
    bridge = private_bridge(MQTT_PROTOCOL=protocol, MAX_IN_FLIGHT="1000")
    requester = await connect_requester(bridge.broker)
    topic = requester.reply_topic()
    await requester.subscribe(topic)

    await asyncio.to_thread(bridge.pause)
    ids = {f"r{number}" for number in range(500)}
    for request_id in ids:
        request = {**READING, "reply_to": topic, "request_id": request_id}
        await requester.publish("plugin/request/sensor-data", json.dumps(request))
    await restarted(bridge, {})

    while ids:
        body = (await requester.next_message(topic=topic)).json
        assert body["code"] == 200, body
        ids.discard(body["request_id"])
    assert "is ended" not in bridge.output


async def test_unchanged_bridge_that_is_killed_again_on_its_return_answers_what_waits(
    private_bridge: StartBridge, private_mosquitto, connect_requester: ConnectRequester
):
    """Between the look at what the session holds and its end, when the marker is missing."""
    broker = private_mosquitto()
    requester = await connect_requester(broker)
    topic = requester.reply_topic()
    await requester.subscribe(topic)
    async with Line(broker) as line:
        bridge = private_bridge(wait=None, broker=line)
        await asyncio.to_thread(bridge.wait_until_it_is, "ready")
        bridge.kill()
        ids = {f"r{number}" for number in range(10)}
        for request_id in ids:
            request = {**READING, "reply_to": topic, "request_id": request_id}
            await requester.publish("plugin/request/sensor-data", json.dumps(request))
        killed = asyncio.Event()

        def kill_at_the_marker(packet: bytes) -> None:
            if packet[0] >> 4 == SUBSCRIBE:
                bridge.kill()
                killed.set()
                raise Cut

        passes, line.watch = line.watch, kill_at_the_marker
        bridge.spawn()
        async with asyncio.timeout(10):
            await killed.wait()
        line.watch = passes
        await asyncio.to_thread(bridge.start)
        answered = {(await requester.next_message(topic=topic)).json["request_id"] for _ in ids}
    assert answered == ids
    assert "is ended" not in bridge.output


@pytest.mark.parametrize("share", ["bridge", ""])
async def test_unchanged_bridge_answers_what_came_while_it_was_stopped(
    private_bridge: StartBridge, connect_requester: ConnectRequester, share: str
):
    bridge = private_bridge(MQTT_SHARE=share)
    requester = await connect_requester(bridge.broker)
    topic = requester.reply_topic()
    await requester.subscribe(topic)

    for stop in range(2):
        assert await asyncio.to_thread(bridge.stop) == 0
        ids = {f"{stop}-{number}" for number in range(10)}
        for request_id in ids:
            request = {**READING, "reply_to": topic, "request_id": request_id}
            await requester.publish("plugin/request/sensor-data", json.dumps(request))
        await asyncio.to_thread(bridge.start)

        answered = [(await requester.next_message(topic=topic)).json for _ in range(10)]
        assert {body["request_id"] for body in answered} == ids
        assert {body["code"] for body in answered} == {200}
    assert "is ended" not in bridge.output


async def test_bridge_whose_session_ends_with_it_leaves_nothing_to_wait(
    private_bridge: StartBridge, connect_requester: ConnectRequester
):
    bridge = private_bridge(MQTT_SESSION_EXPIRY="0")
    requester = await connect_requester(bridge.broker)
    topic = requester.reply_topic()
    await requester.subscribe(topic)

    assert await asyncio.to_thread(bridge.stop) == 0
    request = {**READING, "reply_to": topic, "request_id": "lost"}
    await requester.publish("plugin/request/sensor-data", json.dumps(request))
    await asyncio.to_thread(bridge.start)

    assert (await requester.ask("sensor-data", {**READING, "request_id": "asked"})).code == 200
    assert "lost" not in [message.json.get("request_id") for message in requester.messages]
