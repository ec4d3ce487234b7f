"""Publishes that are far larger than a request, or become so once they are parsed.

On MQTT 3.1.1 a broker can't be told a limit.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from bridge.link.packets import Message
from tests.conftest import ConnectRequester, StartBridge
from tests.lab.bridge import Bridge
from tests.lab.memory import watched
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A
from tests.lab.raw import Raw
from tests.lab.requester import Requester

MIB = 2**20
READING = {"device_uuid": BOARD_A, "sensor": "temperature"}


@pytest.fixture
def old_protocol(
    private_bridge: StartBridge, private_mosquitto: Callable[..., Mosquitto]
) -> Bridge:
    return private_bridge(broker=private_mosquitto(), MQTT_PROTOCOL="3.1.1")


@pytest.fixture
async def good(old_protocol: Bridge, connect_requester: ConnectRequester) -> Requester:
    """A requester who has been served before."""
    assert old_protocol.broker is not None
    requester = await connect_requester(old_protocol.broker, version="3.1.1")
    for _ in range(20):
        assert (await requester.ask("sensor-data", READING)).code == 200
    return requester


@pytest.fixture
async def hostile(old_protocol: Bridge) -> AsyncIterator[Raw]:
    assert old_protocol.broker is not None
    raw = await Raw(old_protocol.broker).connect()
    yield raw
    await raw.close()


async def test_publish_of_150_mib_is_answered_413_and_costs_nobody_anything(
    old_protocol: Bridge, good: Requester, hostile: Raw
):
    await good.subscribe("plugin/reply/#")
    done = asyncio.Event()

    async def ask() -> float:
        longest = 0.0
        while not done.is_set():
            asked = time.monotonic()
            assert (await good.ask("sensor-data", READING)).code == 200
            longest = max(longest, time.monotonic() - asked)
        return longest

    async with watched(old_protocol) as memory:
        asking = asyncio.create_task(ask())
        for topic in ("health", "control/mallory"):
            payload = json.dumps({"reply_to": "plugin/reply/x"}).encode().ljust(150 * MIB)
            hostile.publish(b"plugin/request/" + topic.encode(), payload)
            operation, _, client = topic.partition("/")
            default = "/".join(filter(None, ("plugin/reply", client, operation)))
            answer = await good.next_message(timeout=30, topic=default)
            assert (answer.json["code"], answer.json["error"]) == (413, "payload_too_large")
        done.set()
        longest = await asking
    assert memory.growth < 16
    assert longest < 5
    assert "mqtt unavailable" not in old_protocol.output


async def test_many_publishes_above_and_at_the_limit_are_all_answered(
    old_protocol: Bridge, good: Requester, hostile: Raw
):
    await good.subscribe("plugin/reply/health/#")
    sizes = [MIB - 64, MIB - 1, MIB, MIB + 1, 3 * MIB, 70_000] * 10
    async with watched(old_protocol) as memory:
        for size in sizes:
            hostile.publish(b"plugin/request/health", b" " * size)
        for _ in sizes:
            answer = await good.next_message(timeout=30, topic="plugin/reply/health")
            assert answer.json["code"] == 413
    assert memory.growth < 80
    assert (await good.ask("sensor-data", READING)).code == 200
    assert "mqtt unavailable" not in old_protocol.output


async def test_nested_values_of_requests_that_wait_are_not_kept(
    private_bridge: StartBridge, private_mosquitto: Callable[..., Mosquitto]
):
    """Parsed before they waited, and kept until their replies had left, they took a gigabyte."""
    count = 3000
    bridge = private_bridge(broker=private_mosquitto("max_queued_messages 10000"))
    assert bridge.broker is not None
    fields = {"requests": [{"operation": "sensor-data", **READING}], "more": [{"": 0}] * 2000}
    payload = json.dumps(fields, separators=(",", ":")).encode()
    codes: Counter[int] = Counter()
    all_answered = asyncio.Event()

    def note(message: Message) -> None:
        codes[json.loads(message.payload)["code"]] += 1
        if codes.total() == count:
            all_answered.set()

    flood = await Raw(bridge.broker, note).connect()
    assert await flood.subscribe(b"plugin/reply/#") < 0x80
    async with watched(bridge) as memory:
        for _ in range(count):
            flood.publish(b"plugin/request/batch", payload)
        async with asyncio.timeout(60):
            await all_answered.wait()
    await flood.close()
    assert codes.keys() <= {200, 429}
    assert memory.growth < 150
