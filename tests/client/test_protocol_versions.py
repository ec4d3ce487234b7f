"""The client and `run.py call` on MQTT 3.1.1: by choice, or because the broker knows no MQTT 5."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from bridge.client import BridgeClient, CallError, NoReply, NotConnected, Refused
from tests.lab.line import Cut, Line
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Broker
from tests.lab.platform import BOARD_A, UNKNOWN_BOARD

CONNECT = 0x10

LED = {"port_type": "led", "port_id": 1, "action": "on"}
REFUSALS = {
    "a CONNACK of 3.1.1 that says so": b"\x20\x02\x00\x01",
    "a CONNACK of MQTT 5 that says so": b"\x20\x03\x00\x84\x00",
    "the end of the connection": b"",
}


class Only311(Line):
    """Before a broker: lets through who speaks 3.1.1, and answers a CONNECT of MQTT 5 as told."""

    def __init__(self, broker: Broker, refusal: bytes) -> None:
        super().__init__(broker)
        self._refusal = refusal
        self.versions: list[int] = []
        self.watch = self._answer

    def _answer(self, packet: bytes) -> bytes | None:
        if packet[0] != CONNECT:
            return None
        version = packet[packet.index(b"MQTT") + 4]
        self.versions.append(version)
        if version != 5:
            return None
        if not self._refusal:
            raise Cut
        return self._refusal


async def answered(call: Awaitable[object]) -> bool:
    try:
        await call
    except CallError:
        return False
    return True


def url_of(broker: Broker) -> str:
    return f"mqtt://{broker.host}:{broker.port}"


async def test_everything_works_on_mqtt_311(bridge, mosquitto, board):
    listening = await board(BOARD_A)
    async with BridgeClient(url_of(mosquitto), protocol="3.1.1") as client:
        reading = await client.sensor_data(BOARD_A, "温度")
        await client.control(BOARD_A, **LED)
        with pytest.raises(Refused) as refused:
            await client.device(UNKNOWN_BOARD)
        details = await asyncio.gather(
            *(client.request("sensor-data", {"device_uuid": f"{n}"}) for n in range(200))
        )
    assert reading.value == 29.1
    assert (await listening.next_command()).json["device_id"] == 1
    assert refused.value.error == "device_not_found"
    assert len({body["request_id"] for body in details}) == 200


async def test_same_id_at_the_same_time_executes_once_and_answers_all_on_mqtt_311(
    bridge, mosquitto, board
):
    listening = await board(BOARD_A)
    async with BridgeClient(url_of(mosquitto), protocol="3.1.1") as client:
        results = await asyncio.gather(
            *(client.control(BOARD_A, **LED, request_id="old-twice") for _ in range(5))
        )
        await client.control(BOARD_A, **{**LED, "port_id": 2})
    assert all(result == results[0] for result in results)
    assert [command["device_id"] for command in await listening.next_commands(2)] == [1, 2]


async def test_deadline_holds_at_the_bridge_on_mqtt_311(private_bridge, board):
    bridge = await asyncio.to_thread(private_bridge)
    listening = await board(BOARD_A, broker=bridge.broker)
    async with BridgeClient(url_of(bridge.broker), protocol="3.1.1") as client:
        bridge.pause()
        with pytest.raises(NoReply):
            await client.control(BOARD_A, **LED, timeout=1)
        bridge.resume()
        await client.control(BOARD_A, **{**LED, "port_id": 2})
    assert (await listening.next_command()).json["device_id"] == 2


async def test_bridge_on_mqtt_311_answers_a_client_on_mqtt_5(private_bridge):
    bridge = await asyncio.to_thread(lambda: private_bridge(MQTT_PROTOCOL="3.1.1"))
    async with BridgeClient(url_of(bridge.broker), protocol="5") as client:
        assert (await client.sensor_data(BOARD_A, "温度")).value == 29.1


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_broker_that_knows_no_mqtt_5_is_spoken_to_in_311(refusal, bridge, mosquitto):
    started = time.monotonic()
    async with Only311(mosquitto, refusal) as broker:
        async with BridgeClient(url_of(broker)) as client:
            assert (await client.sensor_data(BOARD_A, "温度")).value == 29.1
        assert broker.versions == [5, 4]
    assert time.monotonic() - started < 3


async def test_version_that_was_chosen_is_the_only_one_tried(mosquitto):
    async with Only311(mosquitto, b"") as broker:
        with pytest.raises(NotConnected):
            async with BridgeClient(url_of(broker), protocol="5"):
                pass
        assert broker.versions == [5]


async def test_broker_that_refuses_the_login_is_asked_once(
    private_mosquitto: Callable[..., Mosquitto],
):
    broker = await asyncio.to_thread(private_mosquitto, anonymous=False, passwords={"a": "b"})
    async with Only311(broker, b"\x20\x03\x00\x86\x00") as front:
        with pytest.raises(NotConnected, match="password"):
            async with BridgeClient(f"mqtt://a:wrong@{front.host}:{front.port}"):
                pass
        assert front.versions == [5]


async def test_lost_connection_comes_back_in_the_version_that_was_settled(private_bridge):
    bridge = await asyncio.to_thread(private_bridge)
    async with Only311(bridge.broker, b"") as front, BridgeClient(url_of(front)) as client:
        assert await client.health()
        await asyncio.to_thread(bridge.broker.restart)
        async with asyncio.timeout(20):
            # The client may be back before the bridge, and MQTT 3.1.1 does not tell that.
            while not (await answered(client.health(timeout=0.5))):
                pass
        assert set(front.versions[1:]) == {4}


async def test_request_that_nobody_hears_is_no_reply_on_mqtt_311(private_mosquitto):
    broker = await asyncio.to_thread(private_mosquitto)
    async with BridgeClient(url_of(broker), protocol="3.1.1") as client:
        with pytest.raises(CallError, match="no reply") as caught:
            await client.health(timeout=0.5)
    assert isinstance(caught.value, NoReply)
