"""The session that the broker keeps: never served with other subscriptions, nor lost with ours."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.conftest import ConnectBoard, ConnectRequester, StartBridge
from tests.contract.callers import MqttCaller
from tests.lab.bridge import Bridge
from tests.lab.platform import BOARD_A

COMMAND = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
READING = {"device_uuid": BOARD_A, "sensor": "temperature"}


async def restarted(bridge: Bridge, **settings: str) -> None:
    """The same bridge by name, killed and started again with other settings."""
    await asyncio.to_thread(bridge.kill)
    bridge.settings.update(settings)
    await asyncio.to_thread(bridge.start)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("change", [{"MQTT_SHARE": "another"}, {"MQTT_SHARE": ""}])
async def test_bridge_killed_and_started_with_another_share_executes_once(
    private_bridge: StartBridge,
    board: ConnectBoard,
    protocol: str,
    change: dict[str, str],
):
    bridge = private_bridge(MQTT_PROTOCOL=protocol)
    device = await board(BOARD_A, bridge.broker)
    async with MqttCaller(bridge.broker, "mqtt5" if protocol == "5" else "mqtt3") as caller:
        assert (await caller.ask("control", COMMAND))["code"] == 200

        await restarted(bridge, **change)

        for _ in range(5):
            # Without an id: nothing but the session keeps it from being executed twice.
            assert (await caller.ask("control", COMMAND))["code"] == 200
        await device.next_commands(6)
        assert (await caller.ask("health"))["code"] == 200
    assert len(device.commands) == 6
    assert "it is ended" in bridge.output


async def test_requests_under_a_former_prefix_go_to_the_bridge_that_serves_it(
    private_bridge: StartBridge, connect_requester: ConnectRequester
):
    first = private_bridge(MQTT_INSTANCE="first")
    requester = await connect_requester(first.broker)
    second = private_bridge(broker=first.broker, MQTT_INSTANCE="second")

    await restarted(first, MQTT_TOPIC_PREFIX="other")

    for _ in range(10):
        assert (await requester.ask("sensor-data", READING)).code == 200
    assert second.running


async def test_unchanged_bridge_answers_what_came_while_it_was_stopped(
    private_bridge: StartBridge, connect_requester: ConnectRequester
):
    bridge = private_bridge()
    requester = await connect_requester(bridge.broker)
    topic = requester.reply_topic()
    await requester.subscribe(topic)

    assert await asyncio.to_thread(bridge.stop) == 0
    for number in range(10):
        request = {**READING, "reply_to": topic, "request_id": f"r{number}"}
        await requester.publish("plugin/request/sensor-data", json.dumps(request))
    await asyncio.to_thread(bridge.start)

    answered = [(await requester.next_message(topic=topic)).json for _ in range(10)]
    assert {body["request_id"] for body in answered} == {f"r{number}" for number in range(10)}
    assert {body["code"] for body in answered} == {200}


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
