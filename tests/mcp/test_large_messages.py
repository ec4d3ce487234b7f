"""Messages that grow when they are parsed take a bounded memory, however many come at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator

from tests.http.test_server import post
from tests.lab.bridge import Bridge
from tests.lab.memory import watched
from tests.lab.platform import BOARD_A

JSON = "Content-Type: application/json"
ACCEPT = "Accept: application/json, text/event-stream"


@contextlib.asynccontextmanager
async def clients(bridge: Bridge, count: int, request: bytes) -> AsyncIterator[list[bytes]]:
    """So many clients that send this; the first lines of the answers that they have got."""
    streams = [await asyncio.open_connection(bridge.host, bridge.port) for _ in range(count)]
    first_lines: list[bytes] = []

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
            first_lines.append(await reader.readline())

    asking = [asyncio.create_task(ask(*stream)) for stream in streams]
    try:
        yield first_lines
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for _, writer in streams:
            writer.close()


async def test_mcp_messages_by_the_hundred_take_a_bounded_memory(bridge: Bridge):
    """300 of 64 KiB took a gigabyte, since the SDK read them all at a time."""
    arguments = {
        "device_uuid": BOARD_A,
        "sensor": "temperature",
        "more": [{"": 0}] * 1900,
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
