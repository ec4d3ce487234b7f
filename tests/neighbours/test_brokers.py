"""Brokers without shared subscriptions: the bridge is not ready, says what to set, and then serves.

The table of all brokers, and those with several nodes: `tests/clusters/run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clusters.brokers import Aedes, Nats, Node
from tests.conftest import StartBridge
from tests.contract.callers import MqttCaller
from tests.lab.platform import BOARD_A

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
