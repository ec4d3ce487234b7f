"""Bodies that never come whole take a bounded memory, and keep nobody else out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterator

import aiohttp
import pytest

from tests.http.test_server import post
from tests.lab.bridge import Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.memory import watched
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A

CLIENTS = 1500
READING = {"operation": "sensor-data", "device_uuid": BOARD_A, "sensor": "temperature"}
JSON = "Content-Type: application/json"
ENDLESS = post("/api/batch", b" " * 64_000, JSON)[:-4_000]
CHUNKED = (
    b"POST /api/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nea60\r\n" + b" " * 60_000 + b"\r\n"
)


@pytest.fixture
def stalled(mosquitto: Mosquitto, mariadb: MariaDb) -> Iterator[Bridge]:
    """A bridge that waits for a body for longer than the test takes."""
    with Bridge(mosquitto, mariadb, MQTT_SHARE="stalled", REQUEST_TIMEOUT="60") as process:
        yield process


@pytest.mark.parametrize("begun", [ENDLESS, CHUNKED], ids=["declared", "chunked"])
async def test_bodies_that_stall_are_bounded_together(stalled: Bridge, begun: bytes):
    async with contextlib.AsyncExitStack() as stack:
        memory = await stack.enter_async_context(watched(stalled))
        answered: Counter[bytes] = Counter()

        async def wait_for_status(reader: asyncio.StreamReader) -> None:
            answered[(await reader.readline())[9:12]] += 1

        for _ in range(CLIENTS):
            reader, writer = await asyncio.open_connection(stalled.host, stalled.port)
            stack.callback(writer.close)
            writer.write(begun)
            stack.callback(asyncio.create_task(wait_for_status(reader)).cancel)
        async with asyncio.timeout(20):
            while answered[b"429"] < CLIENTS - 512:
                await asyncio.sleep(0.05)

        async with aiohttp.ClientSession(stalled.url) as others:
            # One that comes whole is no burden, however long.
            whole = {"requests": [READING] * 100}
            assert len(json.dumps(whole)) > 4096
            for path, fields in (("/api/batch", whole), ("/api/batch", {"requests": [READING]})):
                async with others.post(path, json=fields) as answer:
                    assert answer.status == 200
    assert answered == {b"429": CLIENTS - 512}
    assert memory.growth < 120
