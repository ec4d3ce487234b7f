"""Commands with ids without number: they cost their sender, and nobody else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from tests.conftest import ConnectBoard, ConnectRequester
from tests.lab.bridge import Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.memory import watched
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A, BOARD_B, Platform

KEYS = {"flooder": "flooder-5ecret", "other": "other-5ecret"}
UNREACHABLE = {"device_uuid": BOARD_B, "port_type": "led", "port_id": 1, "action": "on"}
LIGHT = {**UNREACHABLE, "device_uuid": BOARD_A}
NOTED = {
    "preset_key": "noted",
    "preset_type": "sequence",
    "steps": [{"command": {"cmd": "display", "text": "x" * 60_000}}],
}
MIB = 2**20


@pytest.fixture(scope="module")
def flooded(mosquitto: Mosquitto, mariadb: MariaDb) -> Iterator[Bridge]:
    """It warms up, and its memory with it, before anything is measured."""
    keys = ",".join(f"{name}:{secret}" for name, secret in KEYS.items())
    with Bridge(mosquitto, mariadb, MQTT_TOPIC_PREFIX="flooded", API_KEYS=keys) as process:
        yield process


async def flood(
    bridge: Bridge, path: str, fields: dict[str, Any], first: int, count: int, clients: int = 32
) -> Any:
    """How many of the answers to commands with ids of their own had which error."""
    headers = {"X-API-Key": KEYS["flooder"]}
    ids = iter(range(first, first + count))
    outcomes: Counter[str] = Counter()

    async def ask(session: aiohttp.ClientSession) -> None:
        for number in ids:
            named = {**headers, "Idempotency-Key": f"flood-{number}"}
            async with session.post(path, json=fields, headers=named) as response:
                outcomes[(await response.json()).get("error", "ok")] += 1

    async with aiohttp.ClientSession(base_url=bridge.url) as session:
        await asyncio.gather(*(ask(session) for _ in range(clients)))
    return outcomes


async def switch(bridge: Bridge, key: str, request_id: str) -> int:
    """Switch a light with an id; the status."""
    headers = {"X-API-Key": KEYS[key], "Idempotency-Key": request_id}
    async with (
        aiohttp.ClientSession(base_url=bridge.url) as session,
        session.post("/api/control", json=LIGHT, headers=headers) as response,
    ):
        return response.status


async def test_ids_at_an_unreachable_board_take_no_memory(
    flooded: Bridge, board: ConnectBoard, count: int = 4000
):
    await board(BOARD_A)
    await flood(flooded, "/api/control", UNREACHABLE, 0, 1000)
    async with watched(flooded) as memory:
        outcomes = await flood(flooded, "/api/control", UNREACHABLE, 1000, count)
    assert outcomes == {"device_unreachable": count}
    # Each took 4.3 KiB in version 1.0.
    assert memory.growth < 8
    assert await switch(flooded, "flooder", "mine") == 200
    assert await switch(flooded, "other", "mine") == 200


async def test_share_that_is_used_up_rejects_new_ids_of_its_key_alone(
    flooded: Bridge, board: ConnectBoard, connect_requester: ConnectRequester, mariadb: MariaDb
):
    platform = Platform(mariadb)
    noted = "a9a9a9a9-0000-4000-8000-00000000000a"
    platform.add_device(noted, "noted", settings={"preset_commands": [NOTED]})
    await board(BOARD_A)
    await board(noted)
    try:
        preset = {"device_uuid": noted, "preset_key": "noted"}
        async with watched(flooded) as memory:
            outcomes: Counter[str] = Counter()
            first = 10_000
            while not outcomes["busy"]:
                # One by one: a device runs one sequence at a time.
                outcomes += await flood(flooded, "/api/preset", preset, first, 100, clients=1)
                first += 100
                assert first < 20_000
    finally:
        platform.remove_device(noted)
    assert memory.growth < 48
    assert await switch(flooded, "flooder", "another") == 429
    assert await switch(flooded, "other", "another") == 200
    requester = await connect_requester()
    named = {**LIGHT, "request_id": "another"}
    assert (await requester.ask("control", named, prefix="flooded")).code == 200


async def test_waiting_duplicates_of_one_key_leave_those_of_another_their_answers(
    mosquitto: Mosquitto, mariadb: MariaDb, board: ConnectBoard
):
    """They wait as long as a sequence takes; the known outcome of another's command was 429."""
    platform = Platform(mariadb)
    slow = "a9a9a9a9-0000-4000-8000-00000000000b"
    step = {"command": {"cmd": "led", "device_id": 1, "value": 1}, "delay": 20}
    sequence = {"preset_key": "slow", "preset_type": "sequence", "steps": [step, step]}
    platform.add_device(slow, "slow", settings={"preset_commands": [sequence]})
    await board(BOARD_A)
    listening = await board(slow)
    keys = ",".join(f"{name}:{secret}" for name, secret in KEYS.items())
    settings = {"MQTT_TOPIC_PREFIX": "waiting", "MAX_IN_FLIGHT": "8", "API_KEYS": keys}
    try:
        with Bridge(mosquitto, mariadb, **settings, DRAIN_TIMEOUT="0.1") as bridge:
            assert await switch(bridge, "other", "mine") == 200
            preset = {"device_uuid": slow, "preset_key": "slow"}
            asking = asyncio.create_task(flood_of_one_id(bridge, preset, 20))
            await listening.next_command()
            assert (await asyncio.wait_for(asking, 10))["busy"] >= 17
            assert await switch(bridge, "other", "mine") == 200
    finally:
        platform.remove_device(slow)


async def flood_of_one_id(bridge: Bridge, fields: dict[str, Any], count: int) -> Counter[str]:
    """The errors of so many requests with one id, as far as they are answered within 2 s."""
    headers = {"X-API-Key": KEYS["flooder"], "Idempotency-Key": "one"}
    outcomes: Counter[str] = Counter()

    async def ask(session: aiohttp.ClientSession) -> None:
        async with session.post("/api/preset", json=fields, headers=headers) as response:
            outcomes[(await response.json()).get("error", "ok")] += 1

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(base_url=bridge.url, connector=connector) as session:
        asking = [asyncio.create_task(ask(session)) for _ in range(count)]
        await asyncio.wait(asking, timeout=2)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return outcomes
