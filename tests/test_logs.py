"""The log: a line for each request at DEBUG, one for each change of state, and no secret."""

from __future__ import annotations

import asyncio
import json
import re
from functools import partial
from typing import Any

import aiohttp
import pytest

from tests.lab.bridge import Bridge
from tests.lab.platform import BOARD_A, BOARD_E, SECRET_PREFIX
from tests.lab.servers import wait_until

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
READING = {"device_uuid": BOARD_A, "sensor": "温度", "request_id": "reading-1"}
_TEXT_LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (DEBUG  |INFO   |WARNING|ERROR  ) \S.*", re.ASCII
)


def events(bridge: Bridge, message: str) -> list[dict[str, Any]]:
    """The whole lines of a JSON log with that message."""
    whole = bridge.output.rpartition("\n")[0].splitlines()
    return [event for event in map(json.loads, whole) if event["message"] == message]


def requests(bridge: Bridge, request_id: str) -> list[dict[str, Any]]:
    return [event for event in events(bridge, "request") if event.get("id") == request_id]


async def written(bridge: Bridge, text: str) -> str:
    return await asyncio.to_thread(bridge.wait_for_line, text)


@pytest.fixture
async def verbose(private_bridge) -> Bridge:
    """A bridge of a test's own, with all that it has to say, as JSON."""
    return await asyncio.to_thread(private_bridge, LOG_LEVEL="DEBUG", LOG_FORMAT="json")


async def test_each_request_is_one_line_that_tells_what_became_of_it(verbose, connect_requester):
    requester = await connect_requester(verbose.broker)
    await requester.ask("sensor-data", READING)
    missing = {**READING, "device_uuid": "nowhere", "request_id": "missing-1"}
    async with aiohttp.request("GET", f"{verbose.url}/api/sensor-data", params=missing) as response:
        assert response.status == 404
    await written(verbose, "missing-1")
    (found,) = requests(verbose, "reading-1")
    (refused,) = requests(verbose, "missing-1")
    assert (found["level"], found["operation"], found["transport"]) == (
        "DEBUG",
        "sensor-data",
        "mqtt",
    )
    assert (found["code"], found.get("error")) == (200, None)
    assert found["ms"] > 0
    assert (refused["transport"], refused["code"], refused["error"]) == (
        "http",
        404,
        "device_not_found",
    )


async def test_trace_is_in_the_log_and_in_the_reply_over_both_transports(
    verbose, connect_requester
):
    requester = await connect_requester(verbose.broker)
    reply = await requester.ask("sensor-data", READING, user_properties={"traceparent": TRACE})
    assert reply.user_properties["traceparent"] == TRACE
    params = {**READING, "request_id": "reading-2"}
    async with aiohttp.request(
        "GET", f"{verbose.url}/api/sensor-data", params=params, headers={"traceparent": TRACE}
    ) as response:
        assert response.headers["traceparent"] == TRACE
    await written(verbose, "reading-2")
    for request_id in ("reading-1", "reading-2"):
        (line,) = requests(verbose, request_id)
        assert line["traceparent"] == TRACE


@pytest.mark.parametrize("forged", ["no trace", "00-zz-01", TRACE + " INFO forged", TRACE * 9])
async def test_what_is_no_trace_is_neither_logged_nor_sent_back(verbose, connect_requester, forged):
    requester = await connect_requester(verbose.broker)
    reply = await requester.ask("sensor-data", READING, user_properties={"traceparent": forged})
    assert "traceparent" not in reply.user_properties
    await written(verbose, "reading-1")
    assert [line.get("traceparent") for line in requests(verbose, "reading-1")] == [None]


async def test_http_header_that_is_no_trace_is_not_logged(verbose):
    async with aiohttp.request(
        "GET",
        f"{verbose.url}/api/sensor-data",
        params=READING,
        headers={"traceparent": "x" * 4000},
    ) as response:
        assert "traceparent" not in response.headers
    await written(verbose, "reading-1")
    assert [line.get("traceparent") for line in requests(verbose, "reading-1")] == [None]


async def test_request_is_no_line_at_info_but_a_command_is_one(
    private_bridge, connect_requester, board
):
    bridge = await asyncio.to_thread(private_bridge, LOG_FORMAT="json")
    requester = await connect_requester(bridge.broker)
    await board(BOARD_A, broker=bridge.broker)
    await requester.ask("sensor-data", READING)
    command = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
    await requester.ask(
        "control",
        {**command, "request_id": "lamp-1"},
        client_level="teacher",
        user_properties={"traceparent": TRACE},
    )
    await written(bridge, '"command"')
    (line,) = events(bridge, "command")
    told = {name: line[name] for name in ("level", "who", "device", "operation", "code", "outcome")}
    assert told == {
        "level": "INFO",
        "who": "teacher",
        "device": BOARD_A,
        "operation": "control",
        "code": 200,
        "outcome": "ok",
    }
    assert json.loads(line["asked"]) == {"port_type": "led", "port_id": 1, "action": "on"}
    assert (line["id"], line["traceparent"]) == ("lamp-1", TRACE)
    assert "reading-1" not in bridge.output


async def test_changes_of_state_are_one_line_each(private_bridge):
    bridge = await asyncio.to_thread(private_bridge, LOG_FORMAT="json")
    await written(bridge, '"ready"')
    await asyncio.to_thread(bridge.broker.stop)
    await written(bridge, '"not ready"')
    await asyncio.to_thread(bridge.broker.start)
    again = partial(wait_until, lambda: bridge.output.count('"ready"') == 2, 10, "ready again")
    await asyncio.to_thread(again)
    assert await asyncio.to_thread(bridge.stop) == 0
    lines = map(json.loads, bridge.output.splitlines())
    said = [(line["level"], line["message"].partition(":")[0]) for line in lines]
    once = [("INFO", "serving"), ("INFO", "database available"), ("INFO", "draining")]
    assert [said.count(line) for line in (*once, ("INFO", "stopped"))] == [1] * 4
    assert said.count(("INFO", "mqtt connected")) == said.count(("INFO", "ready")) == 2
    # However often it tried meanwhile: once for the loss, once for that nobody listens there.
    assert 1 <= said.count(("WARNING", "mqtt unavailable")) <= 2


async def test_text_log_is_one_line_an_event_whatever_callers_send(
    private_bridge, connect_requester
):
    bridge = await asyncio.to_thread(private_bridge, LOG_LEVEL="DEBUG")
    requester = await connect_requester(bridge.broker)
    hostile = "x\n2025-01-01 00:00:00 INFO    forged\x1b[31m\u2028"
    await requester.ask("sensor-data", {"device_uuid": hostile[:36], "sensor": hostile})
    await requester.ask(f"{hostile}-operation"[2:].replace("\n", "").replace("\x1b", ""))
    command = {"device_uuid": hostile[:36], "port_type": hostile, "port_id": 1, "action": "on"}
    await requester.ask("control", {**command, "port_type": "led"})
    await requester.ask("health", {"request_id": "last-1"})
    await written(bridge, "last-1")
    lines = bridge.output.split("\n")[:-1]
    assert not [line for line in lines if not _TEXT_LINE.fullmatch(line)]
    assert not re.search(r"^2025-01-01", bridge.output, re.MULTILINE)
    assert not set(bridge.output) & set("\x1b\u2028")


SECRETS = {
    "DB_PASSWORD": "wr0ng-database",
    "MQTT_PASSWORD": "wr0ng-broker",
    "API_KEYS": "reader:s3cret-key",
}


@pytest.mark.parametrize("style", ["text", "json"])
async def test_no_secret_is_logged_even_where_it_is_wrong(private_bridge, style):
    """Nor does the database's own word for a refused login reach the log with it."""
    bridge = await asyncio.to_thread(
        private_bridge,
        wait="live",
        LOG_LEVEL="DEBUG",
        LOG_FORMAT=style,
        MQTT_USERNAME="bridge",
        **SECRETS,
    )
    for shown in ("s3cret-key", "gu3ssed-key"):
        headers = {"X-API-Key": shown, "Authorization": f"Bearer {shown}"}
        async with aiohttp.request(
            "GET", f"{bridge.url}/api/devices/{BOARD_E}", headers=headers
        ) as response:
            assert response.status in (401, 503)
    await written(bridge, "database unavailable")
    assert await asyncio.to_thread(bridge.stop) == 0
    secrets = ("wr0ng-database", "wr0ng-broker", "s3cret-key", "gu3ssed-key")
    assert not [secret for secret in secrets if secret in bridge.output]


async def test_no_secret_of_a_device_is_logged(verbose, connect_requester):
    requester = await connect_requester(verbose.broker)
    for operation in ("device", "sensor-data"):
        await requester.ask(operation, READING)
    async with aiohttp.request("GET", f"{verbose.url}/api/devices/{BOARD_A}/config") as response:
        assert SECRET_PREFIX not in await response.text()
    assert SECRET_PREFIX not in verbose.output
