"""One hostile client and many good ones behind a proxy that pools its connections to the bridge.

No good request may be lost, wait long, or get another's answer. The hostile client does what was
once seen to do harm: it gets an answer before its body was read, or sends a body that no server
should accept, and the proxy then uses the same connection for somebody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from tests.lab.bridge import PROJECT, Bridge, Readiness
from tests.lab.certificates import Certificates
from tests.lab.commands import run
from tests.lab.mariadb import WRITER, WRITER_PASSWORD
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A, BOARD_B, NAMES
from tests.lab.servers import LOOPBACK
from tests.neighbours.proxies import PROXIES, HaProxy, Nginx, PoolingHaProxy, Proxy

SECRET = "of-a-good-client"
GOOD_CLIENTS = 12
HOSTILE_REQUESTS = 24
# Far below the ten seconds for which a connection was once swallowed.
PROMPT = 3.0


@pytest.fixture(scope="module")
def guarded(mariadb) -> Iterator[Bridge]:
    """A bridge that demands keys."""
    with (
        Mosquitto() as broker,
        Bridge(broker, mariadb, API_KEYS=f"good:{SECRET}") as bridge,
    ):
        yield bridge


@pytest.fixture(
    scope="module",
    params=[*PROXIES, PoolingHaProxy],
    ids=[proxy.name for proxy in (*PROXIES, PoolingHaProxy)],
)
def proxy(request, guarded: Bridge, certificates: Certificates) -> Iterator[Proxy]:
    with request.param(certificates, guarded) as server:
        yield server


# The good clients


def session(proxy: Proxy) -> aiohttp.ClientSession:
    """One client: a connection of its own, kept open."""
    return aiohttp.ClientSession(
        proxy.url,
        connector=aiohttp.TCPConnector(ssl=proxy.context, limit=1),
        headers={"X-API-Key": SECRET},
        timeout=aiohttp.ClientTimeout(total=8),
    )


Ask = Callable[[aiohttp.ClientSession, int], Awaitable[str | None]]


async def asked(client: aiohttp.ClientSession, number: int) -> str | None:
    """Send one request that only its own answer fits; tell what was wrong with what came."""
    request_id = f"good-{number}"
    device = (BOARD_A, BOARD_B)[number % 2]
    sent = time.monotonic()
    text = ""
    try:
        if number % 3:
            item = {"operation": "device", "device_uuid": device}
            body = {"requests": [item], "request_id": request_id}
            async with client.post("/api/batch", json=body) as response:
                answer = json.loads(text := await response.text())
            name = answer["data"]["results"][0]["data"]["name"]
            own = answer["request_id"] == request_id
        else:
            async with client.get(f"/api/devices/{device}") as response:
                answer = json.loads(text := await response.text())
            name, own = answer["data"]["name"], True
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        return f"{request_id}: {error!r} after {time.monotonic() - sent:.1f} s {text!r}"
    if response.status != 200 or not own or name != NAMES[device]:
        return f"{request_id}: {response.status} {answer}"
    waited = time.monotonic() - sent
    return f"{request_id}: waited {waited:.1f} s" if waited > PROMPT else None


async def asked_again(client: aiohttp.ClientSession, number: int) -> str | None:
    """The same; once more if the connection was closed without an answer.

    That may happen to a request which reaches an open connection just as its server stops.
    """
    complaint = await asked(client, number)
    if complaint is not None and "ServerDisconnectedError" in complaint:
        return await asked(client, number)
    return complaint


async def good(proxy: Proxy, first: int, done: asyncio.Event, ask: Ask = asked) -> list[str]:
    """Ask one request after the other until the hostile client has done its worst."""
    wrong = []
    async with session(proxy) as client:
        for number in range(first, first + 100_000):
            if complaint := await ask(client, number):
                wrong.append(complaint)
            if done.is_set() or len(wrong) > 3:
                return wrong
    return wrong


# The hostile one


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    head = "\r\n".join([f"{line} HTTP/1.1", f"Host: {LOOPBACK}", *headers])
    return head.encode() + b"\r\n\r\n" + body


JSON = "Content-Type: application/json"
KEY = f"X-API-Key: {SECRET}"
CHUNKED = "Transfer-Encoding: chunked"
LENGTH = "Content-Length: 60000"
# If a server takes this body for the next request, its answer goes to somebody else.
SMUGGLED = request("GET /health", "X-Smuggled: yes")
WHOLE = f"Content-Length: {len(SMUGGLED)}"
PART = b'{"device_uuid":'

HOSTILE = {
    "trailer-content-length": request(
        "POST /health", CHUNKED, body=b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n"
    ),
    "trailer-content-length-announced": request(
        "POST /health", CHUNKED, "Trailer: Content-Length", body=b"0\r\nContent-Length: 5\r\n\r\n"
    ),
    "bad-chunk": request("POST /api/control", KEY, JSON, CHUNKED, body=b"zz\r\n{}\r\n"),
    "bad-second-chunk": request("POST /api/control", KEY, JSON, CHUNKED, body=b"2\r\n{}\r\n-1\r\n"),
    "chunk-longer-than-said": request(
        "POST /api/control", KEY, JSON, CHUNKED, body=b"2\r\n{}{}\r\n0\r\n\r\n"
    ),
    "endless-chunks": request("POST /health", CHUNKED, body=b"2\r\n{}\r\n"),
    "401-unread": request("POST /api/control", JSON, LENGTH, body=PART),
    "401-chunked": request("POST /api/control", JSON, CHUNKED, body=b"2\r\n{}\r\n"),
    "401-expect": request("POST /api/control", JSON, LENGTH, "Expect: 100-continue"),
    "401-smuggled": request("POST /api/control", JSON, WHOLE, body=SMUGGLED),
    "404-unread": request("POST /nowhere", KEY, JSON, LENGTH, body=PART),
    "404-smuggled": request("POST /nowhere", KEY, JSON, WHOLE, body=SMUGGLED),
    "405-unread": request("POST /health", JSON, LENGTH, body=PART),
    "405-smuggled": request("DELETE /api/control", KEY, WHOLE, body=SMUGGLED),
    "413-unread": request("POST /api/control", KEY, JSON, "Content-Length: 900000", body=PART),
    "415-unread": request("POST /api/control", KEY, LENGTH, "Content-Type: text/plain", body=PART),
    "415-encoded": request(
        "POST /api/control", KEY, JSON, LENGTH, "Content-Encoding: gzip", body=PART
    ),
    "get-with-unread-body": request("GET /health", LENGTH, body=PART),
    "get-with-smuggled-body": request("GET /health", WHOLE, body=SMUGGLED),
}


async def hostile(proxy: Proxy, data: bytes) -> None:
    """Send it over many connections; half of them stay open."""
    async with contextlib.AsyncExitStack() as left_open:
        for number in range(HOSTILE_REQUESTS):
            reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port, ssl=proxy.context)
            writer.write(data)
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(4096), 0.1)
            if number % 2:
                left_open.callback(writer.close)
            else:
                writer.close()


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
async def test_no_good_request_is_lost_or_gets_anothers_answer(proxy, data):
    done = asyncio.Event()
    clients = [
        asyncio.create_task(good(proxy, 1_000_000 * number, done)) for number in range(GOOD_CLIENTS)
    ]
    try:
        await hostile(proxy, data)
    finally:
        done.set()
        wrong = [complaint for client in clients for complaint in await client]
    assert wrong == []


# What the bridge itself says


async def answered(bridge: Bridge, data: bytes) -> tuple[int, float]:
    """Status of the answer, and how long it took."""
    sent = time.monotonic()
    reader, writer = await asyncio.open_connection(LOOPBACK, bridge.port)
    writer.write(data)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n"), 15)
    writer.close()
    return int(head.split()[1]), time.monotonic() - sent


@pytest.mark.parametrize("name", ["bad-chunk", "bad-second-chunk", "chunk-longer-than-said"])
async def test_bad_chunk_is_refused_at_once(guarded, name):
    status, took = await answered(guarded, HOSTILE[name])
    assert status == 400
    assert took < 1


# What a proxy lets through


async def test_raw_utf8_in_the_request_line_passes_nginx_and_caddy_and_haproxy_refuses_it(proxy):
    """As curl sends it; percent-encoded it passes all of them."""
    reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port, ssl=proxy.context)
    line = f"GET /api/sensor-data?device_uuid={BOARD_A}&sensor=温度"
    writer.write(request(line, KEY, "Connection: close"))
    raw = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    status = int(raw.split()[1])
    if isinstance(proxy, HaProxy):
        assert status == 400
    else:
        assert status == 200
        assert b'"value":29.1' in raw
    async with session(proxy) as client:
        parameters = {"device_uuid": BOARD_A, "sensor": "温度"}
        async with client.get("/api/sensor-data", params=parameters) as response:
            assert (await response.json())["data"]["value"] == 29.1


async def test_long_bodies_and_the_bridge_s_own_413_pass(proxy):
    async with session(proxy) as client:
        long = json.dumps({"device_uuid": BOARD_A, "padding": "x" * 60_000})
        headers = {"Content-Type": "application/json"}
        async with client.post("/api/control", data=long, headers=headers) as response:
            assert response.status == 422
        async with client.post("/api/control", data=" " * 70_000, headers=headers) as response:
            body: dict[str, Any] = await response.json()
            assert (response.status, body["error"]) == (413, "payload_too_large")


# Several bridges


async def test_bridges_behind_haproxy_restart_one_by_one_and_no_request_fails(
    private_mosquitto, private_mariadb, private_bridge, certificates
):
    broker = await asyncio.to_thread(private_mosquitto)
    database = await asyncio.to_thread(private_mariadb)
    chosen = settings("env-several") | {
        "API_KEYS": f"good:{SECRET}",
        "SERVICE_HOST": LOOPBACK,
        "DB_USER": WRITER,
        "DB_PASSWORD": WRITER_PASSWORD,
    }

    def start(*arguments: str, wait: Readiness | None = "ready") -> Bridge:
        bridge: Bridge = private_bridge(
            *arguments, broker=broker, database=database, wait=wait, **chosen
        )
        return bridge

    made = await asyncio.to_thread(start, "init-db", wait=None)
    assert await asyncio.to_thread(made.wait) == 0
    bridges = [await asyncio.to_thread(start) for _ in range(2)]
    done = asyncio.Event()
    proxy = HaProxy(certificates, *bridges)
    try:
        await asyncio.to_thread(proxy.start)
        clients = [
            asyncio.create_task(good(proxy, 1_000_000 * number, done, asked_again))
            for number in range(6)
        ]
        for number, bridge in enumerate(bridges, start=1):
            assert await asyncio.to_thread(bridge.stop) == 0
            await asyncio.to_thread(proxy.wait_for_line, f"Server bridges/bridge{number} is DOWN")
            await asyncio.to_thread(bridge.start)
            await asyncio.to_thread(proxy.wait_for_line, f"Server bridges/bridge{number} is UP")
        done.set()
        assert [complaint for client in clients for complaint in await client] == []
    finally:
        await asyncio.to_thread(proxy.close)


# The page


PAGE = (PROJECT / "docs" / "proxies.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"<!-- snippet: ([\w-]+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))

BLOCKS = {"docs/proxies.md": {*(proxy.name for proxy in PROXIES), "env", "env-several"}}


def settings(name: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in SNIPPETS[name].splitlines())


def test_every_snippet_of_the_page_is_known_here():
    assert SNIPPETS.keys() == BLOCKS["docs/proxies.md"]
    assert PAGE.count("```") == 2 * len(SNIPPETS)


@pytest.mark.parametrize("kind", PROXIES, ids=[proxy.name for proxy in PROXIES])
def test_commands_of_the_page_copy_the_file_that_is_tested_here(kind):
    """They need root and the proxy's service, so that only their files are looked at."""
    commands = SNIPPETS[kind.name]
    (source,) = re.findall(r"^sudo cp (\S+) /etc/\S+$", commands, re.MULTILINE)
    assert (PROJECT / source).is_file()
    assert (PROJECT / source).parent.name == kind.name
    done = run("bash", "-n", "-c", commands)
    assert (done.returncode, done.stderr) == (0, "")


async def test_settings_of_the_page_let_a_browser_in_by_the_public_name(
    private_bridge, certificates
):
    chosen = settings("env")
    bridge = await asyncio.to_thread(private_bridge, **chosen)
    secret = chosen["API_KEYS"].partition(":")[2]
    headers = {"Host": "bridge.example.org", "X-API-Key": secret}
    proxy = Nginx(certificates, bridge)
    try:
        await asyncio.to_thread(proxy.start)
        async with session(proxy) as client:
            for origin in ({}, {"Origin": chosen["PUBLIC_URL"]}):
                path = f"/api/devices/{BOARD_A}"
                async with client.get(path, headers={**headers, **origin}) as response:
                    assert response.status == 200
            async with client.get("/console", headers=headers) as response:
                assert response.status == 200
    finally:
        await asyncio.to_thread(proxy.close)
