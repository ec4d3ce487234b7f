"""Topics and properties as long as MQTT allows: they do not fill the bridge's memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from bridge.link import packets
from tests.conftest import ConnectRequester, StartBridge
from tests.lab.bridge import Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.memory import watched
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_C
from tests.lab.raw import Raw

MESSAGES = 1500
LONG = 60_000
COMMAND = json.dumps(
    {"device_uuid": BOARD_C, "port_type": "led", "port_id": 1, "action": "on"}
).encode()
CONTROL = b"plugin/request/control"


@pytest.fixture(scope="module")
def private(mariadb: MariaDb) -> Iterator[Bridge]:
    """A bridge on a broker of its own, that takes all that comes."""
    with Mosquitto("max_queued_messages 0") as broker, Bridge(broker, mariadb) as process:
        yield process


@pytest.fixture(scope="module")
def fresh(private: Bridge) -> int:
    """Its memory before all cases, in bytes."""
    return private.rss_bytes


@pytest.fixture
async def hostile(private: Bridge) -> AsyncIterator[Raw]:
    assert private.broker is not None
    raw = await Raw(private.broker).connect()
    yield raw
    await raw.close()


def numbered(number: int, length: int = LONG) -> bytes:
    return str(number).encode().rjust(8, b"x").ljust(length, b"y")


TOPICS = {
    "operation": lambda number: b"plugin/request/" + numbered(number),
    "client": lambda number: CONTROL + b"/" + numbered(number),
    "client in 4-byte characters": lambda number: (
        CONTROL + b"/" + numbered(number, 8) + "😀".encode() * (LONG // 4)
    ),
}
PROPERTIES = {
    "correlation data": lambda number: packets.properties(correlation=numbered(number)),
    "response topic": lambda number: packets.properties(
        response_topic=b"plugin/reply/" + numbered(number)
    ),
    "user property": lambda number: packets.properties(
        user=[("traceparent", numbered(number).decode())]
    ),
    "content type": lambda number: packets.properties(content_type=numbered(number)),
}
CASES = {
    **{name: (make, lambda _number: b"") for name, make in TOPICS.items()},
    **{name: (lambda _number: CONTROL, make) for name, make in PROPERTIES.items()},
}


async def test_replies_that_wait_for_the_broker_are_bounded(
    private_bridge: StartBridge, private_mosquitto, connect_requester: ConnectRequester
):
    """It takes one at a time, and sends its PUBACKs behind what it floods us with."""
    bridge = private_bridge(
        broker=private_mosquitto("max_inflight_messages 1", "max_queued_messages 0")
    )
    assert bridge.broker is not None
    flood = await Raw(bridge.broker).connect()
    requester = await connect_requester(bridge.broker)
    async with watched(bridge) as memory:
        for number in range(30_000):
            flood.publish(CONTROL, b"{}", packets.properties(correlation=numbered(number, 6000)))
            if number % 100 == 0:
                await asyncio.sleep(0)
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(TimeoutError):
                    if (await requester.ask("health", timeout=2)).code == 200:
                        break
    await flood.close()
    assert memory.growth < 200
    assert await dropped(bridge, "congested") > 0


@pytest.mark.parametrize(("topic", "properties"), CASES.values(), ids=CASES)
async def test_long_text_does_not_fill_the_memory(
    private: Bridge, fresh: int, hostile: Raw, connect_requester, topic, properties
):
    requester = await connect_requester(private.broker)
    already = await dropped(private)
    async with watched(private) as memory:
        for start in range(0, MESSAGES, 50):
            sent = [
                hostile.publish(topic(number), COMMAND, properties(number))
                for number in range(start, start + 50)
            ]
            await asyncio.gather(*sent)
        # It comes after all of them.
        assert (await requester.ask("health", timeout=60)).code == 200
    # Over all cases together: what one of them took and gave back hides nothing of the next.
    assert (memory.most - fresh) / 2**20 < 150
    is_short = len(topic(0)) < LONG
    assert await dropped(private) == already + (0 if is_short else MESSAGES)


async def dropped(bridge: Bridge, reason: str = "unanswerable") -> float:
    counter = f'bridge_dropped_total{{reason="{reason}"}} '
    async with aiohttp.ClientSession(bridge.url) as http, http.get("/metrics") as metrics:
        return float(
            ((await metrics.text() + "\n" + counter + "0").partition(counter)[2]).split()[0]
        )
