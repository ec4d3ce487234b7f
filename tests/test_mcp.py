"""MCP: the tools, over both transports, as the official SDK's own client sees them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
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

from bridge.errors import Forbidden
from bridge.mcp import REQUIREMENT
from bridge.mcp.visitors import Visitors
from bridge.settings import Settings
from tests.conftest import ConnectBoard, StartBridge
from tests.lab.bridge import PROJECT, Bridge
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Broker
from tests.lab.platform import (
    ALIAS,
    BOARD_A,
    BOARD_B,
    BOARD_C,
    NAMES,
    ORDINARY_PRESET,
    SEQUENCE,
    SLOW_SEQUENCE,
    UNKNOWN_BOARD,
)
from tests.lab.servers import LOOPBACK, free_port

Json = dict[str, Any]
TOOLS = {"describe_device", "read_sensor", "read_sensors", "control_port", "run_preset"}
LED_ON = {"cmd": "led", "device_id": 1, "action": "on"}
TEMPERATURE = {"device_uuid": BOARD_A, "sensor": "温度"}
JSON_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
}
LIST_TOOLS = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})

# ---- clients ------------------------------------------------------------------------------------


class Clients:
    """Connects the SDK's client, by URL or by starting `run.py mcp`; all leave with the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._left = AsyncExitStack()

    async def by_url(
        self, bridge: Bridge, path: str = "/mcp/", mode: str = "auto", **headers: str
    ) -> Client:
        http = await self._left.enter_async_context(httpx2.AsyncClient(headers=headers))
        transport = streamable_http_client(bridge.url + path, http_client=http)
        return await self._left.enter_async_context(Client(transport, mode=mode))

    async def by_stdio(
        self, broker: Broker, *arguments: str, mode: str = "auto", **settings: str
    ) -> Client:
        started = StdioServerParameters(
            command=sys.executable,
            args=[str(PROJECT / "run.py"), "mcp", *arguments],
            env=environment(broker, **settings),
            cwd=self._folder,
        )
        # pytest has put something without a file in the place of stderr.
        errors = self._left.enter_context((self._folder / "stderr").open("w"))
        transport = stdio_client(started, errlog=errors)
        return await self._left.enter_async_context(Client(transport, mode=mode))

    async def close(self) -> None:
        await self._left.aclose()


def environment(broker: Broker, **settings: str) -> dict[str, str]:
    return {"MQTT_BROKER": broker.host, "MQTT_PORT": str(broker.port), **settings}


@contextlib.asynccontextmanager
async def clients_in(folder: Path) -> AsyncIterator[Clients]:
    clients = Clients(folder)
    try:
        yield clients
    finally:
        await clients.close()


WithClients = Callable[[Callable[[Clients], Awaitable[None]]], Awaitable[None]]
