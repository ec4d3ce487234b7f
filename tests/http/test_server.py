"""aiohttp's protocol with our mends (raw UTF-8 in a request line, JSON for the unparsable), and the
answers that go out in one write. What attackers make of it is in `test_attacks.py`.

What the shim relies on in aiohttp is private: when it has moved, these tests fail.
Everything goes over real sockets, as bytes, to an application that says what it was asked.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import random
from collections.abc import AsyncIterator
from typing import Any, NoReturn, Self
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol

from bridge.app.bridge import Bridge
from bridge.core.operations import OPERATIONS
from bridge.http.answer import Answer
from bridge.http.server import Protocol, Server
from bridge.settings import Settings
from tests.lab.servers import LOOPBACK, free_port

CHINESE = "温度"
UNPARSABLE = {"code": 400, "error": "malformed_request"}


def head_of(data: bytes) -> tuple[str, dict[str, str]]:
    """The status line, and the headers in lower case."""
    status, *lines = data.decode("latin-1").rstrip("\r\n").split("\r\n")
    return status, dict(line.lower().split(": ", 1) for line in lines)


class Connection:
    """A client that writes the bytes it is told to, and reads responses."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(LOOPBACK, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)

    async def send(self, *segments: bytes) -> None:
        """Write each segment so that it arrives by itself."""
        for segment in segments:
            self.writer.write(segment)
            await self.writer.drain()
            for _ in range(5):
                await asyncio.sleep(0)

    async def response(self) -> tuple[int, Any]:
        """The status and the parsed body of the next response."""
        status, _, body = await self.answer()
        return status, body

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers (all in lower case) and parsed body of the next response."""
        async with asyncio.timeout(5):
            line, headers = head_of(await self.reader.readuntil(b"\r\n\r\n"))
            status = int(line.split(" ", 2)[1])
            if status == 100:
                return status, headers, None
            body = await self.reader.readexactly(int(headers["content-length"]))
        assert headers["content-type"].startswith("application/json")
        return status, headers, json.loads(body)

    async def closed(self) -> bool:
        """Whether the server closes the connection, saying nothing more."""
        try:
            return await asyncio.wait_for(self.reader.read(), 5) == b""
        except ConnectionError:
            return True

    async def ask(self, *segments: bytes) -> Any:
        """The body of the response to a good request."""
        await self.send(*segments)
        status, body = await self.response()
        assert status == 200, body
        return body


async def echo(request: web.Request) -> web.Response:
    """What was asked; reads the body, unless told to ignore it."""
    body = b"" if "ignore" in request.query else await request.read()
    return web.json_response(
        {
            "method": request.method,
            "path": request.path,
            "query": dict(request.query),
            "body": body.decode(),
        }
    )


async def slow(_request: web.Request) -> web.Response:
    await asyncio.sleep(0.1)
    return web.json_response({"path": "/slow"})


async def broken(_request: web.Request) -> web.Response:
    raise ZeroDivisionError


async def answer(request: web.Request) -> web.StreamResponse:
    """An answer of the kind that operations get, as the query wants it."""
    body = b"x" * int(request.query.get("size", 2))
    status = int(request.query.get("status", 200))
    return Answer(status, "text/plain", body, [("X-Echo", request.headers.get("X-Echo", ""))])


def on_error(error: BaseException | None) -> Answer:
    status, body = (400, UNPARSABLE) if error is None else (500, {"failed": repr(error)})
    return Answer(status, "application/json", json.dumps(body).encode(), keep_alive=False)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_route("*", "/slow", slow)
    app.router.add_route("*", "/broken", broken)
    app.router.add_route("*", "/answer", answer)
    app.router.add_route("*", "/{path:.*}", echo)
    server = Server(app, on_error=on_error, access_log=None)
    port = free_port()
    await server.start(LOOPBACK, port)
    yield port
    await server.close(within=1.0)


def get(target: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def post(target: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


# What is private, and there


@pytest.mark.parametrize(
    "name",
    [
        "_buffer_paused",
        "_max_msg_queue_size",
        "_messages",
        "_msg_queue_resume_size",
        "_request_in_progress",
        "_upgraded",
        "_waiter",
    ],
)
def test_aiohttp_has_what_we_reach_for(name):
    assert name in {*web.RequestHandler.__slots__, *BaseProtocol.__slots__}


def test_we_take_no_name_that_aiohttp_has():
    assert not set(Protocol.__slots__) & {*web.RequestHandler.__slots__, *BaseProtocol.__slots__}


@pytest.mark.parametrize(
    "name",
    [
        "connection_lost",
        "connection_made",
        "data_received",
        "finish_response",
        "handle_error",
        "log_exception",
        "resume_reading",
        "start",
    ],
)
def test_what_we_override_is_called_as_we_declare_it(name):
    theirs = inspect.signature(getattr(web.RequestHandler, name)).parameters
    assert list(inspect.signature(getattr(Protocol, name)).parameters) == list(theirs)


def test_a_protocol_is_made_as_we_make_it():
    theirs = inspect.signature(web.RequestHandler.__init__).parameters
    assert list(theirs)[:3] == ["self", "manager", "loop"]
    assert {"auto_decompress", "max_headers"} <= set(theirs)


async def test_connection_has_the_options_of_the_application():
    seen = []

    async def note(request: web.Request) -> web.StreamResponse:
        seen.append(request.protocol)
        return Answer(200, "application/json", b"{}")

    app = web.Application()
    app.router.add_get("/", note)
    server = Server(app, on_error=on_error, access_log=None, keepalive_timeout=12.5)
    port = free_port()
    await server.start(LOOPBACK, port)
    async with Connection(port) as client:
        await client.ask(get("/"))
    await server.close(within=0.1)
    (protocol,) = seen
    assert isinstance(protocol, Protocol)
    assert protocol.keepalive_timeout == 12.5


# Raw UTF-8 in the request line

RAW = get(f"/api/sensor-data?device_uuid=a&sensor={CHINESE}")
ENCODED = get(f"/api/sensor-data?device_uuid=a&sensor={quote(CHINESE)}")


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (f"/q?sensor={CHINESE}", "/q", {"sensor": CHINESE}),
        (f"/q?sensor={quote(CHINESE)}", "/q", {"sensor": CHINESE}),
        (f"/q?{CHINESE}={CHINESE}", "/q", {CHINESE: CHINESE}),
        (f"/{CHINESE}/x", f"/{CHINESE}/x", {}),
        ("/q?a=é", "/q", {"a": "é"}),
        ("/q?a=😀", "/q", {"a": "😀"}),
        (f"/q?a=%25{CHINESE}+b&c=d%26", "/q", {"a": f"%{CHINESE} b", "c": "d&"}),
        ("/q?a=b", "/q", {"a": "b"}),
    ],
)
async def test_target_is_understood_raw_or_percent_encoded(port, target, path, query):
    async with Connection(port) as client:
        asked = await client.ask(get(target))
    assert (asked["path"], asked["query"]) == (path, query)


async def test_request_may_come_in_any_two_segments(port):
    for at in range(1, len(RAW)):
        async with Connection(port) as client:
            asked = await client.ask(RAW[:at], RAW[at:])
        assert asked["query"]["sensor"] == CHINESE, at


async def test_request_may_come_byte_by_byte(port):
    async with Connection(port) as client:
        for _ in range(2):
            asked = await client.ask(*(bytes((byte,)) for byte in RAW))
            assert asked["query"]["sensor"] == CHINESE


async def test_every_request_of_a_kept_connection_is_mended(port):
    async with Connection(port) as client:
        for number in range(5):
            asked = await client.ask(get(f"/{number}?sensor={CHINESE}"))
            assert (asked["path"], asked["query"]["sensor"]) == (f"/{number}", CHINESE)


async def test_headers_are_left_as_they_are(port):
    async with Connection(port) as client:
        asked = await client.ask(get(f"/q?a={CHINESE}", f"X-Name: {CHINESE}"))
        assert asked["query"] == {"a": CHINESE}


# Bodies are not touched

BODY = f'{{"line":"{CHINESE}\\n","more":\n"{CHINESE}"}}\n'.encode() * 3


@pytest.mark.parametrize("cut", ["whole", "after the head", "within the body", "byte by byte"])
async def test_body_comes_through_as_it_was_sent(port, cut):
    request = post(f"/p?a={CHINESE}", BODY)
    head = len(request) - len(BODY)
    cuts = {
        "whole": [],
        "after the head": [head],
        "within the body": [head + 11, head + 20],
        "byte by byte": range(1, len(request)),
    }[cut]
    async with Connection(port) as client:
        for _ in range(2):
            ends = [*cuts, len(request)]
            segments = [request[start:end] for start, end in zip([0, *cuts], ends, strict=True)]
            asked = await client.ask(*segments)
            assert asked["body"].encode() == BODY
            assert asked["query"] == {"a": CHINESE}


async def test_chunked_body_comes_through_as_it_was_sent(port):
    head = f"POST /p?a={CHINESE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:10], BODY[10:], b"")]
    async with Connection(port) as client:
        asked = await client.ask(head, *chunks)
        assert asked["body"].encode() == BODY
        assert (await client.ask(RAW))["query"]["sensor"] == CHINESE


async def test_body_may_wait_for_100_continue(port):
    request = post("/p", BODY, "Expect: 100-continue")
    async with Connection(port) as client:
        await client.send(request[: -len(BODY)])
        assert await client.response() == (100, None)
        asked = await client.ask(BODY)
    assert asked["body"].encode() == BODY


async def test_body_that_nobody_reads_does_not_spoil_the_next_request(port):
    async with Connection(port) as client:
        request = post("/p?ignore=1", BODY)
        await client.send(request[: -len(BODY)], BODY[:10], BODY[10:])
        assert (await client.response())[0] == 200
        assert (await client.ask(RAW))["query"]["sensor"] == CHINESE


# Several requests at once

CHUNKED = (
    b"POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
)


async def test_pipelined_requests_are_answered_in_order(port):
    async with Connection(port) as client:
        await client.send(
            get("/slow") + post("/1", BODY) + get(f"/2?sensor={quote(CHINESE)}") + get("/3")
        )
        paths = [(await client.response())[1]["path"] for _ in range(4)]
    assert paths == ["/slow", "/1", "/2", "/3"]


async def test_request_sent_while_another_is_answered_gets_its_answer(port):
    async with Connection(port) as client:
        await client.send(get("/slow"), get("/after"))
        paths = [(await client.response())[1]["path"] for _ in range(2)]
        assert paths == ["/slow", "/after"]
        assert (await client.ask(RAW))["query"]["sensor"] == CHINESE


async def test_stream_of_requests_may_be_cut_anywhere(port):
    """However the bytes fall into segments, each request is what it was."""
    requests = [ENCODED, post("/p", BODY), get("/q"), b"\r\n" + get("/r")] * 2
    requests += [CHUNKED, get("/s")]
    stream = b"".join(requests)
    paths = ["/api/sensor-data", "/p", "/q", "/r"] * 2 + ["/1", "/s"]
    choose = random.Random(1)
    for _ in range(60):
        cuts = sorted(choose.sample(range(1, len(stream)), choose.randrange(1, 12)))
        ends = [*cuts, len(stream)]
        async with Connection(port) as client:
            await client.send(
                *(stream[start:end] for start, end in zip([0, *cuts], ends, strict=True))
            )
            asked = [(await client.response())[1] for _ in requests]
        assert [one["path"] for one in asked] == paths, cuts
        assert {one["body"] for one in asked if one["method"] == "POST"} == {BODY.decode()}, cuts


async def test_more_requests_at_once_than_the_parser_takes_are_all_answered(port):
    async with Connection(port) as client:
        await client.send(b"".join(post(f"/{number}", BODY) for number in range(300)))
        paths = [(await client.response())[1]["path"] for _ in range(300)]
    assert paths == [f"/{number}" for number in range(300)]


async def test_body_larger_than_the_parser_keeps_is_followed_by_the_next_request(port):
    async with Connection(port) as client:
        await client.send(get("/slow") + post("/p?ignore=1", b"x" * 500_000) + ENCODED)
        paths = [(await client.response())[1]["path"] for _ in range(3)]
    assert paths == ["/slow", "/p", "/api/sensor-data"]


async def test_connections_do_not_disturb_one_another(port):
    async def converse(number: int) -> None:
        async with Connection(port) as client:
            for turn in range(5):
                asked = await client.ask(
                    *(get(f"/{number}/{turn}?s={CHINESE}")[at : at + 9] for at in range(0, 60, 9))
                )
                assert asked["path"] == f"/{number}/{turn}"

    await asyncio.gather(*(converse(number) for number in range(10)))


# What can't be parsed

BAD = {
    "no HTTP": b"hello\r\n\r\n",
    "no method": b" / HTTP/1.1\r\nHost: x\r\n\r\n",
    "unknown version": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)) + b"\r\n\r\n",
    "MQTT": b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03abc\r\n\r\n",
    "raw bytes for a method": f"{CHINESE} / HTTP/1.1\r\n\r\n".encode(),
    "header without a colon": get("/", "nonsense"),
    "space before the colon": get("/", "X-A : b"),
    "NUL in a header": get("/", "X-A: b\0c"),
    "endless line": get("/" + "a" * 20000),
    "endless raw line": get("/" + CHINESE * 2000),
    "endless header": get("/", "X-A: " + "b" * 20000),
    "bad length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
    "negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "length and chunks": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("place", ["first", "after a good one"])
async def test_bad_request_is_answered_in_json_and_without_a_traceback(port, caplog, kind, place):
    async with Connection(port) as client:
        if place == "after a good one":
            await client.ask(RAW)
        await client.send(BAD[kind])
        assert await client.response() == (400, UNPARSABLE)
        assert await client.closed()
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == []


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET / HT",
        RAW[:-2],
        post("/api/control", BODY, "Content-Type: application/json")[:-5],
        b"POST /api/control HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    ],
    ids=["nothing", "half a line", "half a head", "half a body", "a bad chunk"],
)
async def test_client_that_goes_away_early_makes_no_noise(bridge, beginning):
    before = len(bridge.output)
    async with Connection(bridge.port) as client:
        await client.send(beginning)
    async with Connection(bridge.port) as client:
        await client.send(get("/livez"))
        assert (await client.response())[0] == 200
    assert "Traceback" not in bridge.output[before:]
    assert "ERROR" not in bridge.output[before:]


async def test_failure_outside_the_handlers_own_care_is_answered_as_such(port):
    async with Connection(port) as client:
        await client.send(get("/broken"))
        status, body = await client.response()
        assert status == 500
        assert "ZeroDivisionError" in str(body)
        assert await client.closed()


# Answers in one write


async def exchange(client: Connection, request: bytes) -> tuple[str, dict[str, str]]:
    """The status line and headers of the answer; its body is left to be read."""
    await client.send(request)
    return head_of(await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5))


async def test_answer_has_its_head_and_body_and_the_connection_goes_on(port):
    async with Connection(port) as client:
        for size in (0, 2, 100_000):
            status, headers = await exchange(client, get(f"/answer?size={size}", "X-Echo: y"))
            assert status == "HTTP/1.1 200 OK"
            assert headers.pop("date").endswith("gmt")
            assert headers == {
                "content-type": "text/plain",
                "x-echo": "y",
                "content-length": str(size),
            }
            assert await client.reader.readexactly(size) == b"x" * size


@pytest.mark.parametrize(
    ("request_line", "length"),
    [("HEAD /answer?size=9", "9"), ("GET /answer?size=0&status=204", None)],
    ids=["HEAD", "204"],
)
async def test_answer_without_a_body_is_followed_by_the_next(port, request_line, length):
    async with Connection(port) as client:
        _, headers = await exchange(client, f"{request_line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert headers.get("content-length") == length
        assert (await client.ask(RAW))["query"]["sensor"] == CHINESE


@pytest.mark.parametrize(
    ("version", "asked", "persistence"),
    [
        ("1.1", "", None),
        ("1.1", "Connection: close\r\n", "close"),
        ("1.0", "", "close"),
        ("1.0", "Connection: keep-alive\r\n", "keep-alive"),
    ],
)
async def test_connection_goes_on_after_an_answer_as_the_client_wants(
    port, version, asked, persistence
):
    request = f"GET /answer HTTP/{version}\r\nHost: x\r\n{asked}\r\n".encode()
    async with Connection(port) as client:
        _, headers = await exchange(client, request)
        assert headers.get("connection") == persistence
        assert await client.reader.readexactly(2) == b"xx"
        if persistence == "close":
            assert await client.closed()
        else:
            assert (await client.ask(RAW))["query"]["sensor"] == CHINESE


async def test_what_a_caller_sends_cannot_add_a_header(port):
    async with Connection(port) as client:
        _, headers = await exchange(client, get("/answer", f"X-Echo: a\tb {CHINESE}"))
    assert set(headers) == {"content-type", "x-echo", "content-length", "date"}


async def test_slow_reader_gets_all_of_its_answers_in_order(port):
    size = 4_000_000
    async with Connection(port) as client:
        await client.send(get(f"/answer?size={size}") * 3 + get("/last"))
        await asyncio.sleep(0.1)
        for _ in range(3):
            await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5)
            body = await asyncio.wait_for(client.reader.readexactly(size), 10)
            assert body == b"x" * size
        assert (await client.response())[1]["path"] == "/last"


async def test_reader_that_goes_away_makes_no_noise(port, caplog):
    async with Connection(port) as client:
        await client.send(get("/answer?size=8000000") * 2)
    async with Connection(port) as client:
        await client.ask(RAW)
    assert caplog.text == ""


# On the bridge itself


@pytest.mark.parametrize("kind", ["no HTTP", "endless header", "TLS"])
async def test_bridge_answers_bad_requests_as_the_contract_says(bridge, kind):
    async with Connection(bridge.port) as client:
        await client.send(BAD[kind])
        status, body = await client.response()
    assert (status, body["code"], body["error"]) == (400, 400, "malformed_request")
    assert body["detail"]


class BrokenStore:
    """Fails in a way that nobody thought of; a whole backend, with no life of its own."""

    available = True

    @property
    def store(self) -> Self:
        return self

    async def sensors(self, wanted: object) -> NoReturn:
        raise ZeroDivisionError(f"the driver's words about {wanted}")

    async def readings(self, device_uuid: str) -> NoReturn:
        await self.sensors(device_uuid)
        raise NotImplementedError

    async def profile(self, device_uuid: str) -> NoReturn:
        await self.sensors(device_uuid)
        raise NotImplementedError

    async def controls(self, device_uuid: str) -> NoReturn:
        await self.sensors(device_uuid)
        raise NotImplementedError

    async def watch(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


@pytest.fixture
async def broken_bridge(mosquitto) -> AsyncIterator[int]:
    """The HTTP port of a bridge in this process, below the topics ``broken``."""
    port = free_port()
    settings = Settings(
        _env_file=None,
        mqtt_broker=mosquitto.host,
        mqtt_port=mosquitto.port,
        mqtt_topic_prefix="broken",
        mqtt_instance=f"broken-{port}",
        # Else the bridge of the test before keeps its turns of the share.
        mqtt_session_expiry=0,
        service_host=LOOPBACK,
        service_port=port,
    )
    bridge = Bridge(settings, lambda *_: BrokenStore())
    await bridge.start()
    try:
        async with asyncio.timeout(10):
            while not bridge.is_ready():
                await asyncio.sleep(0.01)
        yield port
    finally:
        await bridge.stop()


@pytest.mark.parametrize("transport", ["http", "mqtt"])
@pytest.mark.parametrize("operation", ["sensor-data", "device", "control", "preset"])
async def test_failure_that_nobody_thought_of_is_told_by_a_number_that_is_in_the_log(
    broken_bridge, requester, caplog, transport, operation
):
    fields = {"device_uuid": "d", "sensor": "temperature", "port_type": "led", "port_id": 1,
              "action": "on", "preset_key": "p", "request_id": "r1"}  # fmt: skip
    if transport == "http":
        row = OPERATIONS[operation]
        path = row.path.format(**fields)
        sent = {"json": fields} if row.method == "POST" else {"params": fields}
        url = f"http://{LOOPBACK}:{broken_bridge}{path}"
        async with aiohttp.ClientSession() as http, http.request(row.method, url, **sent) as reply:
            assert reply.status == 500
            body = await reply.json()
    else:
        body = (await requester.ask(operation, fields, prefix="broken")).body
    incident = body.pop("incident")
    assert body == {
        "code": 500,
        "msg": "失败",
        "data": None,
        "detail": body["detail"],
        "error": "internal_error",
        "request_id": "r1",
    }
    assert incident in body["detail"]
    assert "driver" not in body["detail"]
    (logged,) = (record for record in caplog.records if record.exc_info)
    assert logged.incident == incident
    assert "the driver's words" in str(logged.exc_info[1])
