"""What one API key asks for without end keeps no other key out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import aiohttp
import pytest

from tests.conftest import ConnectBoard, StartBridge
from tests.http.test_server import get, post
from tests.lab.bridge import Bridge
from tests.lab.clients import flood
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A, Platform

KEYS = {"flooder": "flooder-5ecret", "other": "other-5ecret"}
FLOODER, OTHER = ({"X-API-Key": secret} for secret in KEYS.values())
BY_FLOODER = f"X-API-Key: {KEYS['flooder']}"
READING = {"device_uuid": BOARD_A, "sensor": "temperature"}
ACCEPT = "Accept: application/json, text/event-stream"
SLOW = [f"a9a9a9a9-0000-4000-8000-0000000000f{number}" for number in range(3)]
# In a worker that lists 5,000 devices, each page takes some milliseconds.
MANY_DEVICES = """
INSERT INTO device_main (uuid, device_id, name, device_secret)
SELECT UUID(), CONCAT('many-', seq), CONCAT('device ', seq), 'secret' FROM seq_1_to_5000
"""


@pytest.fixture(scope="module")
def small(mosquitto: Mosquitto, mariadb: MariaDb) -> Iterator[Bridge]:
    """Four places: one for a list of devices, two for presets."""
    settings = {
        "API_KEYS": ",".join(f"{name}:{secret}" for name, secret in KEYS.items()),
        "MAX_IN_FLIGHT": "4",
        "MQTT_TOPIC_PREFIX": "one-key",
        "DRAIN_TIMEOUT": "0.1",
    }
    with Bridge(mosquitto, mariadb, **settings) as process:
        yield process


async def read(bridge: Bridge) -> int:
    """Read a sensor with the other key; the status."""
    async with (
        aiohttp.ClientSession(bridge.url, headers=OTHER) as session,
        session.get("/api/sensor-data", params=READING) as response,
    ):
        return response.status


def mcp(method: str, **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


async def call(session: aiohttp.ClientSession) -> int:
    """Read a sensor over MCP; the status."""
    body = mcp("tools/call", name="read_sensor", arguments=READING)
    async with session.post("/mcp/", data=body) as response:
        if response.status == 200:
            assert (await response.json())["result"]["isError"] is False
        return response.status


async def test_flood_of_device_lists_leaves_another_key_its_readings(
    small: Bridge, platform: Platform, mariadb: MariaDb
):
    """They kept all places while each waited for those before it to be read."""
    mariadb.execute(MANY_DEVICES)
    lists = get("/api/devices?limit=100", BY_FLOODER)
    async with flood(small, 300, lists) as answered, asyncio.timeout(20):
        while not (answered[200] and answered[429]):
            await asyncio.sleep(0.05)
        assert [await read(small) for _ in range(10)] == [200] * 10


async def test_flood_of_mcp_messages_leaves_another_key_its_calls(small: Bridge):
    """They filled the one queue for all."""
    lists = post("/mcp/", mcp("tools/list"), BY_FLOODER, ACCEPT, "Content-Type: application/json")
    accept = {"Accept": ACCEPT.removeprefix("Accept: "), "Content-Type": "application/json"}
    async with aiohttp.ClientSession(small.url, headers={**OTHER, **accept}) as session:
        assert await call(session) == 200
        async with flood(small, 600, lists) as answered, asyncio.timeout(20):
            while not (answered[200] and answered[429]):
                await asyncio.sleep(0.05)
            assert [await call(session) for _ in range(10)] == [200] * 10


async def test_sequences_on_many_devices_leave_another_key_its_readings(
    small: Bridge, mariadb: MariaDb, board: ConnectBoard
):
    """A sequence keeps its place for two minutes."""
    platform = Platform(mariadb)
    step = {"command": {"cmd": "led", "device_id": 1, "value": 1}, "delay": 20}
    sequence = {"preset_key": "slow", "preset_type": "sequence", "steps": [step, step]}
    for uuid in SLOW:
        platform.add_device(uuid, "slow", settings={"preset_commands": [sequence]})

    async def run(session: aiohttp.ClientSession, uuid: str) -> int:
        preset = {"device_uuid": uuid, "preset_key": "slow"}
        async with session.post("/api/preset", json=preset) as response:
            return response.status

    boards = [await board(uuid) for uuid in SLOW]
    async with aiohttp.ClientSession(small.url, headers=FLOODER) as session:
        running = [asyncio.create_task(run(session, uuid)) for uuid in SLOW[:2]]
        try:
            for listening in boards[:2]:
                await listening.next_command()
            assert await run(session, SLOW[2]) == 429
            assert [await read(small) for _ in range(3)] == [200] * 3
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for uuid in SLOW:
                platform.remove_device(uuid)


async def test_burst_of_device_lists_is_answered(private_bridge: StartBridge):
    """They wait for their few places longer than others, and keep none meanwhile."""
    bridge = private_bridge(DEVICE_LIST="open")
    connector = aiohttp.TCPConnector(limit=300)
    async with aiohttp.ClientSession(bridge.url, connector=connector) as http:

        async def listed() -> int:
            async with http.get("/api/devices") as answer:
                await answer.read()
                return answer.status

        statuses = await asyncio.gather(*(listed() for _ in range(300)))
    assert set(statuses) == {200}
