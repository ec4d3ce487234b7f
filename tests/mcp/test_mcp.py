"""MCP: the tools, over both transports, as the official SDK's own client sees them."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
from jsonschema import Draft202012Validator
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult

from bridge.client import BridgeClient
from bridge.mcp import REQUIREMENT
from tests.conftest import ConnectBoard, StartBridge
from tests.docs.pages import snippet
from tests.lab.bridge import PROJECT, Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Broker
from tests.lab.platform import (
    ALIAS,
    BOARD_A,
    BOARD_B,
    BOARD_C,
    NAMES,
    ORDINARY_PRESET,
    SLOW_SEQUENCE,
    UNKNOWN_BOARD,
)

LIST = "list_devices"
# To those who may not list devices.
TOOLS = ["describe_device", "read_sensor", "read_sensors", "control_port", "run_preset"]
TEMPERATURE = {"device_uuid": BOARD_A, "sensor": "温度"}
LED_ON = {"cmd": "led", "device_id": 1, "action": "on"}
LIST_TOOLS = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
ACCEPT = {"Accept": "application/json, text/event-stream"}

# ---- clients ------------------------------------------------------------------------------------


@asynccontextmanager
async def by_url(
    bridge: Bridge, path: str = "/mcp/", mode: str = "auto", headers: dict[str, str] | None = None
) -> AsyncIterator[Client]:
    async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
        transport = streamable_http_client(bridge.url + path, http_client=http)
        async with Client(transport, mode=mode) as client:
            yield client


@asynccontextmanager
async def by_stdio(
    broker: Broker, folder: Path, *arguments: str, mode: str = "auto", **settings: str
) -> AsyncIterator[Client]:
    started = StdioServerParameters(
        command=sys.executable,
        args=[str(PROJECT / "run.py"), "mcp", *arguments],
        env=environment(broker, **settings),
        cwd=folder,
    )
    with (folder / "stderr").open("w") as errors:
        async with Client(stdio_client(started, errlog=errors), mode=mode) as client:
            yield client


def environment(broker: Broker, **settings: str) -> dict[str, str]:
    return {"MQTT_BROKER": broker.host, "MQTT_PORT": str(broker.port), **settings}


Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(params=["http", "stdio"])
def connect(
    request: pytest.FixtureRequest, bridge: Bridge, mosquitto: Mosquitto, tmp_path: Path
) -> Connect:
    """Connects to the shared bridge; the test runs once a transport."""
    if request.param == "http":
        return lambda **options: by_url(bridge, **options)
    return lambda **options: by_stdio(mosquitto, tmp_path, **options)


def told(result: CallToolResult) -> str:
    """The words of a tool that failed."""
    assert result.is_error
    assert result.structured_content is None
    (said,) = result.content
    assert said.type == "text"
    return said.text


def given(result: CallToolResult) -> dict[str, Any]:
    """What a tool that succeeded gave; its text says the same."""
    assert not result.is_error, result.content
    (said,) = result.content
    assert said.type == "text"
    assert json.loads(said.text) == result.structured_content
    assert isinstance(result.structured_content, dict)
    return result.structured_content


# ---- the tools ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_tools_are_listed_to_clients_of_both_protocol_eras(connect, mode):
    async with connect(mode=mode) as client:
        listed = (await client.list_tools()).tools
    assert [tool.name for tool in listed] == TOOLS


async def test_tools_describe_themselves_in_both_languages_and_valid_schemas(open_list):
    async with by_url(open_list) as client:
        listed = (await client.list_tools()).tools
        assert "设备" in client.instructions
        assert "devices" in client.instructions
    for tool in listed:
        assert "设备" in tool.description, tool.name
        assert "device" in tool.description, tool.name
        for schema in (tool.input_schema, tool.output_schema):
            Draft202012Validator.check_schema(schema)
            assert schema["type"] == "object", tool.name


async def test_arguments_have_plain_types(open_list):
    """Clients that show a model the first type only would show it half of an `anyOf`."""
    async with by_url(open_list) as client:
        listed = (await client.list_tools()).tools
    for tool in listed:
        for name, schema in tool.input_schema["properties"].items():
            assert "type" in schema, (tool.name, name)
            assert schema["description"], (tool.name, name)


async def test_only_reading_tools_say_that_they_change_nothing(open_list):
    async with by_url(open_list) as client:
        listed = (await client.list_tools()).tools
    reading = {tool.name for tool in listed if tool.annotations.read_only_hint}
    assert reading == {LIST, "describe_device", "read_sensor", "read_sensors"}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_sensor_is_read(connect, mode):
    async with connect(mode=mode) as client:
        reading = given(await client.call_tool("read_sensor", TEMPERATURE))
    assert (reading["value"], reading["unit"], reading["device_name"]) == (
        29.1,
        "°C",
        NAMES[BOARD_A],
    )


async def test_several_sensors_are_read_and_one_that_fails_says_so(connect):
    requests = [TEMPERATURE, {"device_uuid": BOARD_B, "sensor": "雨水"}]
    async with connect() as client:
        outcome = given(await client.call_tool("read_sensors", {"requests": requests}))
    first, second = outcome["readings"]
    assert (first["sensor"], first["reading"]["value"]) == ("温度", 29.1)
    assert (second["device_uuid"], second["error"]) == (BOARD_B, "sensor_not_found")
    assert "temperature" in second["detail"]


NAMES_OF_LED_1: list[dict[str, Any]] = [{"port": ALIAS}, {"port_type": "led", "port_id": 1}]


@pytest.mark.parametrize("named", NAMES_OF_LED_1, ids=["alias", "type and id"])
async def test_port_is_controlled(connect, board: ConnectBoard, named):
    listening = await board(BOARD_A)
    arguments = {"device_uuid": BOARD_A, "action": "on", **named}
    async with connect() as client:
        result = given(await client.call_tool("control_port", arguments))
    assert result["command"] == LED_ON
    assert (await listening.next_command()).json == LED_ON


async def test_sequence_is_run_by_its_name(connect, board: ConnectBoard):
    listening = await board(BOARD_A)
    arguments = {"device_uuid": BOARD_A, "preset_key": "上课模式"}
    async with connect() as client:
        result = given(await client.call_tool("run_preset", arguments))
    assert (result["success"], len(result["executed_steps"])) == (True, 4)
    assert len(await listening.next_commands(4)) == 4


async def test_ordinary_preset_is_run(bridge, board: ConnectBoard):
    listening = await board(BOARD_A)
    arguments = {"device_uuid": BOARD_A, "preset_key": ORDINARY_PRESET, "parameters": {"count": 9}}
    async with by_url(bridge) as client:
        assert given(await client.call_tool("run_preset", arguments))["success"]
    assert (await listening.next_command()).json["parameters"]["count"] == 9


NUMBERS: list[Any] = [3, 2**40, 2**64 - 1, 10**30, -(10**19), 1e300, [10**30], {"a": 10**30}]


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
async def test_number_means_what_it_means_in_any_request(connect, http, board, number):
    """The SDK's parser takes integers without end, which ours reads as floating-point numbers."""
    listening = await board(BOARD_A)
    arguments = {"device_uuid": BOARD_A, "preset_key": ORDINARY_PRESET}
    arguments["parameters"] = {"count": number}
    async with http.post("/api/preset", json=arguments) as answer:
        body = await answer.json()
    async with connect() as client:
        result = await client.call_tool("run_preset", arguments)
    assert body["code"] in (200, 400, 422)
    if body["code"] != 200:
        assert told(result) == body["detail"]
        return
    assert given(result) == body["data"]
    by_request, by_tool = await listening.next_commands(2)
    assert by_tool == by_request


async def test_device_is_described(connect):
    async with connect() as client:
        device = given(await client.call_tool("describe_device", {"device_uuid": BOARD_A}))
    assert {port["alias"] for port in device["ports"]} == {ALIAS, None}
    assert "上课模式" in {preset["name"] for preset in device["presets"]}
    assert 29.1 in {sensor["value"] for sensor in device["sensors"]}


# ---- errors -------------------------------------------------------------------------------------

# Arguments, and the operation that refuses them in the same words.
MISTAKES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "unknown device": (
        "read_sensor",
        "sensor-data",
        {"device_uuid": UNKNOWN_BOARD, "sensor": "温度"},
    ),
    "no device": ("read_sensor", "sensor-data", {"sensor": "温度"}),
    "unknown port": (
        "control_port",
        "control",
        {"device_uuid": BOARD_A, "port": "厨房灯", "action": "on"},
    ),
    "device is offline": (
        "run_preset",
        "preset",
        {"device_uuid": BOARD_C, "preset_key": ORDINARY_PRESET},
    ),
    "nothing to read": ("read_sensors", "batch", {}),
    "no list to read": ("read_sensors", "batch", {"requests": 5}),
    "no object in the list": ("read_sensors", "batch", {"requests": [5]}),
}


@pytest.mark.parametrize(("tool", "operation", "arguments"), MISTAKES.values(), ids=MISTAKES)
async def test_tool_fails_with_the_words_of_the_contract(
    connect, mosquitto, tool, operation, arguments
):
    async with connect() as client:
        said = told(await client.call_tool(tool, arguments))
    async with BridgeClient(f"mqtt://{mosquitto.host}:{mosquitto.port}") as asker:
        reply = await asker.request(operation, arguments)
    assert said == reply["detail"]


async def test_unknown_tool_is_an_error_of_the_protocol_that_names_the_tools(connect):
    async with connect() as client:
        with pytest.raises(MCPError, match="read_sensors"):
            await client.call_tool("open_the_door", {})


# ---- the default device -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default_device(mariadb: MariaDb) -> Iterator[Bridge]:
    """A bridge with a default device."""
    with Mosquitto() as broker, Bridge(broker, mariadb, MCP_DEVICE_UUID=BOARD_A) as process:
        yield process


@pytest.fixture(params=["http", "stdio"])
def connect_with_default(request, default_device: Bridge, tmp_path: Path) -> Connect:
    if request.param == "http":
        return lambda: by_url(default_device)
    return lambda: by_stdio(default_device.broker, tmp_path, MCP_DEVICE_UUID=BOARD_A)


@pytest.mark.parametrize("named", [{}, {"device_uuid": None}, {"device_uuid": ""}], ids=repr)
async def test_default_device_is_asked_where_none_is_named(connect_with_default, named):
    async with connect_with_default() as client:
        reading = given(await client.call_tool("read_sensor", {"sensor": "温度", **named}))
        several = given(
            await client.call_tool("read_sensors", {"requests": [{"sensor": "温度", **named}]})
        )
    assert reading["value"] == several["readings"][0]["reading"]["value"] == 29.1


async def test_another_device_may_be_named_beside_the_default(connect_with_default):
    async with connect_with_default() as client:
        arguments = {"device_uuid": BOARD_B, "sensor": "temperature"}
        assert given(await client.call_tool("read_sensor", arguments))["value"] == 23.8


async def test_device_is_an_optional_argument_only_with_a_default(bridge, default_device):
    async with by_url(default_device) as with_default, by_url(bridge) as without:
        for client, required in ((with_default, ["sensor"]), (without, ["device_uuid", "sensor"])):
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert tools["read_sensor"].input_schema["required"] == required
            items = tools["read_sensors"].input_schema["properties"]["requests"]["items"]
            assert items["required"] == required


# ---- keys ---------------------------------------------------------------------------------------

KEYS = f"""
all:open-sesame
reader:just-looking operations=sensor-data
warden:my-board operations=sensor-data,control devices={BOARD_B}
"""


@pytest.fixture(scope="module")
def guarded(mariadb: MariaDb, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEYS)
    with Mosquitto() as broker, Bridge(broker, mariadb, API_KEYS_FILE=str(keys)) as process:
        yield process


HEADERS: list[dict[str, str]] = [
    {"X-API-Key": "open-sesame"},
    {"Authorization": "Bearer open-sesame"},
]


@pytest.mark.parametrize("headers", HEADERS, ids=["X-API-Key", "Bearer"])
async def test_key_opens(guarded, headers):
    async with by_url(guarded, headers=headers) as client:
        assert given(await client.call_tool("read_sensor", TEMPERATURE))["value"] == 29.1


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "guessed"}], ids=["none", "wrong"])
async def test_nothing_is_told_without_a_key(guarded, headers):
    async with (
        aiohttp.ClientSession(headers={**ACCEPT, **headers}) as http,
        http.post(f"{guarded.url}/mcp/", json=LIST_TOOLS) as response,
    ):
        assert response.status == 401
        assert (await response.json())["error"] == "unauthorized"


FORBIDDEN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "operation": (
        "just-looking",
        "control_port",
        {"device_uuid": BOARD_A, "port": ALIAS, "action": "on"},
    ),
    "device": ("my-board", "read_sensor", TEMPERATURE),
    "described device": ("just-looking", "describe_device", {"device_uuid": BOARD_A}),
}


@pytest.mark.parametrize(("key", "tool", "arguments"), FORBIDDEN.values(), ids=FORBIDDEN)
async def test_limits_of_a_key_hold_for_its_tools(guarded, key, tool, arguments):
    async with by_url(guarded, headers={"X-API-Key": key}) as client:
        assert "密钥" in told(await client.call_tool(tool, arguments))


async def test_limits_of_a_key_hold_for_each_of_several_readings(guarded):
    requests = [{"device_uuid": BOARD_B, "sensor": "temperature"}, TEMPERATURE]
    async with by_url(guarded, headers={"X-API-Key": "my-board"}) as client:
        outcome = given(await client.call_tool("read_sensors", {"requests": requests}))
    assert [reading["code"] for reading in outcome["readings"]] == [200, 403]


async def test_trusted_address_needs_no_key(private_bridge: StartBridge):
    process = private_bridge(API_KEYS="all:open-sesame", API_TRUSTED="127.0.0.0/8")
    async with by_url(process) as client:
        assert given(await client.call_tool("read_sensor", TEMPERATURE))["value"] == 29.1


# ---- the list of devices ------------------------------------------------------------------------


async def names_of(client: Client) -> list[str]:
    return [tool.name for tool in (await client.list_tools()).tools]


@pytest.fixture(scope="module")
def open_list(mariadb: MariaDb) -> Iterator[Bridge]:
    """A bridge whose list of devices is open to all."""
    with Mosquitto() as broker, Bridge(broker, mariadb, DEVICE_LIST="open") as process:
        yield process


@pytest.fixture(params=["http", "stdio"])
def connect_to_open_list(request, open_list: Bridge, tmp_path: Path) -> Connect:
    if request.param == "http":
        return lambda: by_url(open_list)
    return lambda: by_stdio(open_list.broker, tmp_path, DEVICE_LIST="open")


async def test_open_list_is_the_first_tool(connect_to_open_list):
    async with connect_to_open_list() as client:
        assert await names_of(client) == [LIST, *TOOLS]
        assert "list_devices" in client.instructions


async def test_device_is_found_by_name_and_read(connect_to_open_list):
    async with connect_to_open_list() as client:
        found = given(await client.call_tool(LIST, {"query": "水温"}))
        assert found["next_cursor"] is None
        (device,) = found["devices"]
        assert (device["name"], device["product"]) == (NAMES[BOARD_B], "水温套件")
        arguments = {"device_uuid": device["device_uuid"], "sensor": "temperature"}
        assert given(await client.call_tool("read_sensor", arguments))["value"] == 23.8


@pytest.mark.parametrize("empty", ["", None], ids=repr)
async def test_what_a_model_leaves_empty_counts_as_not_given(connect_to_open_list, empty):
    names = ("query", "room", "group", "online", "limit", "cursor")
    async with connect_to_open_list() as client:
        found = given(await client.call_tool(LIST, dict.fromkeys(names, empty)))
    assert len(found["devices"]) == 5


async def test_pages_are_turned_by_the_cursor(connect_to_open_list):
    async with connect_to_open_list() as client:
        first = given(await client.call_tool(LIST, {"limit": 3}))
        second = given(await client.call_tool(LIST, {"limit": 3, "cursor": first["next_cursor"]}))
        assert "cursor" in told(await client.call_tool(LIST, {"cursor": "made-up"}))
    assert [len(page["devices"]) for page in (first, second)] == [3, 2]


async def test_default_device_does_not_narrow_the_list(private_bridge: StartBridge):
    process = private_bridge(DEVICE_LIST="open", MCP_DEVICE_UUID=BOARD_A)
    async with by_url(process) as client:
        assert len(given(await client.call_tool(LIST, {}))["devices"]) == 5


async def test_list_that_is_not_to_be_had_is_not_offered_and_says_what_to_set(connect):
    async with connect() as client:
        assert await names_of(client) == TOOLS
        assert "DEVICE_LIST" in told(await client.call_tool(LIST, {}))


@pytest.mark.parametrize(
    ("key", "offered"), [("open-sesame", True), ("just-looking", False), ("my-board", False)]
)
async def test_list_is_offered_to_a_key_that_allows_it(guarded, key, offered):
    async with by_url(guarded, headers={"X-API-Key": key}) as client:
        assert (LIST in await names_of(client)) is offered
        result = await client.call_tool(LIST, {})
    if offered:
        assert len(given(result)["devices"]) == 5
    else:
        assert "密钥" in told(result)


# ---- whose pages may ask ------------------------------------------------------------------------


async def post(url: str, body: Any = LIST_TOOLS, **headers: str) -> tuple[int, Any]:
    """A POST to `/mcp/` as a browser or any other HTTP client would make it."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {**ACCEPT, "Content-Type": "application/json", **headers}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/mcp/", data=data, headers=headers) as response,
    ):
        return response.status, await response.json()


STRANGE = [{"Host": "evil.example"}, {"Origin": "http://evil.example"}]


@pytest.mark.parametrize("headers", STRANGE, ids=["host", "origin"])
async def test_page_of_a_stranger_is_refused_on_an_open_bridge(bridge, headers):
    status, body = await post(bridge.url, **headers)
    assert (status, body["error"]) == (403, "forbidden")


@pytest.mark.parametrize("headers", STRANGE, ids=["host", "origin"])
async def test_who_shows_a_key_is_not_asked_for_names(guarded, headers):
    status, body = await post(guarded.url, **{"X-API-Key": "open-sesame"}, **headers)
    assert status == 200
    assert [tool["name"] for tool in body["result"]["tools"]] == [LIST, *TOOLS]


# ---- the endpoint -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_address_without_its_slash_serves_too(bridge, mode):
    async with by_url(bridge, "/mcp", mode) as client:
        assert given(await client.call_tool("read_sensor", TEMPERATURE))["value"] == 29.1


MALFORMED: list[tuple[bytes, dict[str, str], int, str]] = [
    (b"{", {}, 400, "malformed_request"),
    (b'{"params":{"value":NaN}}', {}, 400, "malformed_request"),
    (b'{"params":"\\ud800"}', {}, 400, "malformed_request"),
    (b"1", {}, 400, "malformed_request"),
    (b" " * 70_000, {}, 413, "payload_too_large"),
    (b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
]


@pytest.mark.parametrize(("payload", "headers", "status", "error"), MALFORMED)
async def test_what_is_no_message_gets_the_error_of_the_contract(
    bridge, payload, headers, status, error
):
    got, body = await post(bridge.url, payload, **headers)
    assert (got, body["error"]) == (status, error)


@pytest.mark.parametrize("batch", [b"[]", b' [{"jsonrpc":"2.0","id":1,"method":"ping"}]'])
async def test_batch_is_refused_in_the_form_of_json_rpc(bridge, batch):
    status, body = await post(bridge.url, batch)
    assert (status, body["jsonrpc"], body["id"]) == (400, "2.0", None)
    assert body["error"]["code"] == -32600
    assert "batch" in body["error"]["message"]


@pytest.mark.parametrize(
    "document",
    [
        "oauth-protected-resource",
        "oauth-protected-resource/mcp/",
        "oauth-authorization-server",
        "openid-configuration",
    ],
)
async def test_with_keys_there_is_no_authorization_server_to_be_found(guarded, bridge, document):
    async with aiohttp.ClientSession() as http:
        for url in (guarded.url, bridge.url):
            async with http.get(f"{url}/.well-known/{document}") as response:
                assert response.status == 404
        async with http.get(f"{guarded.url}/.well-known/anything-else") as response:
            assert response.status == 401


async def test_there_is_no_stream_to_open(http):
    async with http.get("/mcp/", headers=ACCEPT) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST, OPTIONS"


async def test_tools_are_counted_under_a_transport_of_their_own(bridge, http):
    async with by_url(bridge) as client:
        await client.call_tool("read_sensor", TEMPERATURE)
    async with http.get("/metrics") as response:
        exposition = await response.text()
    counted = 'bridge_requests_total{operation="sensor-data",outcome="ok",transport="mcp"}'
    assert counted in exposition


async def test_any_worker_answers_any_message(private_bridge: StartBridge):
    process = private_bridge(WORKERS="2", DEDUP_STORE=None)

    async def ask() -> float:
        async with by_url(process, mode="legacy") as client:
            return float(given(await client.call_tool("read_sensor", TEMPERATURE))["value"])

    assert await asyncio.gather(*(ask() for _ in range(8))) == [29.1] * 8


async def test_drain_lets_a_tool_tell_what_was_done(
    private_bridge: StartBridge, board: ConnectBoard
):
    process = private_bridge(DRAIN_TIMEOUT="4")
    listening = await board(BOARD_A, process.broker)
    async with by_url(process) as client:
        # The client checks results against the tools' schemas; during the drain it can't ask.
        await client.list_tools()
        arguments = {"device_uuid": BOARD_A, "preset_key": SLOW_SEQUENCE}
        running = asyncio.create_task(client.call_tool("run_preset", arguments))
        await listening.next_command()
        process.send_signal(signal.SIGTERM)
        result = given(await running)
    assert (result["success"], len(result["executed_steps"])) == (False, 1)
    assert await asyncio.to_thread(process.wait) == 0


async def health(http: aiohttp.ClientSession) -> dict[str, Any]:
    async with http.get("/health") as response:
        answer: dict[str, Any] = await response.json()
        return answer


async def test_tool_is_not_begun_while_the_bridge_drains(private_bridge: StartBridge):
    process = private_bridge(DRAIN_TIMEOUT="3.5")
    async with by_url(process) as client, aiohttp.ClientSession(process.url) as http:
        # A broker that does not answer keeps a command in flight, and so the bridge draining.
        process.broker.pause()
        command = {"device_uuid": BOARD_A, "port": ALIAS, "action": "on"}
        in_flight = asyncio.create_task(http.post("/api/control", json=command))
        async with asyncio.timeout(5):
            while (await health(http))["in_flight"] == 0:
                pass
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait_for_line, "draining")
        said = told(await client.call_tool("read_sensor", TEMPERATURE))
        (await in_flight).close()
    assert "正在停止" in said


def test_sdk_costs_nothing_before_the_first_message():
    program = "import bridge.app, sys; sys.exit('mcp.server' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True, timeout=30)


# ---- without the SDK ----------------------------------------------------------------------------

# As if it had never been installed.
WITHOUT_SDK = f"""
import importlib.metadata, sys
sys.path.insert(0, {str(PROJECT)!r})
sys.modules["mcp"] = sys.modules["mcp_types"] = None
version = importlib.metadata.version
def without(name):
    if name == "mcp":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = without
from bridge.cli import (main)
sys.exit(main(sys.argv[1:]))
"""


class WithoutSdk(Bridge):
    """The bridge on a machine where the extra was not installed."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", WITHOUT_SDK]


async def test_bridge_without_the_sdk_says_what_to_install(mariadb):
    with Mosquitto() as broker, WithoutSdk(broker, mariadb) as process:
        status, body = await post(process.url)
        assert (status, body["error"]) == (404, "operation_not_found")
        assert REQUIREMENT in body["detail"]


def test_command_without_the_sdk_says_what_to_install(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_SDK, "mcp"],
        check=False,
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert REQUIREMENT in line


def test_extra_installs_what_the_words_say():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"]["mcp"] == [REQUIREMENT]
    wanted = (PROJECT / "tests" / "requirements.txt").read_text(encoding="utf-8")
    assert REQUIREMENT in wanted.splitlines()


# ---- standard input and output ------------------------------------------------------------------


async def test_tool_says_that_the_broker_is_away_and_works_once_it_is_back(
    tmp_path, private_mosquitto, private_bridge: StartBridge
):
    broker = await asyncio.to_thread(private_mosquitto)
    await asyncio.to_thread(private_bridge, broker=broker)
    await asyncio.to_thread(broker.stop)
    async with by_stdio(broker, tmp_path) as client:
        said = told(await client.call_tool("read_sensor", TEMPERATURE))
        assert str(broker.port) in said
        await asyncio.to_thread(broker.start)
        # The bridge may take a moment longer to come back.
        async with asyncio.timeout(20):
            while (result := await client.call_tool("read_sensor", TEMPERATURE)).is_error:
                await asyncio.sleep(0.1)
    assert given(result)["value"] == 29.1


async def test_tool_says_that_no_bridge_hears_it(tmp_path, private_mosquitto):
    async with by_stdio(private_mosquitto(), tmp_path) as client:
        said = told(await client.call_tool("control_port", {"device_uuid": BOARD_A}))
    assert "nobody is subscribed" in said


async def test_client_level_is_part_of_the_topics(tmp_path, bridge, mosquitto, requester):
    asked = "plugin/request/sensor-data/alice"
    await requester.subscribe(asked)
    async with by_stdio(mosquitto, tmp_path, "--client-level", "alice") as client:
        assert given(await client.call_tool("read_sensor", TEMPERATURE))["value"] == 29.1
    assert (await requester.next_message(topic=asked)).json["sensor"] == "温度"


MCP_PAGE, LLM_PAGE = "docs/mcp.md", "docs/llm-platforms.md"
BLOCKS = {
    MCP_PAGE: {"stdio", "vscode", "python", "claude-code", "claude-code-zh"},
    LLM_PAGE: {"cursor", "claude-code"},
    "docs/llm-platforms.zh-CN.md": {"cursor", "claude-code"},
}


async def test_documented_configuration_starts_it(bridge, mosquitto, tmp_path):
    entry = json.loads(snippet(MCP_PAGE, "stdio"))["mcpServers"]["aiot"]
    started = StdioServerParameters(
        command=entry["command"].replace("/path/to/bridge/.venv/bin/python", sys.executable),
        args=[word.replace("/path/to/bridge", str(PROJECT)) for word in entry["args"]],
        env=entry["env"] | environment(mosquitto),
        cwd=tmp_path,
    )
    with (tmp_path / "stderr").open("w") as errors:
        async with Client(stdio_client(started, errlog=errors)) as client:
            assert given(await client.call_tool("read_sensor", TEMPERATURE))["value"] == 29.1


def documented(page: str, name: str) -> tuple[str, dict[str, str]]:
    """The path and the headers of a client's configuration on the page."""
    text = snippet(page, name)
    if name.startswith("claude-code"):
        *_, url, option, header = shlex.split(text)
        assert text.startswith("claude mcp add --transport http ")
        assert option == "--header"
        headers = dict([header.split(": ")])
    else:
        (servers,) = json.loads(text).values()
        url, headers = servers["aiot"]["url"], servers["aiot"]["headers"]
    assert headers == {"X-API-Key": "your-secret"}
    return re.sub(r"^https?://[^/]+", "", url), {"X-API-Key": "open-sesame"}


@pytest.mark.parametrize(
    ("page", "name"),
    [
        (page, name)
        for page, names in BLOCKS.items()
        for name in sorted(names - {"stdio", "python"})
    ],
)
async def test_documented_configuration_connects(guarded, page, name):
    path, headers = documented(page, name)
    async with by_url(guarded, path, headers=headers) as client:
        assert given(await client.call_tool("read_sensor", TEMPERATURE))["value"] == 29.1


async def test_documented_program_connects(bridge, capsys):
    """Its `async with` needs a function around it, and `…` stands for a device's UUID."""
    text = snippet(MCP_PAGE, "python").replace("http://192.168.1.10:9001", bridge.url)
    indented = "".join(f"    {line}" for line in text.replace("…", BOARD_A).splitlines(True))
    scope: dict[str, Any] = {}
    exec(f"async def main():\n{indented}", scope)
    await scope["main"]()
    assert capsys.readouterr().out == "29.1\n"


@pytest.fixture
async def process(mosquitto, tmp_path) -> AsyncIterator[asyncio.subprocess.Process]:
    """`run.py mcp` with its plain pipes."""
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROJECT / "run.py"), "mcp"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment(mosquitto, LOG_LEVEL="DEBUG"),
    )
    yield started
    if started.returncode is None:
        started.kill()
    await started.communicate()


def line(method: str, **message: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": method, **message}).encode() + b"\n"


INITIALIZE = line(
    "initialize",
    id=1,
    params={
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
)


async def test_standard_output_carries_the_protocol_alone(process):
    process.stdin.write(INITIALIZE + b"no message\n" + line("notifications/initialized"))
    process.stdin.write(line("tools/list", id=2))
    answers = [json.loads(await process.stdout.readline()) for _ in range(2)]
    assert [answer["id"] for answer in answers] == [1, 2]
    process.stdin.close()
    rest = await process.stdout.read()
    assert (rest, await process.wait()) == (b"", 0)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "1" + "0" * 400], ids=range(4))
async def test_value_that_no_request_can_hold_is_refused_in_words(process, value):
    process.stdin.write(INITIALIZE + line("notifications/initialized"))
    arguments = {"device_uuid": BOARD_A, "preset_key": ORDINARY_PRESET, "parameters": {"count": 0}}
    call = line("tools/call", id=2, params={"name": "run_preset", "arguments": arguments})
    process.stdin.write(call.replace(b'"count": 0', b'"count": ' + value.encode()))
    _, refused = [json.loads(await process.stdout.readline()) for _ in range(2)]
    assert refused["result"]["isError"]
    assert "JSON" in refused["result"]["content"][0]["text"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_it_while_standard_input_is_open(process, number):
    process.stdin.write(INITIALIZE)
    await process.stdout.readline()
    process.send_signal(number)
    async with asyncio.timeout(10):
        assert await process.wait() == 0
    assert await process.stderr.read() == b""
