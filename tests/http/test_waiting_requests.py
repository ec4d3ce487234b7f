"""Requests that wait for a place take a bounded memory, however many and however nested."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from tests.conftest import StartBridge
from tests.http.test_server import post
from tests.lab.clients import clients
from tests.lab.memory import watched
from tests.lab.platform import BOARD_A

JSON = "Content-Type: application/json"
CONTROL = {
    "device_uuid": BOARD_A,
    "port_type": "led",
    "port_id": 1,
    "action": "on",
}
BATCH = {"requests": [{"operation": "sensor-data", "device_uuid": BOARD_A, "sensor": "rain"}]}


@pytest.mark.parametrize(
    ("path", "fields", "values", "count"),
    [
        ("/api/control", CONTROL, 450, 3500),
        ("/api/batch", BATCH, 2000, 2000),
        ("/api/control", CONTROL, 2000, 2000),
    ],
    ids=["controls", "batches", "too many values"],
)
async def test_nested_values_of_requests_that_wait_are_not_kept(
    private_bridge: StartBridge, path: str, fields: dict[str, object], values: int, count: int
):
    """Parsed before they waited, 4,000 bodies of 20 KB took three gigabytes."""
    body = json.dumps({**fields, "more": [{"": 0}] * values}, separators=(",", ":")).encode()
    request = post(path, body, JSON)
    bridge = private_bridge()
    async with watched(bridge) as memory, clients(bridge, count, request) as answered:
        async with asyncio.timeout(60):
            while len(answered) < count:
                await asyncio.sleep(0.05)
    statuses = Counter(line.split()[1] for line in answered)
    assert statuses.keys() <= {b"200", b"400", b"409", b"429"}
    assert memory.growth < 150
