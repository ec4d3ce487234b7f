"""Messages that grow when they are parsed take a bounded memory, however many come at once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

from tests.app.test_promises import locked
from tests.conftest import StartBridge
from tests.http.test_server import post
from tests.lab.bridge import Bridge
from tests.lab.clients import clients, flood
from tests.lab.mariadb import MariaDb
from tests.lab.memory import watched
from tests.lab.platform import BOARD_A

JSON = "Content-Type: application/json"
ACCEPT = "Accept: application/json, text/event-stream"


async def test_mcp_messages_by_the_hundred_take_a_bounded_memory(bridge: Bridge):
    """300 of 64 KiB took a gigabyte, since the SDK read them all at a time."""
    arguments = {
        "device_uuid": BOARD_A,
        "sensor": "temperature",
        "more": [{"": 0}] * 480,
        "text": "x" * 40_000,
    }
    call = {"name": "read_sensor", "arguments": arguments}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    request = post("/mcp/", json.dumps(message).encode(), JSON, ACCEPT)
    async with clients(bridge, 1, request) as warm, asyncio.timeout(10):
        while not warm:
            await asyncio.sleep(0.05)
    async with watched(bridge) as memory, clients(bridge, 300, request) as answered:
        async with asyncio.timeout(20):
            while len(answered) < 300:
                await asyncio.sleep(0.05)
    statuses = Counter(line.split()[1] for line in answered)
    assert statuses.keys() <= {b"200", b"429"}
    assert statuses[b"200"] >= 32
    assert memory.growth < 150


def with_an_emoji() -> bytes:
    """60 KB, in a text that takes four bytes for each character."""
    arguments = {"device_uuid": BOARD_A, "sensor": "temperature", "text": "😀" + "x" * 60_000}
    call = {"name": "read_sensor", "arguments": arguments}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    return post("/mcp/", json.dumps(message, ensure_ascii=False).encode(), JSON, ACCEPT)


async def test_mcp_messages_that_wait_for_the_database_take_a_bounded_memory(
    private_bridge: StartBridge, mariadb: MariaDb
):
    """400 took 240 MiB."""
    bridge = private_bridge(DB_TIMEOUT="1")
    async with clients(bridge, 1, with_an_emoji()) as warm, asyncio.timeout(10):
        while not warm:
            await asyncio.sleep(0.05)
    with locked(mariadb, "device_main"):
        async with watched(bridge) as memory, flood(bridge, 400, with_an_emoji()) as answered:
            async with asyncio.timeout(20):
                while answered[200] < 64:
                    await asyncio.sleep(0.05)
    assert memory.growth < 150


async def test_mcp_messages_that_wait_for_a_place_at_the_stop_are_no_error(
    private_bridge: StartBridge, mariadb: MariaDb
):
    bridge = private_bridge()
    with locked(mariadb, "device_main"):
        async with flood(bridge, 400, with_an_emoji()) as answered, asyncio.timeout(20):
            # The first have waited for a second, as many others as are in flight for the database.
            while not answered[429]:
                await asyncio.sleep(0.05)
            stopping = asyncio.create_task(asyncio.to_thread(bridge.stop))
            await asyncio.to_thread(bridge.wait_for_line, "draining")
    assert await stopping == 0
    assert "internal error" not in bridge.output
