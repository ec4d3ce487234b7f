"""Other people's MCP clients: the official SDK for Node, and the Inspector's command line.

The official SDK for Python is the client of `tests/mcp`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge import __version__
from tests.lab.bridge import PROJECT, Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A, NAMES
from tests.lab.servers import program

HERE = Path(__file__).parent
INSPECTOR = HERE / "node_modules" / ".bin" / "mcp-inspector"
PATHS = ("/mcp", "/mcp/")
KEY = "for-the-model"
TOOLS = [
    "list_devices", "describe_device", "read_sensor", "read_sensors", "control_port", "run_preset",
]  # fmt: skip


@pytest.fixture(scope="module")
def open_bridge(mariadb: MariaDb) -> Iterator[Bridge]:
    """A bridge whose list of devices is open to all."""
    with Mosquitto() as broker, Bridge(broker, mariadb, DEVICE_LIST="open") as process:
        yield process


@pytest.fixture(scope="module")
def guarded_bridge(mariadb: MariaDb) -> Iterator[Bridge]:
    with Mosquitto() as broker, Bridge(broker, mariadb, API_KEYS=f"model:{KEY}") as process:
        yield process


def run(*command: str | Path, **environment: str) -> tuple[int, str]:
    """A program's exit status, and what it printed."""
    path = {"PATH": str(Path(program("node")).parent) + ":/usr/bin:/bin"}
    done = subprocess.run(
        command,
        cwd=HERE,
        env={**path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout or done.stderr


def ask(kind: str, address: str, tool: str, headers: Any = None, **fields: Any) -> Any:
    """What the SDK for Node makes of the server."""
    arguments = [kind, address, tool, json.dumps(fields), json.dumps(headers or {})]
    status, said = run(program("node"), "mcp_client.mjs", *arguments)
    assert status == 0, said
    return json.loads(said)


@pytest.mark.parametrize("path", PATHS)
def test_node_sdk_lists_tools_and_finds_a_device(open_bridge, path):
    told = ask("http", open_bridge.url + path, "list_devices", query=NAMES[BOARD_A])
    assert told["server"]["version"] == __version__
    assert told["tools"] == TOOLS
    (device,) = told["result"]["structuredContent"]["devices"]
    assert device["device_uuid"] == BOARD_A


def test_node_sdk_is_told_why_a_tool_failed(open_bridge):
    address = f"{open_bridge.url}/mcp"
    result = ask("http", address, "read_sensor", device_uuid=BOARD_A, sensor="luck")["result"]
    assert result["isError"]
    assert "temperature" in result["content"][0]["text"]


@pytest.mark.parametrize("headers", [{"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}])
def test_node_sdk_shows_a_key(guarded_bridge, headers):
    told = ask("http", f"{guarded_bridge.url}/mcp", "list_devices", headers)
    devices = told["result"]["structuredContent"]["devices"]
    assert {device["device_uuid"] for device in devices} == set(NAMES)


def test_node_sdk_without_a_key_is_refused(guarded_bridge):
    arguments = ("http", f"{guarded_bridge.url}/mcp", "list_devices", "{}")
    status, said = run(program("node"), "mcp_client.mjs", *arguments)
    assert status != 0
    assert "401" in said or "Unauthorized" in said


def test_node_sdk_starts_the_server_on_stdio(open_bridge):
    command = json.dumps([
        "env",
        f"MQTT_BROKER={open_bridge.broker.host}",
        f"MQTT_PORT={open_bridge.broker.port}",
        "DEVICE_LIST=open",
        sys.executable,
        str(PROJECT / "run.py"),
        "mcp",
    ])  # fmt: skip
    told = ask("stdio", command, "read_sensor", device_uuid=BOARD_A, sensor="温度")
    assert told["tools"] == TOOLS
    assert told["result"]["structuredContent"]["value"] == 29.1


def inspect(address: str, *arguments: str) -> Any:
    """What the Inspector's command line prints."""
    command = (INSPECTOR, "--cli", address, "--transport", "http", *arguments)
    status, said = run(*command)
    assert status == 0, said
    return json.loads(said)


@pytest.mark.parametrize("path", PATHS)
def test_inspector_lists_the_tools(open_bridge, path):
    listed = inspect(open_bridge.url + path, "--method", "tools/list")
    assert [tool["name"] for tool in listed["tools"]] == TOOLS


def test_inspector_calls_a_tool(open_bridge):
    result = inspect(
        f"{open_bridge.url}/mcp",
        "--method=tools/call",
        "--tool-name=read_sensor",
        "--tool-arg",
        f"device_uuid={BOARD_A}",
        "sensor=温度",
    )
    assert result["structuredContent"]["unit"] == "°C"
