"""Requests beyond MAX_IN_FLIGHT: refused at once and cheaply, in turn, and none that has a claim to
an answer.

First what is told at sight of a request's bytes, then that it is said at the right time on a
connection, then the bridge itself while it is full.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from bridge.access import Keys
from bridge.calls import Services
from bridge.dispatch import Dispatcher
from bridge.framing import Plain
from bridge.metrics import Metrics
from bridge.models import Health
from bridge.once import MemoryOnce
from bridge.settings import Settings
from bridge.shedding import Shedding
from bridge.sidecar import Answer, Runner
from tests.lab.board import Board
from tests.lab.bridge import Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A, seed_classroom
from tests.lab.servers import LOOPBACK
from tests.test_http_protocol import BODY, Connection, get, head_of, on_error, post

Json = dict[str, Any]

READING = f"/api/sensor-data?device_uuid={BOARD_A}&sensor=temperature"
LIGHT = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
JSON_TYPE = "Content-Type: application/json"


def command(*headers: str, **fields: Any) -> bytes:
    body = json.dumps({**LIGHT, **fields}).encode()
    return post("/api/control", body, JSON_TYPE, *headers)


# ---- what can be told of a request at sight -----------------------------------------------------

GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"

PLAIN = {
    "no body": (GET + b"\r\n", b""),
    "an empty body": (GET + b"Content-Length: 0\r\n\r\n", b""),
    "a body": (POST + b"Content-Length: 5\r\n\r\nhello", b"hello"),
    "a body with blank lines": (POST + b"content-length:8 \r\n\r\n\r\n\r\n\r\n\r\n", b"\r\n" * 4),
    "a connection that goes on": (GET + b"Connection: Keep-Alive\r\n\r\n", b""),
    "raw UTF-8": (GET + "X-Name: 温度\r\n\r\n".encode(), b""),
    "an empty field": (GET + b"X-Name:\r\n\r\n", b""),
}
ODD = {
    "nothing": b"",
    "half a line": b"GET / HT",
    "half a head": GET,
    "half a body": POST + b"Content-Length: 5\r\n\r\nhell",
    "more than its body": POST + b"Content-Length: 5\r\n\r\nhello!",
    "another behind it": (GET + b"\r\n") * 2,
    "another for a body": POST + b"\r\n" + GET + b"\r\n",
    "a blank line before it": b"\r\n" + GET + b"\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "two lengths that differ": POST + b"Content-Length: 5\r\nContent-Length: 0\r\n\r\nhello",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n\r\nhello",
    "a length with a sign": POST + b"Content-Length: +5\r\n\r\nhello",
    "a length in hexadecimal": POST + b"Content-Length: 0x5\r\n\r\nhello",
    "a length of no digits": POST + b"Content-Length: \r\n\r\n",
    "a length in the next line": POST + b"Content-Length:\r\n 5\r\n\r\nhello",
    "a length with a space": POST + b"Content-Length : 5\r\n\r\nhello",
    "a length behind a bare CR": POST + b"X: y\rContent-Length: 5\r\n\r\nhello",
    "a length behind a bare LF": POST + b"X: y\nContent-Length: 5\r\n\r\nhello",
    "chunks": POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks in the next line": POST + b"X: y\r\n Transfer-Encoding: chunked\r\n\r\n",
    "chunks behind a bare CR": POST + b"X: y\rTransfer-Encoding: chunked\r\n\r\n",
    "chunks behind a bare LF": POST + b"X: y\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks with a space": POST + b"Transfer-Encoding : chunked\r\n\r\n",
    "lines that end by half": b"GET / HTTP/1.1\nHost: x\n\n",
    "a line that ends by half": b"GET / HTTP/1.1\nHost: x\r\n\r\n",
    "an expectation": POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    "an upgrade": GET + b"Upgrade: websocket\r\n\r\n",
    "a connection that ends": GET + b"Connection: close\r\n\r\n",
    "a connection that upgrades": GET + b"Connection: keep-alive, upgrade\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
    "two hosts": GET + b"Host: y\r\n\r\n",
    "no colon": GET + b"nonsense\r\n\r\n",
    "no name": GET + b": x\r\n\r\n",
    "a NUL": GET + b"X: a\0b\r\n\r\n",
}


@pytest.mark.parametrize(("data", "body"), PLAIN.values(), ids=PLAIN)
def test_plain_request_is_known_as_such(data, body):
    plain = Plain.of(data)
    assert plain is not None
    assert plain.body == body


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_whatever_is_odd_is_left_to_the_real_parser(data):
    assert Plain.of(data) is None


class Nothing:
    """Neither store nor publisher: whoever is refused needs none."""


def shedding_of(**settings: Any) -> Shedding:
    """With room for one request."""
    chosen = Settings(**{"_env_file": None, "max_in_flight": 1, **settings})

    def health() -> Health:
        raise NotImplementedError

    services = Services(chosen, Nothing(), Nothing(), health)  # type: ignore[arg-type]
    dispatcher = Dispatcher(services, MemoryOnce(chosen.dedup_ttl), Metrics())
    return Shedding(chosen, Keys(chosen), dispatcher, [("Retry-After", "1")])


def refusal(shedding: Shedding, data: bytes, arriving: int = 1) -> bytes | None:
    return shedding.answer(data) if shedding.may_answer(arriving) else None


AT_SIGHT = {
    "a reading": (get(READING), None),
    "a device": (get(f"/api/devices/{BOARD_A}?x=%20"), None),
    "its configuration": (get(f"/api/devices/{BOARD_A}/config"), None),
    "a command": (command(), None),
    "a command with an id": (command(request_id="r1"), "r1"),
    "a batch with an id": (post("/api/batch", b'{"request_id":"r2"}', JSON_TYPE), "r2"),
    "a batch that is no JSON": (post("/api/batch", b"{", JSON_TYPE), None),
    "a preset": (post("/api/preset", b"{}", JSON_TYPE), None),
    "with a key": (get(READING, "X-API-Key: x"), None),
}
LONG_WAY = {
    "an id in the query": get(READING + "&request_id=r"),
    "an id in the query, encoded": get(READING + "&request%5Fid=r"),
    "an id in the body, not as it should be": command(request_id=5),
    "an id in a body that is no JSON": post("/api/control", b'"request_id', JSON_TYPE),
    "an idempotency key": command("Idempotency-Key: k"),
    "an origin": get(READING, "Origin: http://x"),
    "a trace": get(READING, "TraceParent: x"),
    "a body where none belongs": get(READING, "Content-Length: 2") + b"{}",
    "health": get("/health"),
    "the list of operations": get("/api/operations"),
    "liveness": get("/livez"),
    "a path that is none": get("/api/control"),
    "another method": get(READING).replace(b"GET", b"HEAD"),
    "HTTP/1.0": get(READING).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "an absolute target": get("http://x" + READING),
    "a control character in the target": get(READING + "\r"),
}


@pytest.mark.parametrize(("data", "request_id"), AT_SIGHT.values(), ids=AT_SIGHT)
async def test_request_too_many_is_refused_at_sight(data, request_id):
    shedding = shedding_of()
    assert not shedding.may_answer(arriving=0)
    answer = refusal(shedding, data)
    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    line, headers = head_of(head)
    assert line == "HTTP/1.1 429 Too Many Requests"
    assert headers["retry-after"] == "1"
    assert int(headers["content-length"]) == len(body)
    told = json.loads(body)
    assert (told["code"], told["error"], told.get("request_id")) == (429, "busy", request_id)


@pytest.mark.parametrize("data", LONG_WAY.values(), ids=LONG_WAY)
async def test_request_that_asks_for_more_goes_the_long_way(data):
    assert refusal(shedding_of(), data) is None


async def test_whose_an_id_is_with_keys_is_not_told_at_sight():
    shedding = shedding_of(api_keys="a:5ecret")
    assert refusal(shedding, command(request_id="r1")) is None
    assert refusal(shedding, command()) is not None


async def test_while_refusing_takes_much_of_the_time_fewer_places_are_given_away():
    shedding = shedding_of(max_in_flight=8)
    assert not shedding.may_answer(arriving=6)
    ends = time.monotonic() + 0.3
    while time.monotonic() < ends:
        assert refusal(shedding, get(READING), arriving=8) is not None
        shedding.answered()
    assert refusal(shedding, get(READING), arriving=6) is not None
    assert not shedding.may_answer(arriving=1)


async def test_places_are_taken_by_the_operations_that_can_be_refused():
    counted = shedding_of().counted
    for target in (READING, "/api/control", f"/api/devices/{BOARD_A}/config"):
        assert target.startswith(counted)
    for target in ("/livez", "/health", "/api/operations", "/metrics", "*"):
        assert not target.startswith(counted)


async def test_escaped_name_in_a_body_is_an_id_all_the_same():
    body = b'{"request\\u005fid":"r1"}'
    answer = refusal(shedding_of(), post("/api/control", body, JSON_TYPE))
    assert answer is not None
    assert b'"request_id":"r1"' in answer


LARGE = b'"%b"' % (b"x" * 16_000_000)


# ---- when it is said ----------------------------------------------------------------------------


class Site:
    """A server that answers `/sight` at sight, and notes how many were on their way then."""

    def __init__(self) -> None:
        self.port = 0
        self.arriving: list[int] = []
        self.answers = 0
        self.counted = ("/1", "/2", "/sight", "/wait", "/large")
        self.go_on = asyncio.Event()
        self.waiting = asyncio.Semaphore(0)

    def may_answer(self, arriving: int) -> bool:
        self.arriving.append(arriving)
        return True

    def answer(self, data: bytes) -> bytes | None:
        if not data.startswith(b"GET /sight") or Plain.of(data) is None:
            return None
        body = LARGE if b"large" in data else b'{"path":"at sight"}'
        return Answer(200, "application/json", body).whole()

    def answered(self) -> None:
        self.answers += 1

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/wait":
            self.waiting.release()
            await self.go_on.wait()
        if request.path == "/large":
            return Answer(200, "application/json", LARGE)
        if request.path != "/unread":
            await request.read()
        return Answer(200, "application/json", json.dumps({"path": request.path}).encode())

    async def on_their_way(self) -> int:
        """How many requests are said to be on their way to their handlers."""
        async with Connection(self.port) as client:
            await client.ask(get("/sight"))
        return self.arriving[-1]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", site.handle)
    runner = Runner(app, on_error=on_error, at_sight=site, reader_seconds=0.5, access_log=None)
    await runner.setup()
    server = await asyncio.get_running_loop().create_server(runner.protocol, LOOPBACK, 0)
    site.port = server.sockets[0].getsockname()[1]
    yield site
    site.go_on.set()
    server.close()
    await runner.close(within=0.1)


SIGHT = get("/sight")


async def paths(client: Connection, count: int) -> list[str]:
    return [(await client.response())[1]["path"] for _ in range(count)]


async def test_connection_lives_on_after_an_answer_at_sight(site):
    async with Connection(site.port) as client:
        for _ in range(3):
            await client.send(SIGHT)
            assert await paths(client, 1) == ["at sight"]
            await client.send(post("/p", BODY))
            assert await paths(client, 1) == ["/p"]
    assert site.answers == 3


IN_ORDER: dict[str, tuple[list[bytes], list[str]]] = {
    "in pieces": ([SIGHT[:9], SIGHT[9:-2], SIGHT[-2:]], ["/sight"]),
    "behind another, in one piece": ([get("/1") + SIGHT], ["/1", "/sight"]),
    "behind half of another": ([get("/1")[:-1], b"\n" + SIGHT], ["/1", "/sight"]),
    "behind half a body": ([post("/1", b"12345")[:-1], b"5" + SIGHT], ["/1", "/sight"]),
    "in a body": ([post("/1", SIGHT)[: -len(SIGHT)], SIGHT], ["/1"]),
    "in a body that nobody reads": ([post("/unread", SIGHT)[: -len(SIGHT)], SIGHT], ["/unread"]),
    "in a chunk": (
        [
            b"POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"%x\r\n" % len(SIGHT),
            SIGHT,
            b"\r\n0\r\n\r\n",
        ],
        ["/1"],
    ),
    "for a header": ([b"GET /1 HTTP/1.1\r\nHost: x\r\nX: ", SIGHT], [""]),
}


@pytest.mark.parametrize(("segments", "answers"), IN_ORDER.values(), ids=IN_ORDER)
async def test_what_is_no_request_by_itself_is_not_answered_at_sight(site, segments, answers):
    async with Connection(site.port) as client:
        await client.send(*segments)
        if answers == [""]:
            # "X: GET /sight HTTP/1.1", and a host once more.
            assert (await client.response())[0] == 400
            return
        assert await paths(client, len(answers)) == answers
        await client.send(get("/next"))
        assert await paths(client, 1) == ["/next"]


async def test_request_behind_one_unanswered_waits_for_its_turn(site):
    async with Connection(site.port) as client:
        await client.send(get("/wait"))
        await site.waiting.acquire()
        await client.send(SIGHT, SIGHT)
        site.go_on.set()
        assert await paths(client, 3) == ["/wait", "/sight", "/sight"]
        await client.send(SIGHT)
        assert await paths(client, 1) == ["at sight"]


@pytest.mark.parametrize("path", ["/large", "/sight?large"])
async def test_client_that_does_not_read_gets_nothing_at_sight(site, path):
    async with Connection(site.port) as client:
        await client.ask(get("/"))
        await client.send(get(path))
        # Its end has left for the kernel's buffers only once the client has read.
        await client.reader.readexactly(1)
        await client.send(SIGHT)
        head = await client.reader.readuntil(b"\r\n\r\n")
        await client.reader.readexactly(int(head_of(head)[1]["content-length"]))
        assert await paths(client, 1) == ["/sight"]


BEGINNINGS = {
    "nothing": b"",
    "half a head": SIGHT[:-2],
    "a request": get("/1"),
    "a request that waits": get("/wait"),
    "one that waits and others behind it": get("/wait") + get("/1") * 3,
    "half a body": post("/1", BODY)[:-1],
    "nonsense": b"nonsense\r\n\r\n",
    "a request and nonsense": get("/wait") + b"nonsense\r\n\r\n",
    "a target that is none": b"GET http://xn--0.com/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "an upgrade": get("/1", "Connection: upgrade", "Upgrade: websocket"),
    "an end": get("/1", "Connection: close"),
}


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
async def test_requests_on_their_way_are_none_once_their_connections_have_died(site, beginning):
    for _ in range(5):
        async with Connection(site.port) as client:
            client.writer.write(beginning)
            await client.writer.drain()
    site.go_on.set()
    async with asyncio.timeout(5):
        while await site.on_their_way():
            await asyncio.sleep(0.02)


async def test_requests_behind_one_unanswered_are_not_on_their_way(site):
    """Else a few connections could make the bridge seem full for as long as they like."""
    async with Connection(site.port) as waiting, Connection(site.port) as deaf:
        await waiting.send(get("/wait"), get("/1"), get("/2"))
        await deaf.send(get("/large") + get("/1"), get("/2"))
        await site.waiting.acquire()
        assert await site.on_their_way() == 0


async def test_only_requests_that_count_are_on_their_way(site):
    async with Connection(site.port) as first, Connection(site.port) as second:
        await first.ask(get("/"))
        await second.ask(get("/"))
        for request, counted in ((get("/1"), 1), (get("/health"), 0)):
            first.writer.write(request)
            second.writer.write(SIGHT)
            await asyncio.gather(first.response(), second.response())
            assert site.arriving[-1] == counted


# ---- the bridge while it is full ----------------------------------------------------------------


class FullSite:
    """A bridge with room for one request, its servers and a board."""

    def __init__(self, bridge: Bridge, database: MariaDb) -> None:
        self.bridge = bridge
        self.database = database
        self.board: Board

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        """Have one request in hand, whose database hangs; it is answered in the end."""
        async with aiohttp.ClientSession(self.bridge.url) as http:
            await asyncio.to_thread(self.database.pause)
            held = asyncio.create_task(self._read(http))
            try:
                async with asyncio.timeout(10):
                    while await self._in_flight(http) == 0:
                        await asyncio.sleep(0.01)
                yield
                assert not held.done()
            finally:
                await asyncio.to_thread(self.database.resume)
                assert await held == 200
            async with asyncio.timeout(10):
                while await self._in_flight(http):
                    await asyncio.sleep(0.01)

    async def _read(self, http: aiohttp.ClientSession) -> int:
        async with http.get(READING) as answer:
            return answer.status

    async def _in_flight(self, http: aiohttp.ClientSession) -> int:
        async with http.get("/health") as answer:
            return int((await answer.json())["in_flight"])

    async def busy(self) -> dict[str, float]:
        """How many requests of each operation were refused as busy, as the metrics tell it."""
        async with (
            aiohttp.ClientSession(self.bridge.url) as http,
            http.get("/metrics") as answer,
        ):
            lines = (await answer.text()).splitlines()
        return {
            line.split('operation="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith("bridge_requests_total{")
            and 'outcome="busy"' in line
            and 'transport="http"' in line
        }


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Bridge, MariaDb]]:
    with MariaDb() as database:
        seed_classroom(database)
        with (
            Mosquitto() as broker,
            Bridge(
                broker, database, MAX_IN_FLIGHT="1", DB_TIMEOUT="30", REQUEST_TIMEOUT="40"
            ) as bridge,
        ):
            yield bridge, database


@pytest.fixture
async def full_site(servers) -> AsyncIterator[FullSite]:
    bridge, database = servers
    site = FullSite(bridge, database)
    async with Board(bridge.broker, BOARD_A) as site.board:
        yield site


ID = "r-1"
REFUSED = {
    "GET": ([get(READING)], None),
    "GET with an id": ([get(READING + f"&request_id={ID}")], ID),
    "GET with an encoded id": ([get(READING + f"&request%5fid={ID}")], ID),
    "GET of a page": ([get(READING, "Origin: http://x")], None),
    "POST": ([command()], None),
    "POST with an id": ([command(request_id=ID)], ID),
    "POST of a page with an id": ([command("Origin: http://x", request_id=ID)], ID),
    "POST with a key": ([command("Idempotency-Key: k")], None),
    "batch of a page with an id": (
        [post("/api/batch", b'{"request_id":"r-1","requests":[]}', JSON_TYPE, "Origin: http://x")],
        ID,
    ),
    "in pieces": ([command(request_id=ID)[:40], command(request_id=ID)[40:]], ID),
    "in chunks": (
        [
            b"POST /api/control HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n",
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(json.dumps(LIGHT)), json.dumps(LIGHT).encode()),
        ],
        None,
    ),
}


@pytest.mark.parametrize(("segments", "request_id"), REFUSED.values(), ids=REFUSED)
async def test_full_bridge_refuses_and_serves_on_the_same_connection_later(
    full_site, segments, request_id
):
    async with Connection(full_site.bridge.port) as client:
        async with full_site.full():
            for _ in range(2):
                await client.send(*segments)
                status, headers, body = await client.answer()
                assert (status, body["error"], body["code"]) == (429, "busy", 429)
                assert body.get("request_id") == request_id
                assert headers["retry-after"] == "1"
                assert headers["access-control-allow-origin"] == "*"
                assert "connection" not in headers
        body = await client.ask(get(READING))
        assert body["data"]["sensor_name"] == "temperature"
    assert full_site.board.commands == []


async def test_refusals_of_one_connection_come_in_order(full_site):
    async with Connection(full_site.bridge.port) as client, full_site.full():
        await client.send(
            get(READING) + command(request_id="a") + get("/livez") + command(request_id="b"),
            command(request_id="c"),
        )
        bodies = [(await client.response())[1] for _ in range(5)]
    told = [body.get("request_id") or body.get("status") or body["error"] for body in bodies]
    assert told == ["busy", "a", "alive", "b", "c"]


async def test_expectation_is_met_before_a_command_is_refused(full_site):
    whole = command("Expect: 100-continue", request_id=ID)
    head, _, body = whole.partition(b"\r\n\r\n")
    async with Connection(full_site.bridge.port) as client, full_site.full():
        await client.send(head + b"\r\n\r\n")
        assert (await client.response())[0] == 100
        await client.send(body)
        status, told = await client.response()
    assert (status, told["request_id"]) == (429, ID)


@pytest.mark.parametrize(
    ("version", "header", "persistence"),
    [
        ("1.1", "Connection: close", "close"),
        ("1.0", "X: y", "close"),
        ("1.0", "Connection: keep-alive", "keep-alive"),
    ],
)
async def test_refusal_ends_the_connection_where_the_client_wants_it(
    full_site, version, header, persistence
):
    request = get(READING, header).replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    async with Connection(full_site.bridge.port) as client, full_site.full():
        await client.send(request)
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (429, persistence)
        if persistence == "close":
            assert await client.closed()


async def test_known_command_is_answered_though_the_bridge_is_full(full_site):
    by_body, by_header = command(request_id="known"), command("Idempotency-Key: known-2")
    escaped = json.dumps({**LIGHT, "request_id": "known"}).replace('_id": "k', '\\u005fid": "k')
    in_disguise = post("/api/control", escaped.encode(), JSON_TYPE)
    assert b"request_id" not in in_disguise
    async with Connection(full_site.bridge.port) as client:
        firsts = [await client.ask(by_body), await client.ask(by_header)]
        await full_site.board.next_commands(2)
        async with full_site.full():
            assert [await client.ask(by_body), await client.ask(by_header)] == firsts
            assert await client.ask(in_disguise) == firsts[0]
            await client.send(command(request_id="unknown"))
            assert (await client.response())[0] == 429
    assert len(full_site.board.commands) == 2


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/health", "/metrics", "/api/operations", "/console", "/openapi.json"]
)
async def test_what_is_always_answered_is_answered_by_a_full_bridge(full_site, path):
    async with (
        aiohttp.ClientSession(full_site.bridge.url) as http,
        full_site.full(),
        http.get(path) as answer,
    ):
        assert answer.status == 200


ONLY_LOOKS_SO = {
    "bare line feeds": get(READING).replace(b"\r\n", b"\n"),
    "a bare line feed": get(READING, "X: y\nA: b"),
    "a bare carriage return": get(READING, "X: y\rTransfer-Encoding: chunked"),
    "two lengths": post("/api/control", b"{}", JSON_TYPE, "Content-Length: 2"),
    "two lengths that differ": post("/api/control", b"{}", JSON_TYPE, "Content-Length: 0"),
    "a length and chunks": post("/api/control", b"{}", JSON_TYPE, "Transfer-Encoding: chunked"),
    "a line that goes on": get(READING, "X: y\r\n z: a"),
    "no host": get(READING).replace(b"Host: x\r\n", b"X: y\r\n"),
}


@pytest.mark.parametrize("request_", ONLY_LOOKS_SO.values(), ids=ONLY_LOOKS_SO)
async def test_what_only_looks_like_a_request_is_malformed_though_the_bridge_is_full(
    full_site, request_
):
    async with Connection(full_site.bridge.port) as client, full_site.full():
        await client.send(request_)
        status, body = await client.response()
        assert (status, body["error"]) == (400, "malformed_request")
        assert await client.closed()


async def test_length_that_promises_more_is_waited_for(full_site):
    whole = command(request_id=ID)
    async with Connection(full_site.bridge.port) as client, full_site.full():
        await client.send(whole[:-1])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.readexactly(1), 0.3)
        await client.send(whole[-1:])
        assert (await client.response())[1]["request_id"] == ID


async def test_length_that_hides_a_request_does_not_hide_it(full_site):
    """What it leaves of the body is the next request, as every reader of HTTP takes it."""
    hidden = get("/livez")
    request = b"POST /api/control HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" + hidden
    async with Connection(full_site.bridge.port) as client, full_site.full():
        await client.send(request)
        first, second = await client.response(), await client.response()
    assert first[0] != 200
    assert second == (200, {"status": "alive"})


async def test_refusals_are_counted(full_site):
    before = await full_site.busy()
    async with Connection(full_site.bridge.port) as client, full_site.full():
        for request in (get(READING), get(READING), command(), get(READING, "Origin: http://x")):
            await client.send(request)
            assert (await client.response())[0] == 429
    after = await full_site.busy()
    counted = {name: after[name] - before.get(name, 0) for name in ("sensor-data", "control")}
    assert counted == {"sensor-data": 3, "control": 1}


async def test_message_of_a_model_is_refused_before_its_body_is_read(full_site):
    head, _, _ = post("/mcp/", b"x" * 1000, JSON_TYPE).partition(b"\r\n\r\n")
    async with Connection(full_site.bridge.port) as client, full_site.full():
        await client.send(head.replace(b"Host: x", b"Host: localhost") + b"\r\n\r\n")
        status, headers, body = await client.answer()
    assert (status, body["error"], headers["retry-after"]) == (429, "busy", "1")
