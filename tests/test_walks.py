"""The two walks of CONTRIBUTING.md name the files that a request really passes.

A walk is the chain of calls by which a request comes from its transport to the store or the broker,
and its reply to the transport. What these files call on the way (a sensor's name, a counter) is not
part of it.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import aiohttp
import pytest

from bridge.app.bridge import Bridge as BridgeInProcess
from bridge.database.store import MysqlStore
from bridge.http.answer import Answer
from bridge.link import Link
from bridge.settings import Settings
from tests.lab.bridge import Bridge
from tests.lab.platform import BOARD_A

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bridge"
# What a newcomer can follow in one sitting.
MOST_FILES = 9
# Where a walk ends.
ENDS = {end.__code__ for end in (MysqlStore.sensors, Answer.send, Link.publish)}


@pytest.fixture
async def lab(private_mosquitto, mariadb) -> AsyncIterator[Bridge]:
    """The settings of a bridge that runs in this process."""
    with closing(Bridge(private_mosquitto(), mariadb)) as bridge:
        settings = {name.lower(): value for name, value in bridge.settings.items()}
        async with running(BridgeInProcess(Settings.model_validate(settings))):
            yield bridge


@asynccontextmanager
async def running(bridge: BridgeInProcess) -> AsyncIterator[None]:
    await bridge.start()
    try:
        async with asyncio.timeout(10):
            while not bridge.is_ready():
                await asyncio.sleep(0.02)
        yield
    finally:
        await bridge.stop()


async def files_passed(ask: Callable[[], Awaitable[Any]]) -> set[str]:
    """The files of ours whose functions are being called when a walk ends."""
    passed: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code in ENDS:
            passed.update(code.co_filename for code in stack(frame))

    sys.setprofile(note)
    try:
        await ask()
    finally:
        sys.setprofile(None)
    files = [Path(file) for file in passed]
    return {str(file.relative_to(PACKAGE)) for file in files if file.is_relative_to(PACKAGE)}


def stack(frame: FrameType | None) -> list[CodeType]:
    codes = []
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back
    return codes


def files_of_walk(number: int) -> set[str]:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.search(rf"^## Walk {number}:.*?(?=^## )", page, re.MULTILINE | re.DOTALL)
    assert section is not None
    return set(re.findall(r"^\| `([^`]+\.py)` \|", section[0], re.MULTILINE))


async def test_reading_over_http_passes_the_files_of_its_walk(lab):
    async with aiohttp.ClientSession(lab.url) as http:

        async def read() -> None:
            query = {"device_uuid": BOARD_A, "sensor": "温度"}
            async with http.get("/api/sensor-data", params=query) as response:
                assert response.status == 200

        passed = await files_passed(read)
    assert passed == files_of_walk(1)
    assert len(passed) <= MOST_FILES


async def test_control_over_mqtt_passes_the_files_of_its_walk(lab, connect_requester, board):
    await board(BOARD_A, lab.broker)
    requester = await connect_requester(lab.broker)
    command = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}

    async def control() -> None:
        reply = await requester.ask("control", {**command, "request_id": "walk-2"})
        assert reply.body["code"] == 200

    passed = await files_passed(control)
    assert passed == files_of_walk(2)
    assert len(passed) <= MOST_FILES
