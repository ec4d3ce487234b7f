"""/metrics: the names and labels of the contract, true counts, and never more series."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterable
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.lab.bridge import Bridge
from tests.lab.platform import BOARD_A, BOARD_E, SEQUENCE
from tests.lab.requester import Requester

CONTRACT = {
    "bridge_requests_total": {"transport", "operation", "outcome"},
    "bridge_request_duration_seconds": {"transport", "operation"},
    "bridge_in_flight": set(),
    "bridge_dropped_total": {"reason"},
    "bridge_duplicates_total": set(),
    "bridge_connected": {"to"},
    "bridge_reconnects_total": {"to"},
    "bridge_batch_size": set(),
    "bridge_wrong_keys_total": set(),
    "bridge_pool_size": set(),
    "bridge_pool_in_use": set(),
    "bridge_build_info": {"version", "python"},
}
CALLERS = 10_000

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scraped(url: str) -> Series:
    """Each series and its value, without the times at which they were made."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        text = await response.text()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def value(series: Series, name: str, **labels: str) -> float:
    return series.get((name, frozenset(labels.items())), 0.0)


def requests(series: Series) -> dict[tuple[str, str, str], float]:
    """The counter of requests, by transport, operation and outcome."""
    return {
        (told["transport"], told["operation"], told["outcome"]): count
        for (name, labels), count in series.items()
        if name == "bridge_requests_total" and (told := dict(labels))
    }


def gained(before: Series, after: Series) -> dict[tuple[str, str, str], float]:
    earlier = requests(before)
    counts = {key: count - earlier.get(key, 0.0) for key, count in requests(after).items()}
    return {key: count for key, count in counts.items() if count}


async def all_of(calls: Iterable[Coroutine[Any, Any, Any]], at_a_time: int = 100) -> None:
    """Await them all, never so many at once that the bridge would refuse some."""
    waiting = iter(calls)
    while some := list(itertools.islice(waiting, at_a_time)):
        await asyncio.gather(*some)


@pytest.fixture
async def own(private_bridge) -> Bridge:
    """A bridge that nobody else asks."""
    return await asyncio.to_thread(private_bridge)


async def test_names_and_labels_are_those_of_the_contract(own, connect_requester):
    requester = await connect_requester(own.broker)
    await requester.ask("sensor-data", {"device_uuid": BOARD_A, "sensor": "温度"})
    await requester.publish("plugin/request/health", retain=True, expiry=60)
    await requester.ask("health")
    found: dict[str, set[str]] = {}
    for name, labels in await scraped(own.url):
        family = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        found.setdefault(family, set()).update(label for label, _ in labels if label != "le")
    process = {name for name in found if name.startswith("process_")}
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes"} <= process
    assert {name: labels for name, labels in found.items() if name not in process} == CONTRACT


async def test_number_of_series_is_constant_whatever_callers_send(own, connect_requester):
    requester = await connect_requester(own.broker)
    async with aiohttp.ClientSession(base_url=own.url) as http:

        async def over_http(number: int) -> None:
            uuid, path = f"device-{number}", f"/api/{number}/{number}"
            fields = {"device_uuid": uuid, "sensor": f"s{number}", "request_id": f"h{number}"}
            async with http.get("/api/sensor-data", params=fields) as response:
                assert response.status == 404
            async with http.get(path) as response:
                assert response.status == 404

        async def over_mqtt(number: int) -> None:
            port = {"port_type": f"p{number}", "port_id": 1, "action": f"a{number}"}
            fields = {"device_uuid": f"device-{number}", "request_id": f"c{number}", **port}
            unknown = await requester.ask(f"operation-{number}", {"request_id": f"m{number}"})
            invalid = await requester.ask("control", fields, client_level=f"client-{number}")
            assert (unknown.code, invalid.code) == (404, 400)

        await asyncio.gather(over_http(0), over_mqtt(0))
        before = await scraped(own.url)
        numbers = range(1, CALLERS // 4 + 1)
        await asyncio.gather(
            all_of(over_http(number) for number in numbers),
            all_of(over_mqtt(number) for number in numbers),
        )
        after = await scraped(own.url)
    assert after.keys() == before.keys()
    assert gained(before, after) == {
        ("http", "sensor-data", "device_not_found"): len(numbers),
        ("http", "unknown", "operation_not_found"): len(numbers),
        ("mqtt", "unknown", "operation_not_found"): len(numbers),
        ("mqtt", "control", "invalid_control"): len(numbers),
    }


async def both_connected(bridge: Bridge) -> Series:
    """What is exposed once the slower worker, too, is connected: nothing else announces that."""
    async with asyncio.timeout(10):
        while True:
            series = await scraped(bridge.url)
            if all(value(series, "bridge_connected", to=to) for to in ("mqtt", "database")):
                return series


async def test_sums_are_right_over_two_workers(private_bridge, connect_requester):
    bridge = await asyncio.to_thread(private_bridge, WORKERS="2")
    requester: Requester = await connect_requester(bridge.broker)
    before = await both_connected(bridge)

    async def over_http() -> None:
        # Each on a connection of its own, so that both workers get some.
        async with aiohttp.request("GET", f"{bridge.url}/api/devices/{BOARD_A}") as response:
            assert response.status == 200

    await all_of(over_http() for _ in range(40))
    await all_of(requester.ask("device", {"device_uuid": BOARD_E}) for _ in range(60))
    for _ in range(8):
        after = await scraped(bridge.url)
        assert gained(before, after) == {("http", "device", "ok"): 40, ("mqtt", "device", "ok"): 60}
        duration = value(
            after, "bridge_request_duration_seconds_count", transport="mqtt", operation="device"
        )
        assert duration == 60
        assert value(after, "bridge_in_flight") == 0


async def test_duplicate_is_counted(own, connect_requester, board):
    requester = await connect_requester(own.broker)
    listening = await board(BOARD_A, broker=own.broker)
    command = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
    for _ in range(3):
        assert (await requester.ask("control", {**command, "request_id": "one"})).code == 200
    assert value(await scraped(own.url), "bridge_duplicates_total") == 2
    await listening.next_command()
    assert len(listening.commands) == 1


async def test_dropped_request_is_counted_by_the_rule_that_dropped_it(own, connect_requester):
    requester = await connect_requester(own.broker)
    await requester.publish("plugin/request/health", b"{}", retain=True, expiry=60)
    # Answered after the one before was dropped.
    await requester.ask("health")
    series = await scraped(own.url)
    assert value(series, "bridge_dropped_total", reason="retained") == 1
    assert requests(series) == {("mqtt", "health", "ok"): 1}


async def test_lost_connection_is_seen_and_its_return_counted(own):
    assert value(await scraped(own.url), "bridge_connected", to="mqtt") == 1
    await asyncio.to_thread(own.broker.stop)
    await asyncio.to_thread(own.wait_for_line, "mqtt unavailable")
    assert value(await scraped(own.url), "bridge_connected", to="mqtt") == 0
    await asyncio.to_thread(own.broker.start)
    await asyncio.to_thread(own.wait_until_it_is, "ready")
    after = await scraped(own.url)
    assert value(after, "bridge_connected", to="mqtt") == 1
    assert value(after, "bridge_reconnects_total", to="mqtt") == 1
    assert value(after, "bridge_reconnects_total", to="database") == 0


async def test_request_in_flight_is_counted(own, connect_requester, board):
    requester = await connect_requester(own.broker)
    listening = await board(BOARD_A, broker=own.broker)
    sequence = {"device_uuid": BOARD_A, "preset_key": SEQUENCE}
    running = asyncio.create_task(requester.ask("preset", sequence))
    await listening.next_command()
    assert value(await scraped(own.url), "bridge_in_flight") == 1
    assert (await running).data["success"] is True
    assert value(await scraped(own.url), "bridge_in_flight") == 0
