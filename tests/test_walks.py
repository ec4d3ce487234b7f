"""The two walks of CONTRIBUTING.md: a reading over HTTP and a control over MQTT touch these files.

Each request is answered by a bridge in this process, and every call of ours is traced.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp

from bridge.app.bridge import Bridge as BridgeInProcess
from bridge.settings import Settings
from tests.lab.bridge import Bridge
from tests.lab.platform import BOARD_A

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bridge"
# Enough that what runs beside the requests (timers, probes) is not in all of them.
TIMES = 12

Ask = Callable[[], Awaitable[Any]]


@asynccontextmanager
async def running(lab: Bridge) -> AsyncIterator[BridgeInProcess]:
    settings = {name.lower(): value for name, value in lab.settings.items()}
    bridge = BridgeInProcess(Settings.model_validate(settings))
    await bridge.start()
    try:
        async with asyncio.timeout(10):
            while not bridge.is_ready():
                await asyncio.sleep(0.02)
        yield bridge
    finally:
        await bridge.stop()


async def files_touched(ask: Ask) -> set[str]:
    """The files of ours in which something is called for each of several requests."""
    await ask()
    touched: list[set[str]] = []
    for _ in range(TIMES):
        seen: set[str] = set()

        def note(frame: FrameType, event: str, argument: Any, seen: set[str] = seen) -> None:
            if event == "call":
                seen.add(frame.f_code.co_filename)

        sys.setprofile(note)
        try:
            await ask()
        finally:
            sys.setprofile(None)
        touched.append(seen)
    prefix = f"{PACKAGE}/"
    return {
        file.removeprefix(prefix) for file in set.intersection(*touched) if file.startswith(prefix)
    }


async def test_x(mosquitto, private_mosquitto, mariadb, connect_requester, board):
    lab = Bridge(private_mosquitto(), mariadb)
    async with running(lab), aiohttp.ClientSession(lab.url) as http:

        async def read():
            async with http.get(
                "/api/sensor-data", params={"device_uuid": BOARD_A, "sensor": "温度"}
            ) as r:
                assert r.status == 200

        print("HTTP", len(s := await files_touched(read)), *sorted(s), sep="\n")
        await board(BOARD_A, lab.broker)
        requester = await connect_requester(lab.broker)
        n = 0

        async def control():
            nonlocal n
            n += 1
            reply = await requester.ask(
                "control",
                {
                    "device_uuid": BOARD_A,
                    "port_type": "led",
                    "port_id": 1,
                    "action": "on",
                    "request_id": f"r{n}",
                },
            )
            assert reply.body["code"] == 200, reply.body

        print("MQTT", len(s := await files_touched(control)), *sorted(s), sep="\n")
    raise AssertionError
