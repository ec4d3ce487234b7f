"""Bodies that never come whole take a bounded memory, and keep nobody else out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterator

import aiohttp
import pytest

from tests.http.test_server import Connection, post
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


GOOD = 20


@pytest.fixture(scope="module")
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
            while answered[b"429"] < CLIENTS - 256:
                await asyncio.sleep(0.05)

        async with aiohttp.ClientSession(stalled.url) as others:
            whole = {"requests": [READING] * 100}
            assert len(json.dumps(whole)) > 4096
            for path, fields in (("/api/batch", whole), ("/api/batch", {"requests": [READING]})):
                async with others.post(path, json=fields) as answer:
                    assert answer.status == 200
    assert answered.keys() == {b"429"}
    assert memory.growth < 120


async def test_bodies_that_stall_keep_nobody_out(stalled: Bridge):
    """512 of them kept all others out, until `REQUEST_TIMEOUT`."""
    body = json.dumps({"requests": [READING]}).encode().ljust(20_000)
    request = post("/api/batch", body, JSON)
    output = len(stalled.output)
    async with contextlib.AsyncExitStack() as stack:
        stuck = [
            await stack.enter_async_context(Connection(stalled.port)) for _ in range(600 - GOOD)
        ]
        for client in stuck:
            client.writer.write(ENDLESS)
        # Who had been on their way longest.
        for client in stuck[: len(stuck) - 256]:
            status, headers, refusal = await client.answer()
            assert (status, refusal["error"], headers["connection"]) == (429, "busy", "close")
            assert await client.closed()

        async def send() -> int:
            async with Connection(stalled.port) as client:
                for begin in range(0, len(request), 2_000):
                    await client.send(request[begin : begin + 2_000])
                    await asyncio.sleep(0.1)
                return (await client.response())[0]

        assert await asyncio.gather(*(send() for _ in range(GOOD))) == [200] * GOOD
    assert "ERROR" not in stalled.output[output:]


async def test_body_that_goes_on_after_its_429_loses_no_answer(stalled: Bridge):
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Connection(stalled.port))
        await first.send(ENDLESS)
        await asyncio.sleep(0.1)
        for _ in range(257):
            client = await stack.enter_async_context(Connection(stalled.port))
            client.writer.write(ENDLESS)
        await first.send(b" " * 3_000)
        assert (await first.response())[0] == 429
