"""Brokers with limits that they tell, and invokers of other protocol versions."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import ConnectBoard, ConnectRequester, StartBridge
from tests.lab.bridge import Bridge
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A
from tests.lab.requester import Requester

LIGHT = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
READING = {"device_uuid": BOARD_A, "sensor": "temperature"}


@pytest.mark.parametrize("version", ["1.0", "1", "1.7", "1.0.3"])
async def test_invoker_of_our_major_version_is_served(
    bridge: Bridge, requester: Requester, version: str
):
    reply = await requester.ask("sensor-data", READING, user_properties={"__protVer": version})
    assert reply.code == 200
    assert dict(reply.user_properties)["__protVer"] == "1.0"


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.1", "", "one", "1.x", "-1", "1" * 400])
async def test_invoker_of_another_version_is_told_and_nothing_is_executed(
    bridge: Bridge, requester: Requester, board: ConnectBoard, version: str
):
    device = await board(BOARD_A)
    reply = await requester.ask("control", LIGHT, user_properties={"__protVer": version})
    assert (reply.code, reply.error) == (505, "unsupported_version")
    told = dict(reply.user_properties)
    assert (told["__stat"], told["__supProtMajVer"]) == ("505", "1")
    assert told["__requestProtVer"][:300] == version[:300]
    assert (await requester.ask("sensor-data", READING)).code == 200
    assert not device.commands


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_broker_that_retains_nothing_is_served_without_presence(
    private_mosquitto,
    private_bridge: StartBridge,
    connect_requester: ConnectRequester,
    protocol: str,
):
    broker: Mosquitto = private_mosquitto("retain_available false")
    bridge = private_bridge(broker=broker, MQTT_PROTOCOL=protocol)
    requester = await connect_requester(broker, version=protocol)
    assert (await requester.ask("sensor-data", READING)).code == 200
    await asyncio.to_thread(bridge.wait_for_line, "presence is not announced")

    await asyncio.to_thread(broker.restart)
    await asyncio.to_thread(
        bridge.wait_for, lambda: bridge.output.count("mqtt connected") == 2, "connected again"
    )
    assert bridge.output.count("presence is not announced") == 1


async def test_broker_of_3_1_1_that_only_starts_late_gets_our_presence(
    private_mosquitto, private_bridge: StartBridge, connect_requester: ConnectRequester
):
    """What stands in its place meanwhile hangs up as well, as a proxy without a broker does."""
    broker: Mosquitto = private_mosquitto()
    await asyncio.to_thread(broker.stop)
    hung_up = asyncio.Event()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        hung_up.set()

    proxy = await asyncio.start_server(hang_up, broker.host, broker.port)
    bridge = private_bridge(broker=broker, wait="live", MQTT_PROTOCOL="3.1.1")
    await asyncio.wait_for(hung_up.wait(), 10)
    proxy.close()
    await proxy.wait_closed()
    await asyncio.to_thread(broker.start)
    await asyncio.to_thread(bridge.wait_until_it_is, "ready")

    watcher = await connect_requester(broker)
    await watcher.subscribe("plugin/status/+")
    presence = await watcher.next_message(topic="plugin/status/+")
    assert (presence.retain, presence.json["status"]) == (True, "online")
    assert "presence is not announced" not in bridge.output


async def test_broker_without_qos_1_is_named_and_the_bridge_is_not_ready(
    private_mosquitto, private_bridge: StartBridge
):
    broker: Mosquitto = private_mosquitto("max_qos 0")
    bridge = private_bridge(broker=broker, wait="live")
    line = await asyncio.to_thread(bridge.wait_for_line, "maximum_qos")
    assert "mqtt unavailable" in line


async def test_bridge_on_3_1_1_is_ready_and_warns_where_it_could_not_prove_delivery(
    private_mosquitto,
    private_bridge: StartBridge,
    connect_requester: ConnectRequester,
):
    # Everyone is anonymous here.
    acl = "topic read #\ntopic write plugin/request/sensor-data\n"
    acl += "topic write plugin/reply/#\ntopic write plugin/status/#\n"
    broker: Mosquitto = private_mosquitto(acl=f"{acl}topic write plugin/request/health/+\n")
    proven = private_bridge(broker=broker, MQTT_PROTOCOL="3.1.1")
    broker.set_acl(acl)
    unproven = private_bridge(broker=broker, MQTT_PROTOCOL="3.1.1")
    requester = await connect_requester(broker, version="3.1.1")
    for _ in range(4):
        assert (await requester.ask("sensor-data", READING)).code == 200
    await asyncio.to_thread(unproven.wait_for_line, "could not be checked")
    assert unproven.output.count("could not be checked") == 1
    assert "could not be checked" not in proven.output
