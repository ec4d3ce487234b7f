"""Clients that ask for much and read nothing of it take neither memory nor places from others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import aiohttp
import pytest

from tests.http.test_server import get, post
from tests.lab.bridge import Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.memory import watched
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A, Platform
from tests.lab.servers import LOOPBACK

HEAVY_BOARD = "a5a5a5a5-0000-4000-8000-00000000000a"
PRESETS = [
    {"preset_key": f"preset_{number}", "name": "很长的预设名称" * 10, "preset_type": "blink"}
    for number in range(200)
]


def batch(items: int) -> bytes:
    requests = [{"operation": "device", "device_uuid": HEAVY_BOARD}] * items
    body = json.dumps({"requests": requests}).encode()
    return post("/api/batch", body, "Content-Type: application/json")


LARGEST, MEDIUM = batch(100), batch(16)


@pytest.fixture(scope="module")
def attacked(mosquitto: Mosquitto, mariadb: MariaDb) -> Iterator[Bridge]:
    """A bridge whose database holds a device with much to tell."""
    platform = Platform(mariadb)
    platform.add_device(HEAVY_BOARD, "heavy", settings={"preset_commands": PRESETS})
    with Bridge(mosquitto, mariadb, MQTT_SHARE="attacked") as process:
        yield process
    platform.remove_device(HEAVY_BOARD)


class Unread:
    """Clients with small buffers that read nothing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: list[socket.socket] = []

    async def add(self, request: bytes) -> None:
        client = socket.socket()
        self._sockets.append(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, (LOOPBACK, self._port))
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(client, request)

    async def answered(self) -> None:
        """Wait until each has the beginning of an answer, or was disconnected."""
        events = select.poll()
        for client in self._sockets:
            events.register(client, select.POLLIN)
        async with asyncio.timeout(30):
            while len(events.poll(0)) < len(self._sockets):
                await asyncio.sleep(0.01)

    def close(self) -> None:
        for client in self._sockets:
            client.close()


@dataclass
class Others:
    """What somebody else was answered meanwhile."""

    statuses: Counter[int] = field(default_factory=Counter)
    longest: float = 0.0

    async def answers(self, count: int) -> None:
        """Wait for so many answers."""
        async with asyncio.timeout(20):
            while self.statuses.total() < count:
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def others(bridge: Bridge) -> AsyncIterator[Others]:
    """Somebody who asks for a reading all the time, at most every 10 ms."""
    seen = Others()
    async with aiohttp.ClientSession(base_url=bridge.url) as session:
        parameters = {"device_uuid": BOARD_A, "sensor": "temperature"}

        async def ask() -> None:
            while True:
                asked = time.monotonic()
                async with session.get("/api/sensor-data", params=parameters) as response:
                    await response.read()
                    seen.statuses[response.status] += 1
                seen.longest = max(seen.longest, time.monotonic() - asked)
                await asyncio.sleep(0.01)

        asking = asyncio.create_task(ask())
        yield seen
        await asyncio.sleep(0.1)
        assert not asking.done()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


@pytest.fixture
async def unread(attacked: Bridge) -> AsyncIterator[Unread]:
    clients = Unread(attacked.port)
    yield clients
    clients.close()


async def test_200_large_batches_that_nobody_reads_take_a_bounded_memory(
    attacked: Bridge, unread: Unread
):
    async with watched(attacked) as memory, others(attacked) as seen:
        await asyncio.gather(*(unread.add(LARGEST) for _ in range(200)))
        await seen.answers(40)
    # It was 824 MiB in version 1.0.
    assert memory.growth < 200
    assert set(seen.statuses) == {200}
    assert seen.longest < 2


async def test_256_clients_that_read_nothing_lock_nobody_out(attacked: Bridge, unread: Unread):
    async with watched(attacked) as memory, others(attacked) as seen:
        await asyncio.gather(*(unread.add(MEDIUM) for _ in range(256)))
        await seen.answers(40)
    assert memory.growth < 150
    assert set(seen.statuses) == {200}
    assert seen.longest < 2


async def test_clients_that_come_without_end_and_read_nothing_lock_nobody_out(attacked, unread):
    async with watched(attacked) as memory, others(attacked) as seen:
        for _ in range(16):
            await asyncio.gather(*(unread.add(MEDIUM) for _ in range(64)))
            await asyncio.sleep(0.25)
    assert memory.growth < 150
    assert set(seen.statuses) == {200}
    assert seen.longest < 2


@pytest.mark.parametrize(
    "request_", [get("/openapi.json"), batch(2)], ids=["a document", "an answer of its own"]
)
async def test_3900_clients_that_leave_a_little_unread_take_a_bounded_memory(
    attacked: Bridge, unread: Unread, request_: bytes
):
    """Each less than what a client must read before its next request is served."""
    async with watched(attacked) as memory, others(attacked) as seen:
        for _ in range(39):
            await asyncio.gather(*(unread.add(request_) for _ in range(100)))
            await unread.answered()
    # It was 290 and 230 MiB.
    assert memory.growth < 130
    assert set(seen.statuses) == {200}


@pytest.mark.parametrize(
    ("path", "requests"), [("/docs/swagger-ui-bundle.js", 200), ("/openapi.json", 2000)]
)
async def test_what_many_ask_for_at_once_is_in_memory_once(attacked: Bridge, path, requests):
    """Each had a copy of its own, and whose `Host` is in the document still could have."""
    connections = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(attacked.url, connector=connections) as session,
        watched(attacked) as memory,
    ):

        async def ask(number: int) -> int:
            host = {"Host": f"10.0.{number // 250}.{number % 250}"}
            async with session.get(path, headers=host) as answer:
                assert answer.status == 200
                return len(await answer.read())

        lengths = await asyncio.gather(*(ask(number) for number in range(requests)))
    assert min(lengths) > 50_000
    assert memory.growth < 100


async def test_client_that_reads_a_large_answer_late_keeps_its_connection(bridge: Bridge):
    """Its answer is whole, names no end of the connection, and there is none."""
    loop = asyncio.get_running_loop()
    requests = [{"operation": "device", "device_uuid": BOARD_A}] * 100
    body = json.dumps({"requests": requests}).encode()
    request = post("/api/batch", body, "Content-Type: application/json")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    client.setblocking(False)
    await loop.sock_connect(client, (LOOPBACK, bridge.port))
    # The second one waits on the connection while the first one's answer does.
    await loop.sock_sendall(client, request * 2)
    # Longer than an answer counts as under way that its client does not read.
    await asyncio.sleep(0.5)
    reader, writer = await asyncio.open_connection(sock=client)
    for number in range(3):
        async with asyncio.timeout(20):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200")
            assert b"connection: close" not in head
            length = int(head.partition(b"content-length: ")[2].split()[0])
            assert length > 128 * 1024
            await reader.readexactly(length)
        if number == 1:
            writer.write(request)
    writer.close()
