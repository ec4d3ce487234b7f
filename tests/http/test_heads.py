"""A request's head is bounded, however it arrives, and so is what many of them take together."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import web

from bridge.http.answer import Answer
from tests.http.test_attacks import serving
from tests.http.test_server import UNPARSABLE, Connection, get, post
from tests.lab.bridge import Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.memory import watched
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A

LONGEST = 16 * 1024
CONNECTIONS = 4000
READING = f"/api/sensor-data?device_uuid={BOARD_A}&sensor=temperature"


def head(size: int, target: str = "/head") -> bytes:
    """A GET whose head has about so many bytes, in headers of a few thousand each."""
    values = ["v" * 4000] * (size // 4000) + ["v" * (size % 4000)]
    return get(target, *(f"X-{number}: {value}" for number, value in enumerate(values)))


LONG, TOO_LONG = head(LONGEST - 300), head(LONGEST + 300)
BODY = b"b" * 60_000
# What comes before the head on its connection: the bytes, and how many answers they get.
BEFORE = {
    "nothing": (b"", 0),
    "a request": (get("/first"), 1),
    "many requests": (get("/first") * 100, 100),
    "a request with a large body": (post("/first", BODY), 1),
    "long heads": (LONG * 20, 20),
}
# So many bytes come at a time.
PIECES = {"whole": 2**20, "of 7,000 bytes": 7000, "of 100 bytes": 100}


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async def measure(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        told = {"path": request.path, "body": len(body)}
        return Answer(200, "application/json", json.dumps(told).encode())

    async with serving(measure, lingering_time=0.1) as port:
        yield port


async def send(client: Connection, data: bytes, size: int) -> None:
    with contextlib.suppress(ConnectionError):
        await client.send(*(data[at : at + size] for at in range(0, len(data), size)))


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("pieces", PIECES)
async def test_head_that_is_too_long_is_rejected_in_its_turn(port, before, pieces):
    prefix, answers = BEFORE[before]
    async with Connection(port) as client:
        sending = asyncio.create_task(send(client, prefix + TOO_LONG, PIECES[pieces]))
        for _ in range(answers):
            status, body = await client.response()
            assert (status, body["path"]) in ((200, "/first"), (200, "/head"))
        assert await client.response() == (400, UNPARSABLE)
        assert await client.closed()
        await sending


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("pieces", PIECES)
async def test_longest_head_is_served(port, before, pieces):
    prefix, answers = BEFORE[before]
    async with Connection(port) as client:
        sending = asyncio.create_task(
            send(client, prefix + LONG + post("/last", BODY), PIECES[pieces])
        )
        told = [await client.response() for _ in range(answers + 2)]
        await sending
    assert told[-2:] == [
        (200, {"path": "/head", "body": 0}),
        (200, {"path": "/last", "body": len(BODY)}),
    ]


@pytest.mark.parametrize(
    "first", [b"GET /head HTTP/1.1", get("/first") + b"GET /head HTTP/1.1"], ids=["new", "kept"]
)
async def test_head_without_end_is_rejected_wherever_its_lines_are_cut(port, first):
    """What was cut before each line's end was not counted: a connection could keep a megabyte."""
    async with Connection(port) as client:
        await client.send(first)
        if first.startswith(get("/first")):
            assert (await client.response())[0] == 200
        with contextlib.suppress(ConnectionError):
            await client.send(b"\r\nHost: x", *[b"\r\nX: " + b"v" * 4000] * 6)
        assert await client.response() == (400, UNPARSABLE)


@pytest.mark.parametrize(
    "request_", [get("/?" + "a&" * 64), get("/", *["a: b"] * 64)], ids=["parameters", "headers"]
)
async def test_request_of_very_many_small_parts_is_rejected(port, request_):
    """Each part takes some hundred bytes once it is parsed."""
    async with Connection(port) as client:
        await client.send(request_)
        assert await client.response() == (400, UNPARSABLE)
        assert await client.closed()


# ---- on the bridge itself -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def flooded(mosquitto: Mosquitto, mariadb: MariaDb) -> Iterator[Bridge]:
    with Bridge(mosquitto, mariadb, MQTT_SHARE="flooded") as process:
        yield process


@pytest.mark.parametrize(
    ("request_", "bound"),
    [
        # It was 525 MiB when a head might have as much as one read.
        (head(LONGEST - 300, READING), 200),
        # Incomplete, behind a request in the same read.
        (get("/livez") + head(LONGEST - 300, READING)[:-4], 200),
    ],
    ids=["whole", "incomplete"],
)
async def test_long_heads_on_all_connections_take_a_bounded_memory(flooded, request_, bound):
    async with contextlib.AsyncExitStack() as stack, watched(flooded) as memory:

        async def ask() -> int:
            async with opening:
                client = await stack.enter_async_context(Connection(flooded.port))
            client.writer.write(request_)
            line = await client.reader.readline()
            return int(line.split()[1])

        opening = asyncio.Semaphore(200)
        statuses = await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
    assert set(statuses) <= {200, 429}
    assert memory.growth < bound


async def test_long_requests_that_are_pipelined_take_a_bounded_memory(flooded: Bridge):
    """Each of 200 connections had 32 of them in memory, which took 208 MiB."""
    request = head(LONGEST - 300, READING)
    async with contextlib.AsyncExitStack() as stack, watched(flooded) as memory:

        async def ask() -> None:
            client = await stack.enter_async_context(Connection(flooded.port))
            sending = asyncio.create_task(send(client, request * 64, 2**20))
            for _ in range(64):
                assert (await client.response())[0] in (200, 429)
            await sending

        async with asyncio.timeout(30):
            await asyncio.gather(*(ask() for _ in range(200)))
    assert memory.growth < 100
