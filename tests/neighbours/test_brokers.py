"""Brokers without shared subscriptions: the bridge is not ready, says what to set, and then serves.

The table of all brokers, and those with several nodes: `tests/clusters/run`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clusters.brokers import Aedes, Nats, Node
from tests.conftest import StartBridge
from tests.contract.callers import MqttCaller
from tests.lab.platform import BOARD_A
from tests.lab.requester import Requester

READING = {"device_uuid": BOARD_A, "sensor": "temperature"}
BROKERS: dict[str, Callable[[], Node]] = {
    "Aedes": lambda: Aedes(Path(__file__).with_name("node_modules")),
    "NATS": Nats,
}


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Iterator[Node]:
    with BROKERS[request.param]() as node:
        yield node


async def test_share_that_delivers_nothing_is_told_and_the_bridge_is_not_ready(
    broker: Node, private_bridge: StartBridge
):
    bridge = private_bridge(broker=broker, wait="live", MQTT_PROTOCOL="3.1.1")
    line = await asyncio.to_thread(bridge.wait_for_line, "MQTT_SHARE= ")
    assert "mqtt unavailable" in line
    assert not bridge.ready

    bridge.settings["MQTT_SHARE"] = ""
    await asyncio.to_thread(bridge.restart)
    async with MqttCaller(broker, "mqtt3") as caller:
        assert (await caller.ask("sensor-data", READING))["code"] == 200


async def test_reply_that_nats_hangs_up_on_is_given_up_and_others_are_answered(
    private_bridge: StartBridge,
):
    with Nats(ack_wait="1s") as broker:
        bridge = private_bridge(broker=broker, MQTT_PROTOCOL="3.1.1", MQTT_SHARE="")
        async with Requester(broker, version="3.1.1") as requester:
            # NATS takes no space in a topic.
            refused = {**READING, "reply_to": "plugin/reply/a b", "request_id": "refused"}
            await requester.publish("plugin/request/sensor-data", json.dumps(refused))
            asked = (requester.ask("sensor-data", READING) for _ in range(20))
            assert {reply.code for reply in await asyncio.gather(*asked)} == {200}
            assert bridge.ready
        await asyncio.to_thread(bridge.wait_for_line, "plugin/reply/a b")
