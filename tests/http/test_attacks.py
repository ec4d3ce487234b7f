"""What a hostile client can do over HTTP, and what it costs the others: nothing.

Each was seen to do harm once. Bytes go over real sockets; where time limits are long, to a server
like ours with short ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from bridge.http.answer import Answer
from bridge.http.server import Server
from bridge.http.unsent import UnsentReplies
from tests.http.test_server import Connection, get, head_of, on_error, post
from tests.lab.bridge import PROJECT, Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A
from tests.lab.servers import LOOPBACK, free_port

LIGHT = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
LIGHT_BODY = json.dumps(LIGHT).encode()
MALFORMED = (400, "malformed_request")
UNSUPPORTED = (415, "unsupported_media_type")


async def refusal(client: Connection) -> tuple[int, str]:
    """Status and error of the next response."""
    status, body = await client.response()
    assert body["code"] == status
    return status, body["error"]


async def is_well(bridge: Bridge) -> bool:
    async with Connection(bridge.port) as client:
        await client.send(get("/livez"))
        return (await client.response())[0] == 200


@contextlib.contextmanager
def quiet(bridge: Bridge) -> Iterator[None]:
    """Nothing that the bridge writes meanwhile speaks of a failure."""
    before = len(bridge.output)
    yield
    told = bridge.output[before:]
    assert "Traceback" not in told
    assert "ERROR" not in told
    assert "never retrieved" not in told


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, **options: Any) -> AsyncIterator[int]:
    """The port of a server like ours, all of whose paths are handled so."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    server = Server(app, on_error=on_error, access_log=None, **options)
    port = free_port()
    await server.start(LOOPBACK, port)
    try:
        yield port
    finally:
        await server.close(within=0.1)


async def hello(request: web.Request) -> web.StreamResponse:
    return Answer(200, "application/json", json.dumps({"path": request.path}).encode())


# ---- what a body is said to be ------------------------------------------------------------------

JSON_TYPES = ["application/json", "Application/JSON", "application/json ;charset=utf-8",
              "application/json" + ";" * 8000, 'application/json; a="' + "\\" * 4000]  # fmt: skip
OTHER_TYPES = ["", "text/plain", "application/jsonx", "application/json,text/plain",
               "application/json" + "(" * 3000, ";application/json", "(" * 8000]  # fmt: skip


def declared(path: str, *headers: str, body: bytes = LIGHT_BODY) -> bytes:
    return post(path, body, "Accept: application/json, text/event-stream", *headers)


@pytest.mark.parametrize("path", ["/api/control", "/mcp/"])
@pytest.mark.parametrize("content_type", OTHER_TYPES, ids=range(len(OTHER_TYPES)))
async def test_body_of_another_type_is_refused(bridge, path, content_type):
    with quiet(bridge):
        async with Connection(bridge.port) as client:
            await client.send(declared(path, f"Content-Type: {content_type}"))
            assert await refusal(client) == UNSUPPORTED


@pytest.mark.parametrize("content_type", JSON_TYPES, ids=range(len(JSON_TYPES)))
async def test_body_of_json_is_taken_whatever_parameters_it_has(bridge, content_type):
    async with Connection(bridge.port) as client:
        body = json.dumps({**LIGHT, "device_uuid": "nobody"}).encode()
        await client.send(declared("/api/control", f"Content-Type: {content_type}", body=body))
        assert await refusal(client) == (404, "device_not_found")


async def test_content_type_costs_no_time_to_read(bridge):
    """Each of these took half a second, and with it everyone's."""
    request = declared("/api/control", "Content-Type: application/json" + ";" * 8000, body=b"{}")
    async with asyncio.timeout(4), Connection(bridge.port) as client:
        for _ in range(20):
            await client.send(request)
            assert (await client.response())[0] == 422


@pytest.mark.parametrize("path", ["/api/control", "/api/batch", "/mcp/"])
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "x", ""])
async def test_encoded_body_is_refused(bridge, path, coding):
    packed = zlib.compress(LIGHT_BODY, wbits=31)
    async with Connection(bridge.port) as client:
        await client.send(
            declared(
                path, "Content-Type: application/json", f"Content-Encoding: {coding}", body=packed
            )
        )
        assert await refusal(client) == UNSUPPORTED


async def test_identity_is_no_encoding(bridge):
    async with Connection(bridge.port) as client:
        await client.send(
            declared(
                "/api/control",
                "Content-Type: application/json",
                "Content-Encoding: Identity",
                body=b"{}",
            )
        )
        assert (await client.response())[0] == 422


async def test_head_without_end_is_rejected(bridge):
    async with Connection(bridge.port) as client:
        await client.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        await client.send(*[b"X: %s\r\n" % (b"x" * 8000)] * 5)
        assert await refusal(client) == MALFORMED
        assert await client.closed()
    assert await is_well(bridge)


async def test_body_declared_too_long_is_rejected_before_it_comes(bridge):
    async with Connection(bridge.port) as client:
        await client.send(
            b"POST /api/control HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100000000\r\n\r\n"
        )
        assert await refusal(client) == (413, "payload_too_large")


# ---- bodies of very many chunks -----------------------------------------------------------------

SMALL_CHUNK = b"1\r\n \r\n"


def chunked(path: str, chunks: bytes, content_type: str = "application/json") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
    return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("path", "content_type", "expected"),
    [
        ("/api/control", "application/json", MALFORMED),
        ("/api/control", "text/plain", UNSUPPORTED),
        ("/mcp/", "application/json", MALFORMED),
        ("/livez", "application/json", (405, "method_not_allowed")),
    ],
)
async def test_bodies_of_very_many_chunks_delay_nobody(bridge, path, content_type, expected):
    """50 of them took all turns of the loop for some seconds."""
    flood = chunked(path, SMALL_CHUNK * 60_000, content_type)
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Connection(bridge.port)) for _ in range(50)]
        for client in clients:
            client.writer.write(flood)
        answers = asyncio.gather(*(refusal(client) for client in clients))
        while not answers.done():
            asked = loop.time()
            assert await is_well(bridge)
            assert loop.time() - asked < 1
            async with Connection(bridge.port) as good:
                await good.send(declared("/api/control", "Content-Type: application/json"))
                assert (await good.response())[0] in (200, 409)
        assert set(await answers) == {expected}


async def test_body_may_come_in_a_thousand_chunks(bridge):
    body = json.dumps({**LIGHT, "device_uuid": "nobody"}).ljust(1000).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    async with Connection(bridge.port) as client:
        for _ in range(2):
            await client.send(chunked("/api/control", chunks))
            assert await refusal(client) == (404, "device_not_found")


@pytest.mark.parametrize("path", ["/api/control", "/mcp/"])
async def test_request_without_a_body_is_answered_each_time_alike(bridge, path):
    """aiohttp's reader of no body, one for all requests, has no end the second time."""
    headers = ("Content-Type: application/json", "Accept: application/json, text/event-stream")
    async with Connection(bridge.port) as client:
        told = []
        for _ in range(3):
            for length in ((), ("Content-Length: 0",)):
                head = get(path, *headers, *length).replace(b"GET", b"POST", 1)
                await client.send(head)
                told.append(await client.response())
    assert all(status == 400 and "JSON" in body["detail"] for status, body in told)
    assert all(answer == told[0] for answer in told)


async def test_chunks_are_parsed_a_few_at_a_time_and_none_after_the_answer():
    requests = []

    async def note(request: web.Request) -> web.StreamResponse:
        requests.append((request, request.content.total_bytes))
        return await hello(request)

    async with serving(note, lingering_time=0.1) as port, Connection(port) as client:
        await client.send(chunked("/1", SMALL_CHUNK * 30_000))
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await client.closed()
    ((request, parsed),) = requests
    assert parsed <= 256
    assert request.content.total_bytes <= 2 * parsed


async def test_body_is_never_inflated():
    """Not for a handler that reads it, and not when what nobody read is read away."""
    bomb = zlib.compress(bytes(50_000_000), level=9, wbits=31)
    sizes = []

    async def measure(request: web.Request) -> web.StreamResponse:
        sizes.append(len(await request.read()))
        return await hello(request)

    async with serving(measure) as port, Connection(port) as client:
        await client.send(post("/1", bomb, "Content-Encoding: gzip"))
        assert (await client.response())[0] == 200
    assert sizes == [len(bomb)]


# ---- clients that never read --------------------------------------------------------------------

READER_SECONDS = 1.0


async def large(request: web.Request) -> web.StreamResponse:
    return Answer(200, "text/plain", b"x" * int(request.query.get("size", 16_000_000)))


async def unread(port: int, request: bytes, times: int = 1) -> socket.socket:
    """A client that sends requests, as many as are taken, and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (LOOPBACK, port))
    with contextlib.suppress(TimeoutError, ConnectionError):
        await asyncio.wait_for(loop.sock_sendall(client, request * times), 2)
    return client


@pytest.mark.parametrize(
    ("handler", "request_line", "times"),
    [(large, "/", 1), (large, "/?size=5000", 20_000)],
    ids=["one large answer", "the answers to 20,000 requests"],
)
async def test_client_that_reads_nothing_is_cut_off(handler, request_line, times):
    transports = []

    async def noted(request: web.Request) -> web.StreamResponse:
        transports.append(request.transport)
        return await handler(request)

    async with serving(noted, unsent=UnsentReplies(reader_seconds=READER_SECONDS)) as port:
        client = await unread(port, get(request_line), times)
        async with asyncio.timeout(10):
            # The kernel tells the client only once it reads.
            while not (transports and transports[0].is_closing()):
                await asyncio.sleep(0.05)
        client.close()


async def test_client_that_reads_slowly_gets_all_of_it():
    size = 12_000_000
    unsent = UnsentReplies(reader_seconds=READER_SECONDS)
    async with serving(large, unsent=unsent) as port, Connection(port) as client:
        await client.send(get(f"/?size={size}"))
        await client.reader.readuntil(b"\r\n\r\n")
        for _ in range(20):
            # All in all for longer than a client has that reads nothing.
            await asyncio.sleep(READER_SECONDS / 10)
            await client.reader.readexactly(size // 20)


async def test_client_that_reads_slowly_gets_one_answer_after_the_other():
    """Something is always unread, and new answers add to it."""
    size, times = 500_000, 40
    unsent = UnsentReplies(reader_seconds=READER_SECONDS)
    async with serving(large, unsent=unsent) as port, Connection(port) as client:
        sending = asyncio.create_task(client.send(get(f"/?size={size}") * times))
        for _ in range(times):
            await asyncio.sleep(READER_SECONDS * 2 / times)
            await client.reader.readuntil(b"\r\n\r\n")
            await client.reader.readexactly(size)
        await sending


async def test_client_that_leaves_amid_a_large_answer_is_no_error():
    outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    begun = asyncio.Event()

    async def send(request: web.Request) -> web.StreamResponse:
        answer = Answer(200, "text/plain", b"x" * 16_000_000)
        begun.set()
        try:
            await answer.send(request)
        except ConnectionError as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)
        return answer

    async with serving(send) as port:
        client = await unread(port, get("/"))
        await begun.wait()
        # A reset, not an orderly end.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        async with asyncio.timeout(5):
            await outcome


async def test_largest_debtor_is_cut_where_all_owe_too_much():
    transports = []

    async def noted(request: web.Request) -> web.StreamResponse:
        transports.append(request.transport)
        return await large(request)

    async with serving(noted, unsent=UnsentReplies(most_bytes=10_000_000)) as port:
        sizes = (9_000_000, 16_000_000, 1_000_000)
        clients = [await unread(port, get(f"/?size={size}")) for size in sizes]
        async with asyncio.timeout(5):
            while len(transports) < 3 or not any(each.is_closing() for each in transports):
                await asyncio.sleep(0.01)
        assert [transport.is_closing() for transport in transports] == [False, True, False]
        for client in clients:
            client.close()


async def test_kernel_gives_up_a_client_that_acknowledges_nothing():
    """That covers what is still unsent when a connection is closed, for which nobody waits."""

    async def limit(request: web.Request) -> web.StreamResponse:
        connected = request.transport.get_extra_info("socket")
        seconds = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000
        return Answer(200, "application/json", json.dumps(seconds).encode())

    async with serving(limit) as port, Connection(port) as client:
        assert await client.ask(get("/")) == 60


@pytest.mark.parametrize("number_of_chunks", [None, 60, 200])
async def test_requests_behind_one_unanswered_are_not_all_taken_up(number_of_chunks):
    """What can wait in the kernel's buffers, and then with the client, does."""
    parsed = []
    one = get("/") if number_of_chunks is None else chunked("/", SMALL_CHUNK * number_of_chunks)

    async def count(request: web.Request) -> web.StreamResponse:
        assert len(await request.read()) == (number_of_chunks or 0)
        parsed.append(len(request.protocol._messages))
        return await hello(request)

    async with serving(count) as port, Connection(port) as client:
        await client.send(one * 300)
        for _ in range(300):
            assert (await client.response())[0] == 200
    assert max(parsed) <= 32


# ---- answers that fail --------------------------------------------------------------------------

TIMES_OF_NO_CALENDAR = [
    "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    "Mon, 01 Jan -1 00:00:00 GMT",
    "0 0 0 0 0",
    "(" * 4000,
]
CONDITIONS = [
    *(
        f"{name}: {when}"
        for name in ("If-Modified-Since", "If-Unmodified-Since", "If-Range")
        for when in TIMES_OF_NO_CALENDAR
    ),
    "Range: bytes=-99999999999999999999",
    "Range: bytes=5-1",
    "If-None-Match: " + '"a",' * 2000,
]


@pytest.mark.parametrize("path", ["/docs/swagger-ui.css", "/console/console.css"])
async def test_odd_conditions_are_no_reason_to_withhold_a_file(bridge, path):
    with quiet(bridge):
        async with Connection(bridge.port) as client:
            for condition in CONDITIONS:
                await client.send(get(path, condition))
                async with asyncio.timeout(5):
                    line, headers = head_of(await client.reader.readuntil(b"\r\n\r\n"))
                    await client.reader.readexactly(int(headers["content-length"]))
                assert line == "HTTP/1.1 200 OK", condition


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/docs/swagger-ui-bundle.js", "text/javascript"),
        ("/docs/swagger-ui.css", "text/css"),
        ("/docs", "text/html"),
        ("/console/main.js", "text/javascript"),
        ("/console", "text/html"),
    ],
)
async def test_file_that_a_browser_has_already_is_not_sent_again(http, path, content_type):
    async with http.get(path) as first:
        body = await first.read()
        tag = first.headers["ETag"]
    assert (first.status, first.content_type) == (200, content_type)
    assert body
    async with http.get(path, headers={"If-None-Match": tag}) as second:
        assert (second.status, await second.read()) == (304, b"")
    async with http.get(path, headers={"If-None-Match": '"another"'}) as third:
        assert (third.status, await third.read()) == (200, body)


class BrokenResponse(web.StreamResponse):
    async def prepare(self, request: web.BaseRequest) -> None:
        raise ValueError(f"what a client sent: {request.path}")


async def test_answer_that_fails_ends_the_connection_with_one_line(caplog):
    async def broken(_request: web.Request) -> web.StreamResponse:
        return BrokenResponse()

    async with serving(broken) as port, Connection(port) as client:
        await client.send(get("/"))
        assert await client.closed()
    (line,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert "what a client sent" in line.getMessage()
    assert line.exc_info is None


NO_REQUESTS = {
    "a host that is no name": b"GET http://xn--0.com/livez HTTP/1.1\r\nHost: x\r\n\r\n",
    "a port that is none": b"GET http://x:99999999/livez HTTP/1.1\r\nHost: x\r\n\r\n",
    "half an address": b"GET http://[::1/livez HTTP/1.1\r\nHost: x\r\n\r\n",
    "half a name": b"GET http://xn--\xff.com/livez HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("request_", NO_REQUESTS.values(), ids=NO_REQUESTS)
async def test_target_that_is_none_is_answered_and_its_connection_closed(bridge, request_):
    with quiet(bridge):
        async with Connection(bridge.port) as client:
            await client.send(request_)
            assert await refusal(client) == MALFORMED
            assert await client.closed()
        assert await is_well(bridge)


# ---- more connections than there may be ---------------------------------------------------------


class Site:
    """A server with room for a few connections; ``/wait`` is answered when the test says so."""

    def __init__(self) -> None:
        self.port = 0
        self.waiting = asyncio.Semaphore(0)
        self.go_on = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/wait":
            self.waiting.release()
            await self.go_on.wait()
        return await hello(request)

    async def connect(self, stack: AsyncExitStack) -> Connection:
        return await stack.enter_async_context(Connection(self.port))

    async def occupy(self, client: Connection) -> None:
        """Have it wait for an answer."""
        await client.send(get("/wait"))
        await self.waiting.acquire()


ROOM = 3


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    async with serving(site.handle, most_connections=ROOM) as site.port:
        yield site
        site.go_on.set()


async def test_connection_above_the_cap_is_closed_unless_it_sends_a_head(site):
    async with AsyncExitStack() as stack:
        for _ in range(ROOM):
            await site.connect(stack)
        surplus = [await site.connect(stack) for _ in range(5)]
        for client, beginning in zip(surplus, (b"", b"G", b"GET / HTTP/1.1\r\n"), strict=False):
            await client.send(beginning)
        for client in surplus:
            assert await client.closed()


async def test_connection_above_the_cap_gets_one_answer(site):
    async with AsyncExitStack() as stack:
        for _ in range(ROOM):
            await site.connect(stack)
        newcomer = await site.connect(stack)
        await newcomer.send(get("/new"))
        status, headers, _ = await newcomer.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await newcomer.closed()


async def test_connections_that_end_make_room(site):
    async with AsyncExitStack() as stack:
        for client in [await site.connect(stack) for _ in range(ROOM - 1)]:
            await site.occupy(client)
        for beginning in (b"", b"GET / HT", get("/"), get("/wait"), b"nonsense\r\n\r\n") * 3:
            async with Connection(site.port) as passing:
                await passing.send(beginning)
        async with asyncio.timeout(5):
            while True:
                async with Connection(site.port) as newcomer:
                    await newcomer.send(get("/new"))
                    _, headers, _ = await newcomer.answer()
                    if "connection" not in headers:
                        break


@pytest.mark.parametrize(
    ("soft", "hard", "told"),
    [(300, 500, "500 302"), (500, 500, "500 302"), (100, 100, "100 44"), (300, 9000, "9000 4096")],
)
def test_limit_of_open_files_is_raised_and_leaves_some_for_others(soft, hard, told):
    program = (
        "import resource; from bridge.http.descriptors import *; raise_descriptor_limit();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], connection_cap())"
    )
    command = ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-c", program]
    done = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == told


class Poor(Bridge):
    """The bridge where few files may be open, and fewer unless it asks for more."""

    def command(self) -> list[str]:
        return ["prlimit", "--nofile=150:220", *super().command()]


@pytest.fixture(scope="module")
def poor(mariadb: MariaDb) -> Iterator[Poor]:
    with Mosquitto() as broker, Poor(broker, mariadb) as process:
        yield process


async def test_bridge_asks_for_as_many_files_as_it_may_have(poor):
    assert resource.prlimit(poor.pid, resource.RLIMIT_NOFILE) == (220, 220)


async def test_idle_connections_without_number_leave_the_bridge_its_servers(poor):
    async with AsyncExitStack() as stack:
        # All at once is the worst: they are accepted faster than older ones close.
        poor.pause()
        for _ in range(400):
            client = stack.enter_context(socket.create_connection((poor.host, poor.port)))
            client.send(b"GET / HT")
        poor.resume()
        await asyncio.to_thread(poor.broker.restart)
        await asyncio.to_thread(poor.wait_until_it_is, "ready")
    assert "Too many open files" not in poor.output


async def test_busy_connections_without_number_leave_the_bridge_its_servers(poor):
    head, _, _ = post("/api/control", LIGHT_BODY, "Content-Type: application/json").partition(
        LIGHT_BODY
    )
    async with AsyncExitStack() as stack:
        # The cap where 220 files may be open.
        clients = [await stack.enter_async_context(Connection(poor.port)) for _ in range(97)]
        for client in clients:
            await client.send(head)
        for path, expected in (("/livez", 200), ("/api/operations", 429)):
            newcomer = await stack.enter_async_context(Connection(poor.port))
            await newcomer.send(get(path))
            status, headers, _ = await newcomer.answer()
            assert (status, headers["connection"]) == (expected, "close")
            assert await newcomer.closed()


# ---- what stands behind an upgrade --------------------------------------------------------------

UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")


async def test_upgrade_is_declined_and_nothing_behind_it_is_read(bridge):
    async with Connection(bridge.port) as client:
        await client.send(get("/livez", *UPGRADE) + get("/api/operations"))
        status, headers, body = await client.answer()
        assert (status, headers["connection"], body) == (200, "close", {"status": "alive"})
        assert await client.closed()


async def test_body_behind_an_upgrade_is_never_taken_for_a_request(bridge):
    """Its first line grew as if it were a request line, and so its end became a request."""
    hidden = get("/api/operations")
    half = (len(hidden) + 1) // 2
    body = b'{"a":"' + b"\xc3" * half + b'"}' + b" " * (2 * half - len(hidden)) + hidden
    behind = post("/api/control", body, "Content-Type: application/json")
    async with Connection(bridge.port) as client:
        await client.send(get("/livez", *UPGRADE) + behind[: -len(body)])
        with contextlib.suppress(ConnectionError):
            await client.send(body)
        heard = b""
        with contextlib.suppress(ConnectionError):
            heard = await asyncio.wait_for(client.reader.read(), 5)
    assert heard.count(b"HTTP/1.1 ") == 1
    assert b"operations" not in heard
