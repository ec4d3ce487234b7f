"""HTTP alone: request lines as clients send them, methods, media types, what never parses."""

from __future__ import annotations

import asyncio
import json
import subprocess
from urllib.parse import quote

import pytest

from tests.contract.cases import on_port, switch
from tests.contract.test_refusals import check_refusal
from tests.lab.platform import BOARD_A, UNKNOWN_BOARD

LIGHT = {"device_uuid": BOARD_A, **on_port("led", 1)}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def spoken(bridge, *segments: bytes):
    """Status and JSON body of the answer to raw bytes, sent in as many TCP segments."""
    reader, writer = await asyncio.open_connection(bridge.host, bridge.port)
    try:
        for number, segment in enumerate(segments):
            if number:
                # Nobody tells when the other side has read; a moment is enough on loopback.
                await asyncio.sleep(0.05)
            writer.write(segment)
            await writer.drain()
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines[1:] if line)
            }
            body = await reader.readexactly(int(headers["content-length"]))
    finally:
        writer.close()
        await writer.wait_closed()
    assert headers["content-type"].startswith("application/json")
    return int(lines[0].split()[1]), json.loads(body)


# ---- request lines ------------------------------------------------------------------------------

QUERY = f"/api/sensor-data?device_uuid={BOARD_A}&sensor="
END = b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
RAW = "温度".encode()

LINES = {
    "raw UTF-8": [b"GET " + QUERY.encode() + RAW + END],
    "percent-encoded": [b"GET " + QUERY.encode() + quote("温度").encode() + END],
    "raw UTF-8, cut within a character": [b"GET " + QUERY.encode() + RAW[:2], RAW[2:] + END],
    "raw UTF-8, cut before it": [b"GET " + QUERY.encode(), RAW + END],
    "raw UTF-8, cut after the method": [b"GE", b"T " + QUERY.encode() + RAW + END],
    "a byte at a time around it": [
        b"GET " + QUERY.encode(), *(RAW[n : n + 1] for n in range(len(RAW))), END,
    ],
}  # fmt: skip


@pytest.mark.parametrize("segments", LINES.values(), ids=LINES)
async def test_query_string_is_read_as_clients_send_it(bridge, segments):
    status, body = await spoken(bridge, *segments)
    assert (status, body["data"]["value"]) == (200, 29.1)


async def test_raw_utf_8_is_read_in_every_request_of_a_connection(bridge):
    reader, writer = await asyncio.open_connection(bridge.host, bridge.port)
    try:
        # Each goes as soon as the answer to the one before is there.
        for _ in range(50):
            writer.write(b"GET " + QUERY.encode() + RAW + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split()[0])
                body = json.loads(await reader.readexactly(length))
            assert body["data"]["value"] == 29.1
    finally:
        writer.close()
        await writer.wait_closed()


UNPARSABLE = {
    "no HTTP": b"hello\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40 + b"\r\n\r\n",
    "bad version": b"GET /health HTTP/9.x\r\nHost: x\r\n\r\n",
    "no header's name": b"GET /health HTTP/1.1\r\n: x\r\n\r\n",
    "NUL in a header": b"GET /health HTTP/1.1\r\nHost: a\0b\r\n\r\n",
    "header too long": b"GET /health HTTP/1.1\r\nX: " + b"x" * 20000 + b"\r\n\r\n",
    "request line too long": b"GET /" + b"x" * 20000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": b"POST /api/control HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "length no number": b"POST /api/control HTTP/1.1\r\nContent-Length: x\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", UNPARSABLE.values(), ids=UNPARSABLE)
async def test_what_is_no_http_is_answered_with_the_contracts_json(bridge, request_bytes):
    status, body = await spoken(bridge, request_bytes)
    assert status == 400
    check_refusal(body, 400, "malformed_request")


async def test_bad_clients_leave_no_traceback_in_the_log(bridge):
    before = len(bridge.output)
    for request_bytes in UNPARSABLE.values():
        await spoken(bridge, request_bytes)
    assert "Traceback" not in bridge.output[before:]


@pytest.mark.parametrize(
    "sensor", [b"%FF%FE", b"\xff\xfe", b"%", b"%zz", b"%00", b"a%0d%0ab", b"%ED%A0%80"]
)
async def test_odd_query_string_is_answered_and_not_with_500(bridge, sensor):
    status, body = await spoken(bridge, b"GET " + QUERY.encode() + sensor + END)
    assert status == body["code"]
    assert status in (400, 404)


# ---- trailing slashes ---------------------------------------------------------------------------

DOCUMENTED = [
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/openapi-3.0.json"),
    ("GET", "/asyncapi.json"),
    ("GET", "/docs"),
    ("GET", "/console"),
    ("GET", "/console/snapshot"),
    ("GET", "/api/sensor-data"),
    ("GET", "/api/devices"),
    ("GET", f"/api/devices/{BOARD_A}"),
    ("GET", f"/api/devices/{BOARD_A}/config"),
    ("GET", "/api/operations"),
    ("POST", "/api/control"),
    ("POST", "/api/preset"),
    ("POST", "/api/batch"),
    ("POST", "/mcp"),
    ("PUT", "/livez"),
    ("HEAD", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), DOCUMENTED)
async def test_trailing_slash_of_a_documented_path_is_ignored(http, method, path):
    body = {"json": {}} if method == "POST" else {}
    seen = []
    for form in (path, f"{path}/"):
        async with http.request(method, form, **body) as response:
            shown = response.status, response.content_type, response.headers.get("Allow")
            seen.append((*shown, str(response.url.path).rstrip("/")))
    assert seen[0] == seen[1]
    assert seen[0][0] != 404


# ---- methods, media types, sizes ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/control", "POST"),
        ("PUT", "/api/control", "POST"),
        ("DELETE", "/api/preset", "POST"),
        ("GET", "/api/batch", "POST"),
        ("POST", "/api/sensor-data", "GET"),
        ("POST", f"/api/devices/{BOARD_A}", "GET"),
        ("POST", "/health", "GET"),
        ("POST", "/api/operations", "GET"),
        ("POST", "/livez", "GET"),
    ],
)
async def test_other_method_is_answered_405(http, method, path, allowed):
    async with http.request(method, path) as response:
        assert response.status == 405
        assert allowed in response.headers["Allow"]
        body = await response.json()
    check_refusal(body, 405, "method_not_allowed")
    assert allowed in body["detail"]


@pytest.mark.parametrize("path", ["/api/nope", "/favicon.ico", "/api", "/livez//", "/api//devices"])
async def test_other_path_is_answered_404(http, path):
    async with http.get(path) as response:
        check_refusal(await response.json(), 404, "operation_not_found")


@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "",
        "text/plain",
        "text/plain; a=application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "+json",
        "application/json+xml",
    ],
)
async def test_body_not_declared_json_is_answered_415_and_not_executed(http, board, media_type):
    device = await board(BOARD_A)
    headers = {} if media_type is None else {"Content-Type": media_type}
    skip = ("Content-Type",) if media_type is None else ()
    data = json.dumps(LIGHT).encode()
    async with http.post(
        "/api/control", data=data, headers=headers, skip_auto_headers=skip
    ) as response:
        check_refusal(await response.json(), 415, "unsupported_media_type")
    assert device.commands == []


@pytest.mark.parametrize(
    "media_type",
    ["application/json; charset=utf-8", "application/vnd.api+json", "Application/Problem+JSON"],
)
async def test_body_declared_json_is_taken(http, board, media_type):
    await board(BOARD_A)
    headers = {"Content-Type": media_type}
    async with http.post("/api/control", data=json.dumps(LIGHT), headers=headers) as response:
        assert response.status == 200


async def test_body_of_unknown_length_over_64_kib_is_answered_413(http):
    async def chunks():
        for _ in range(9):
            yield b" " * 8192

    headers = {"Content-Type": "application/json"}
    async with http.post("/api/control", data=chunks(), headers=headers) as response:
        check_refusal(await response.json(), 413, "payload_too_large")


@pytest.mark.parametrize("key", ["a b", "x" * 129, "é"])
async def test_bad_idempotency_key_is_answered_400(http, key):
    headers = {"Idempotency-Key": key}
    async with http.post("/api/control", json=LIGHT, headers=headers) as response:
        check_refusal(await response.json(), 400, "malformed_request")


# ---- what only HTTP has -------------------------------------------------------------------------


async def test_health_is_the_object_bare(http):
    async with http.get("/health") as response:
        assert response.status == 200
        body = await response.json()
    assert set(body) == {
        "status", "database", "mqtt", "version", "uptime_seconds", "in_flight",
    }  # fmt: skip
    assert (body["status"], body["database"], body["mqtt"]) == ("healthy", True, True)


async def test_root_tells_what_this_is(http):
    async with http.get("/") as response:
        assert response.status == 200
        body = await response.json()
    assert {"service", "version", "status", "mqtt_connected"} <= set(body)
    assert body["mqtt_connected"] is True


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probe_answers_200(http, path):
    async with http.get(path) as response:
        assert response.status == 200


async def test_metrics_count_by_operation_and_never_by_what_callers_choose(http):
    await (await http.get("/api/made-up-by-a-caller")).read()
    async with http.get("/metrics") as response:
        assert response.content_type == "text/plain"
        text = await response.text()
    assert 'bridge_requests_total{operation="unknown"' in text
    assert "made-up" not in text


async def test_trace_context_comes_back_in_headers(http):
    trace = {"traceparent": PARENT, "tracestate": "vendor=1"}
    for uuid in (BOARD_A, UNKNOWN_BOARD):
        query = {"device_uuid": uuid, "sensor": "温度"}
        async with http.get("/api/sensor-data", params=query, headers=trace) as response:
            assert {name: response.headers.get(name) for name in trace} == trace


async def test_request_id_of_a_query_string_comes_back(http):
    query = {"device_uuid": BOARD_A, "sensor": "温度", "request_id": "r1"}
    async with http.get("/api/sensor-data", params=query) as response:
        assert (await response.json())["request_id"] == "r1"


async def test_pages_of_other_origins_may_not_ask(http):
    async with http.options("/api/control", headers={"Origin": "https://school"}) as response:
        assert response.status == 403
        assert "CORS_ORIGINS" in (await response.json())["detail"]
        assert "Access-Control-Allow-Origin" not in response.headers


# ---- the documented commands --------------------------------------------------------------------

DOCUMENTED = """\
curl http://localhost:9001/health
curl "http://localhost:9001/api/sensor-data?device_uuid=xxx&sensor=温度"
curl -X POST http://localhost:9001/api/control \\
  -H "Content-Type: application/json" \\
  -d '{"device_uuid":"xxx","port_type":"led","port_id":1,"action":"on"}'
"""


async def run_as_documented(bridge, command: str):
    """Run a documented command in a shell, for this bridge and board A; its output, parsed."""
    line = command.replace("localhost:9001", f"{bridge.host}:{bridge.port}").replace("xxx", BOARD_A)
    done = await asyncio.to_thread(
        subprocess.run,
        line.replace("curl ", "curl -sS --noproxy '*' ", 1),
        shell=True,
        capture_output=True,
        timeout=10,
        check=True,
    )
    return json.loads(done.stdout)


async def test_documented_curl_commands_work_as_written(bridge, board):
    device = await board(BOARD_A)
    health, reading, control = DOCUMENTED.replace("\\\n", "").splitlines()
    assert (await run_as_documented(bridge, health))["status"] == "healthy"
    assert (await run_as_documented(bridge, reading))["data"]["value"] == 29.1
    assert (await run_as_documented(bridge, control))["data"]["result"] == "success"
    assert (await device.next_command()).json == switch("led", 1)
