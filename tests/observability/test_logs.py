"""The log: a line for each request at DEBUG, one for each change of state, and no secret."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import aiohttp
import pytest

from bridge.observability.logs import LineWriter, TextLines
from bridge.observability.observations import CommandExecuted
from bridge.observability.request_log import command_executed
from tests.lab.bridge import PROJECT, Bridge
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
        "who": "mqtt:teacher",
        "device": BOARD_A,
        "operation": "control",
        "code": 200,
        "outcome": "ok",
    }
    assert json.loads(line["asked"]) == {"port_type": "led", "port_id": 1, "action": "on"}
    assert (line["id"], line["traceparent"]) == ("lamp-1", TRACE)
    assert "reading-1" not in bridge.output


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"port": "客厅灯" + "\x01" * 90, "action": "off"},
            {"port": "客厅灯", "action": "off"},
        ),
        ({"preset_key": "\u2060\x01" * 40 + "all_off"}, {"preset_key": "all_off"}),
        ({"preset_key": f"a{' ' * 90}ll_off"}, {"preset_key": "a ll_off"}),
    ],
)
def test_a_command_is_told_whatever_hides_in_its_names(caplog, fields, told):
    """Names are compared without white space and invisible characters."""
    with caplog.at_level("INFO", "bridge.commands"):
        command_executed(
            CommandExecuted("http:kim", BOARD_A, "control", fields, 200, "ok", None, None, False)
        )
    assert json.loads(caplog.records[0].asked) == told


def test_parameters_hide_nothing_of_a_command(caplog):
    fields = {"parameters": {"x": "y" * 1000}, "preset_key": "all_off"}
    with caplog.at_level("INFO", "bridge.commands"):
        command_executed(
            CommandExecuted("http:kim", BOARD_A, "preset", fields, 200, "ok", None, None, False)
        )
    assert '"preset_key":"all_off"' in caplog.records[0].asked


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


# ---- a value that reads like a field ------------------------------------------------------------

FORGED = "x code=200 outcome=ok"
_FIELD = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"|[^ ="]+)')


def fields_of(line: str) -> list[tuple[str, str]]:
    """What a reader of the text log takes for its fields: names, and values as they are written."""
    return _FIELD.findall(line)


async def test_value_that_a_caller_sent_is_not_read_as_another_field(private_bridge):
    bridge = await asyncio.to_thread(private_bridge)
    command = {"device_uuid": FORGED, "port_type": "led", "port_id": 1, "action": "on"}
    async with aiohttp.request("POST", f"{bridge.url}/api/control", json=command) as refusal:
        assert refusal.status == 404
    fields = fields_of(await written(bridge, "INFO    command"))
    assert [name for name, _ in fields] == [
        "who",
        "device",
        "operation",
        "asked",
        "code",
        "outcome",
    ]
    told = dict(fields)
    assert (told["device"], told["code"]) == (f'"{FORGED}"', "404")
    assert told["outcome"] == "device_not_found"
    assert json.loads(json.loads(told["asked"])) == {
        "port_type": "led",
        "port_id": 1,
        "action": "on",
    }


@pytest.mark.parametrize(
    ("value", "written_as"),
    [
        ("plain-1.0:x/y_z", "plain-1.0:x/y_z"),
        ("温度", "温度"),
        (200, "200"),
        (1.5, "1.5"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('a"b', r'"a\"b"'),
        ("a\nb", r"a\u000ab"),
        ("a \n", r'"a \\u000a"'),
        ("a " * 200, f'"{"a " * 100}…"'),
    ],
)
def test_value_is_quoted_where_it_would_be_more_than_one(value, written_as):
    line = TextLines().format(logging.makeLogRecord({"msg": "said", "it": value}))
    assert line.endswith(f" said it={written_as}")


# ---- a reader that stops ------------------------------------------------------------------------

PIPE_BYTES = 4096


class Unread(Bridge):
    """A bridge whose stderr is a pipe that holds a page, and that nobody reads unless told to."""

    def command(self) -> list[str]:
        return ["sh", "-c", 'exec "$0" "$@" 2>stderr', *super().command()]

    @contextlib.contextmanager
    def pipe(self) -> Iterator[int]:
        os.mkfifo(self.folder / "stderr")
        reading = os.open(self.folder / "stderr", os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(reading, True)
        try:
            yield reading
        finally:
            os.close(reading)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_reader_of_the_log_that_stops_stops_nothing_else(private_mosquitto, mariadb, workers):
    bridge = Unread(private_mosquitto(), mariadb, WORKERS=workers)
    command = {"device_uuid": "nowhere", "port_type": "led", "port_id": 1, "action": "on"}
    try:
        with bridge.pipe():
            await asyncio.to_thread(bridge.start)
            async with asyncio.timeout(20), aiohttp.ClientSession(bridge.url) as session:
                for _ in range(10 * PIPE_BYTES // 100):
                    async with session.post("/api/control", json=command) as refusal:
                        assert refusal.status == 404
            assert bridge.live
            assert await asyncio.to_thread(bridge.stop) == 0
    finally:
        await asyncio.to_thread(bridge.close)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that holds a page: where it is read, and where it is written."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def log(writer: LineWriter, text: str) -> None:
    writer.handle(logging.makeLogRecord({"msg": text}))


def read_until(descriptor: int, text: str) -> list[str]:
    """All lines up to one that holds the text."""
    read = ""
    while text not in read or not read.endswith("\n"):
        readable, _, _ = select.select((descriptor,), (), (), 10)
        assert readable, f"no line with {text!r}; the last: {read[-200:]}"
        read += os.read(descriptor, PIPE_BYTES).decode()
    return read.splitlines()


def test_lines_that_nobody_read_are_counted_and_told_when_somebody_reads_on(pipe):
    reading, writing = pipe
    writer = LineWriter(writing, limit=10)
    for number in range(1000):
        log(writer, f"{number:0100}")
    *kept, told = read_until(reading, "dropped")
    # A pipe's worth, those that waited, and what the thread was writing; all of them in order.
    assert [int(line) for line in kept] == list(range(len(kept)))
    assert 10 <= len(kept) <= 10 + 2 * PIPE_BYTES // 100
    assert f"{1000 - len(kept)} lines of the log were dropped" in told
    log(writer, "afterwards")
    assert read_until(reading, "afterwards") == ["afterwards"]
    writer.flush()


def test_busy_process_whose_lines_are_read_loses_none(pipe, tmp_path):
    """The thread that writes them gets its turn when many wait."""
    reading, writing = pipe
    writer = LineWriter(writing, limit=200)
    numbers = [str(number) for number in range(20_000)]
    command = ["head", "-n", str(len(numbers))]
    with (
        (tmp_path / "log").open("w") as read,
        subprocess.Popen(command, stdin=reading, stdout=read) as reader,
    ):
        for number in numbers:
            log(writer, number)
        try:
            reader.wait(timeout=60)
        finally:
            reader.kill()
    assert (tmp_path / "log").read_text().splitlines() == numbers


def test_line_that_can_not_be_made_is_told_and_stops_nothing(pipe):
    class Unspeakable:
        def __str__(self) -> str:
            raise RuntimeError

    reading, writing = pipe
    writer = LineWriter(writing)
    writer.handle(logging.makeLogRecord({"name": "odd", "msg": Unspeakable()}))
    log(writer, "next")
    told, line = read_until(reading, "next")
    assert told == "a line of odd can't be written: RuntimeError"
    assert line == "next"


MANY_LINES = """
import logging
from bridge.observability import (logs)
logs.set_up("INFO", "text")
for number in range(5000):
    logging.info("%d", number)
"""


def many_lines(**options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MANY_LINES],
        cwd=PROJECT,
        text=True,
        stderr=subprocess.PIPE,
        **options,
    )


def test_all_lines_are_out_in_order_when_the_process_has_ended():
    with many_lines() as process:
        _, told = process.communicate(timeout=20)
    assert process.returncode == 0
    assert [int(line.split()[-1]) for line in told.splitlines()] == list(range(5000))


def test_process_ends_though_nobody_reads_its_lines():
    with many_lines() as process:
        assert process.wait(timeout=10) == 0
