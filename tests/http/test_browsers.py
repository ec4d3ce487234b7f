"""What a web page may do through somebody's browser: by header, and by a real browser."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from playwright.async_api import Page, async_playwright

from bridge.errors import Forbidden
from bridge.http.browsers import Browsers
from bridge.settings import Settings
from tests.http.test_server import Connection, get, post
from tests.lab.bridge import Bridge
from tests.lab.browser import chromium
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A
from tests.lab.servers import LOOPBACK, free_port

KEY, PANEL = "open-5esame", "https://panel.school.example"
LIGHT = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}

# ---- the rule -----------------------------------------------------------------------------------

LET_IN: list[tuple[str | None, str | None]] = [
    (None, None),
    ("192.168.1.5:9001", None),
    ("[fe80::1]:9001", "http://[fe80::1]:9001"),
    ("localhost:9001", "http://localhost:9001"),
    ("LOCALHOST.", None),
    ("bridge:9001", None),
    ("school.local", None),
    ("school.lan:9001", None),
    ("host.docker.internal:9001", None),
    (socket.gethostname(), None),
    ("10.0.0.1", "http://10.0.0.1"),
    ("10.0.0.1", "https://10.0.0.1:443"),
    ("10.0.0.1", PANEL),
    ("allowed.school.example:9001", None),
    ("public.school.example", "https://public.school.example"),
    ("10.0.0.1", "https://public.school.example"),
    ("bridge_1:9001", "http://bridge_1:9001"),
    ("School.LOCAL:9001", "http://school.local:9001"),
    ("school.local.", "http://school.local."),
    ("localhost:", None),
    ("localhost:80", "http://localhost"),
    ("127.0.0.1", "http://127.0.0.1:80"),
    ("[::1]", "http://[::1]"),
    ("[::FFFF:1.2.3.4]:9001", "http://[::ffff:1.2.3.4]:9001"),
    ("[fe80::1%25eth0]:9001", None),
    ("xn--48s290a.example", None),
    ("xn--48s290a.local", None),
]
REJECTED: list[tuple[str | None, str | None]] = [
    ("evil.example", None),
    ("evil.example:9001", "http://evil.example:9001"),
    ("192.168.1.5.evil.example", None),
    ("localhost.evil.example", None),
    ("evil.example@192.168.1.5.example", None),
    ("", None),
    ("[half", None),
    ("192.168.1.5", "http://evil.example"),
    ("192.168.1.5", "null"),
    ("192.168.1.5", ""),
    ("192.168.1.5", "*"),
    ("192.168.1.5", "chrome-extension://localhost"),
    ("192.168.1.5:9001", "http://192.168.1.5:9002"),
    ("192.168.1.5:9001", "http://localhost:9001"),
    ("192.168.1.5", f"{PANEL}.evil.example"),
    (None, "http://evil.example"),
    ("192.168.1.5:9001", "http://192.168.1.5:9001/"),
    ("192.168.1.5:9001", "http://x@192.168.1.5:9001"),
    ("192.168.1.5:9001", "http://192.168.1.5:9001, http://evil.example"),
    ("192.168.1.5:9001", "http://192.168.1.5:9001#"),
    ("192.168.1.5:9001", "http://192.168.1.5:9001:9001"),
    ("localhost", "http://localhost."),
]
NO_HOSTS = [
    "evil.example\\.local",
    "evil.example#.local",
    "evil.example?.local",
    "evil.example/.local",
    "evil.example;.local",
    "evil.example,localhost",
    "evil.example localhost",
    "evil.example\t.local",
    "evil.example@localhost",
    "localhost@evil.example",
    "evil.example:80@localhost",
    "evil.example:80:90",
    "localhost:80:90",
    "localhost:x",
    "localhost:+80",
    "localhost:123456",
    ":80",
    ".",
    "..",
    ".local",
    "evil..local",
    "localhost..",
    "evil%2eexample",
    "evil\u3002example",
    "\u212aiosk",
    "évil",
    "x" * 64,
    # Browsers send IPv4 addresses in one form only.
    "2130706433",
    "0x7f000001",
    "0x",
    "0x7f.1",
    "127.1",
    "0177.0.0.1",
    "256.0.0.1",
    "1.2.3.4.5",
    "evil.1",
    "::1",
    "fe80::1",
    "[::1",
    "::1]",
    "[]",
    "[evil]",
    "[::1].local",
    "[::1]evil.example",
    "[127.0.0.1]",
    "[fe80::1%]",
    "[v1.evil]",
    "*",
    "http://localhost",
]


@pytest.fixture(scope="module")
def browsers() -> Browsers:
    settings = Settings(
        _env_file=None,
        cors_origins=("*", PANEL),
        allowed_hosts=("allowed.school.example", "学校.example"),
        public_url="https://public.school.example",
    )
    return Browsers(settings)


@pytest.mark.parametrize(("host", "origin"), LET_IN)
def test_request_that_no_foreign_page_can_send_is_let_in(browsers, host, origin):
    browsers.check(host, origin)


@pytest.mark.parametrize(("host", "origin"), REJECTED)
def test_request_that_a_foreign_page_can_send_is_rejected(browsers, host, origin):
    with pytest.raises(Forbidden):
        browsers.check(host, origin)


@pytest.mark.parametrize("host", NO_HOSTS)
def test_host_that_no_browser_sends_is_rejected(browsers, host):
    with pytest.raises(Forbidden):
        browsers.check(host, None)


# ---- by header, on every path -------------------------------------------------------------------

PATHS = ["/", "/metrics", "/openapi.json", "/docs", "/console", "/console/snapshot", "/nowhere",
         f"/api/devices/{BOARD_A}", "/api/operations"]  # fmt: skip
STRANGE = [("Host: evil.example", "ALLOWED_HOSTS"), ("Origin: http://evil.example", "CORS_ORIGINS")]


def asking(method: str, path: str, header: str, *more: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", header, *more]
    if not header.startswith("Host"):
        lines.insert(1, "Host: 127.0.0.1")
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize(("header", "setting"), STRANGE)
@pytest.mark.parametrize(
    ("method", "path"),
    [*(("GET", path) for path in PATHS), ("PUT", "/api/control"), ("DELETE", "/metrics")],
)
async def test_strange_page_reads_nothing_of_an_open_bridge(bridge, method, path, header, setting):
    async with Connection(bridge.port) as client:
        await client.send(asking(method, path, header))
        status, headers, body = await client.answer()
    assert (status, body["error"]) == (403, "forbidden")
    assert setting in body["detail"]
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(("header", "setting"), STRANGE)
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/%6civez"])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_health_is_told_to_everyone(bridge, path, slash, header, setting):
    del setting
    async with Connection(bridge.port) as client:
        await client.send(asking("GET", path + slash, header))
        assert (await client.answer())[0] == 200
        await client.send(asking("PUT", path + slash, header))
        assert (await client.answer())[0] == 405
        await client.send(asking("OPTIONS", path + slash, header))
        assert b" 204 " in await client.reader.readline()


@pytest.mark.parametrize("host", [host for host in NO_HOSTS if host.isascii()])
async def test_host_that_no_browser_sends_is_answered_403_or_400(bridge, host):
    async with Connection(bridge.port) as client:
        await client.send(asking("GET", "/api/operations", f"Host: {host}"))
        assert (await client.answer())[0] in (400, 403)


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://localhost/api/operations", "localhost", 200),
        ("http://localhost:9001/api/operations", "127.0.0.1", 200),
        ("http://[::1]:9001/api/operations", "[::1]:9001", 200),
        ("http://evil.example/api/operations", "localhost", 403),
        ("http://localhost/api/operations", "evil.example", 403),
        ("http://localhost@evil.example/api/operations", "localhost", 403),
        ("http://evil.example/livez", "localhost", 200),
    ],
)
async def test_host_of_an_absolute_target_is_judged_too(bridge, target, host, status):
    async with Connection(bridge.port) as client:
        await client.send(asking("GET", target, f"Host: {host}"))
        assert (await client.answer())[0] == status
        if status != 200:
            await client.send(
                asking("OPTIONS", target, f"Host: {host}", "Access-Control-Request-Method: GET")
            )
            assert (await client.answer())[0] == status


async def test_request_without_a_host_is_served_as_http_1_0_and_several_hosts_never(bridge):
    """HTTP/1.1 demands the header, and 400 for a request without it (RFC 9112, section 3.2)."""
    for request, status in (
        (b"GET /api/operations HTTP/1.0\r\n\r\n", 200),
        (b"GET /api/operations HTTP/1.1\r\n\r\n", 400),
        (asking("GET", "/api/operations", "Host: localhost\r\nHost: localhost"), 400),
        (asking("GET", "/api/operations", "Host: localhost\r\nHost: evil.example"), 400),
    ):
        async with Connection(bridge.port) as client:
            await client.send(request)
            assert (await client.answer())[0] == status


@pytest.fixture(scope="module")
def trusting(mosquitto: Mosquitto, mariadb: MariaDb) -> Iterator[Bridge]:
    """A bridge with a key, which is not needed from where we are."""
    with Bridge(
        mosquitto,
        mariadb,
        MQTT_SHARE="trusting",
        API_KEYS=f"admin:{KEY}",
        API_TRUSTED="127.0.0.0/8",
        CORS_ORIGINS=f"*,{PANEL}",
    ) as process:
        yield process


@pytest.fixture(scope="module")
def guarded(mosquitto: Mosquitto, mariadb: MariaDb) -> Iterator[Bridge]:
    with Bridge(mosquitto, mariadb, MQTT_SHARE="guarded", API_KEYS=f"admin:{KEY}") as process:
        yield process


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [
        ((), True),
        ((PANEL,), True),
        (("https://evil.example",), False),
        ((PANEL, "https://evil.example"), False),
        (("null",), False),
        (("*",), False),
        (("",), False),
    ],
)
@pytest.mark.parametrize("path", ["/api/control", "/mcp/"])
async def test_page_at_a_trusted_address_is_rejected_unless_listed(
    trusting, path, origins, allowed
):
    headers = [f"Origin: {origin}" for origin in origins]
    headers += ["Content-Type: application/json", "Accept: application/json, text/event-stream"]
    async with Connection(trusting.port) as client:
        for key in ([], ["X-API-Key: wrong"]):
            await client.send(post(path, b"{}", *headers, *key))
            status, _ = await client.response()
            assert (status != 403) is allowed
        await client.send(post(path, b"{}", *headers, f"X-API-Key: {KEY}"))
        assert (await client.response())[0] not in (401, 403)


async def test_with_keys_a_strange_page_gets_401_and_the_open_pages(guarded):
    async with Connection(guarded.port) as client:
        for header, _ in STRANGE:
            await client.send(asking("GET", "/api/operations", header))
            assert (await client.answer())[0] == 401
            await client.send(asking("GET", "/", header))
            assert (await client.answer())[0] == 200
            await client.send(asking("GET", "/api/operations", header, f"X-API-Key: {KEY}"))
            assert (await client.answer())[0] == 200


@pytest.mark.parametrize(
    ("origin", "announced", "status"),
    [
        (PANEL, "content-type", 204),
        ("http://evil.example", "content-type", 403),
        ("http://evil.example", "content-type,x-api-key", 204),
        ("http://evil.example", "Authorization", 204),
    ],
)
async def test_preflight_is_answered_for_listed_pages_and_under_any_for_those_with_keys(
    trusting, origin, announced, status
):
    request = asking(
        "OPTIONS",
        "/api/control",
        f"Origin: {origin}",
        "Access-Control-Request-Method: POST",
        f"Access-Control-Request-Headers: {announced}",
    )
    async with Connection(trusting.port) as client:
        await client.send(request)
        head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())


async def test_open_bridge_works_by_the_names_it_is_called(bridge):
    async with Connection(bridge.port) as client:
        for host in ("127.0.0.1", "localhost", "bridge", f"[::1]:{bridge.port}"):
            await client.send(get("/api/operations").replace(b"Host: x", f"Host: {host}".encode()))
            assert (await client.answer())[0] == 200


# ---- by a real browser --------------------------------------------------------------------------

COMMAND = """async ([url, body]) => {
  const tried = [];
  for (const headers of [{"Content-Type": "application/json"}, {"Content-Type": "text/plain"}]) {
    try {
      const answer = await fetch(url, {method: "POST", headers, body});
      tried.push(answer.status);
    } catch (error) { tried.push("failed"); }
  }
  return tried;
}"""
READ = """async (url) => {
  try { return await (await fetch(url)).text(); } catch (error) { return "failed"; }
}"""


@asynccontextmanager
async def page_of(host: str, port: int) -> AsyncIterator[Page]:
    """A page in a browser for which a stranger's name means this machine."""

    async def blank(_: web.Request) -> web.Response:
        return web.Response(text="<title>a page</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", blank)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, port).start()
    rule = f"--host-resolver-rules=MAP {host} {LOOPBACK}"
    try:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=chromium(), chromium_sandbox=False, args=[rule, "--disable-gpu"]
            )
            page = await browser.new_page()
            await page.goto(f"http://{host}:{port}/")
            yield page
            await browser.close()
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("which", ["bridge", "trusting", "guarded"])
async def test_page_of_another_origin_commands_and_reads_nothing(request, board, which):
    bridge: Any = request.getfixturevalue(which)
    device = await board(BOARD_A)
    async with page_of("evil.example", free_port()) as page:
        for target in (f"http://127.0.0.1:{bridge.port}", f"http://evil.example:{bridge.port}"):
            body = json.dumps(LIGHT)
            tried = await page.evaluate(COMMAND, [f"{target}/api/control", body])
            assert set(tried) <= {"failed", 401, 403}
            told = await page.evaluate(READ, f"{target}/api/devices/{BOARD_A}")
            assert BOARD_A not in told
    last = {**LIGHT, "action": "off"}
    async with aiohttp.request(
        "POST", f"{bridge.url}/api/control", json=last, headers={"X-API-Key": KEY}
    ) as answer:
        assert answer.status == 200
    (command,) = await device.next_commands(1)
    assert command["action"] == "off"


async def test_page_under_a_rebound_name_reads_nothing(bridge):
    """The page's own name means the bridge's address now: to the browser they are one site."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium(),
            chromium_sandbox=False,
            args=[
                f"--host-resolver-rules=MAP evil.example {LOOPBACK},MAP classroom {LOOPBACK}",
                "--disable-gpu",
            ],
        )
        page = await browser.new_page()
        answer = await page.goto(f"http://evil.example:{bridge.port}/livez")
        assert answer is not None
        assert answer.status == 200
        assert "forbidden" in await page.evaluate(READ, f"/api/devices/{BOARD_A}")
        assert set(await page.evaluate(COMMAND, ["/api/control", json.dumps(LIGHT)])) == {403}
        for name in ("127.0.0.1", "localhost", "classroom"):
            for path in ("/console", "/docs"):
                answer = await page.goto(f"http://{name}:{bridge.port}{path}")
                assert answer is not None
                assert answer.status == 200
            assert BOARD_A in await page.evaluate(READ, f"/api/devices/{BOARD_A}")
        await browser.close()


def test_answer_that_no_page_asked_for_names_no_origin():
    """A page would read it from the browser's cache, after a request in the mode no-cors."""
    anyone = Browsers(Settings(cors_origins=("*",)))
    assert anyone.cors(None) == (("Vary", "Origin"),)
    assert ("Access-Control-Allow-Origin", "*") in anyone.cors("https://page.example")
    assert ("Vary", "Origin") in anyone.cors("https://page.example")
