"""Promises where they are hardest to keep: replies that fit nowhere, clocks that ran on while we
slept, connections cut at the wrong moment, and stops that meet work outside our own hands.

The real process, on servers of each test's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import pymysql
import pytest

from bridge.link import packets as wire
from tests.chaos.tap import Tap
from tests.http.test_server import post
from tests.lab.bridge import Bridge
from tests.lab.mariadb import WRITER, WRITER_PASSWORD, MariaDb
from tests.lab.mqtt import Broker
from tests.lab.platform import BOARD_A, BOARD_B, SLOW_SEQUENCE
from tests.lab.raw import Raw

READING = {"device_uuid": BOARD_B, "sensor": "temperature"}
LED_ON = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}


def counted(bridge: Bridge, series: str) -> float:
    """What `/metrics` says of one series, labels and all; 0 where it is not there yet."""
    with urllib.request.urlopen(f"{bridge.url}/metrics", timeout=5) as response:
        text = response.read().decode()
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def becomes(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def answers_on(
    broker: Broker, topic: bytes
) -> AsyncIterator[tuple[Raw, asyncio.Queue[wire.Message]]]:
    """A connection that publishes anything, and what comes on a reply topic."""
    answers: asyncio.Queue[wire.Message] = asyncio.Queue()
    raw = await Raw(broker, answers.put_nowait).connect()
    await raw.subscribe(topic)
    yield raw, answers
    await raw.close()


def pwm(number: int) -> dict[str, Any]:
    """A command that is told from all others by its frequency."""
    return {
        "device_uuid": BOARD_A,
        "port_type": "pwm",
        "port_id": 1,
        "action": "set",
        "value": 50,
        "frequency": number,
    }


# Replies that fit nowhere


@pytest.fixture
def narrow_bridge(private_mosquitto, private_bridge) -> Bridge:
    """A bridge on a broker that takes packets of 4000 bytes."""
    return private_bridge(broker=private_mosquitto("max_packet_size 4000"))


async def test_correlation_data_beside_which_no_reply_fits_comes_back_with_the_code_alone(
    narrow_bridge, connect_requester
):
    async with answers_on(narrow_bridge.broker, b"plugin/reply/r") as (raw, answers):
        properties = wire.properties(response_topic=b"plugin/reply/r", correlation=b"c" * 3800)
        await raw.publish(b"plugin/request/health", b"", properties)
        reply = await asyncio.wait_for(answers.get(), 10)
    assert (reply.payload, reply.correlation) == (b"", b"c" * 3800)
    assert reply.user_properties == [("__stat", "413")]
    requester = await connect_requester(narrow_bridge.broker)
    assert (await requester.ask("sensor-data", READING, timeout=5)).code == 200


async def test_reply_that_fits_nowhere_is_given_up_and_nobody_else_waits_for_it(
    narrow_bridge, connect_requester
):
    async with answers_on(narrow_bridge.broker, b"plugin/reply/#") as (raw, _):
        # Answered on the default topic, which is hardly shorter than the request's.
        huge = wire.properties(correlation=b"c" * 3955)
        assert await raw.publish(b"plugin/request/health", b"", huge) == 0
    undeliverable = 'bridge_dropped_total{reason="undeliverable"}'
    await becomes(lambda: counted(narrow_bridge, undeliverable) == 1)
    requester = await connect_requester(narrow_bridge.broker)
    assert (await requester.ask("sensor-data", READING, timeout=5)).code == 200


async def test_request_with_more_user_properties_than_anyone_means_is_refused(mosquitto, bridge):
    async with answers_on(mosquitto, b"plugin/reply/many") as (raw, answers):
        topic = wire.properties(response_topic=b"plugin/reply/many")
        many = wire.properties(user=[("", "")] * 100_000)
        await raw.publish(b"plugin/request/control", json.dumps(LED_ON).encode(), topic + many)
        reply = json.loads((await asyncio.wait_for(answers.get(), 10)).payload)
    assert (reply["code"], reply["error"]) == (413, "payload_too_large")


# Time that passes while we sleep


async def test_command_that_expired_while_we_were_frozen_is_not_executed(
    private_bridge, connect_requester, board
):
    bridge = private_bridge()
    requester = await connect_requester(bridge.broker)
    device = await board(BOARD_A, bridge.broker)
    assert (await requester.ask("control", pwm(1))).code == 200
    bridge.pause()
    # The broker hands it over at once, and counts no longer.
    await requester.publish("plugin/request/control", json.dumps(pwm(2)).encode(), qos=1, expiry=1)
    await asyncio.sleep(2.5)
    bridge.resume()
    assert (await requester.ask("control", pwm(3))).code == 200
    assert [command["frequency"] for command in await device.next_commands(2)] == [1, 3]
    assert counted(bridge, 'bridge_dropped_total{reason="expired"}') == 1


async def test_command_over_http_that_came_while_we_were_frozen_is_not_executed_late(
    private_bridge, connect_requester, board
):
    """Neither on a connection that was open, nor on a new one, nor of a caller who has gone."""
    bridge = private_bridge(REQUEST_TIMEOUT="1")
    device = await board(BOARD_A, bridge.broker)
    json_type = "Content-Type: application/json"

    def control(number: int) -> bytes:
        return post("/api/control", json.dumps(pwm(number)).encode(), json_type)

    call = {"name": "control_port", "arguments": pwm(5)}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    accept = "Accept: application/json, text/event-stream"
    tool = post("/mcp/", json.dumps(message).encode(), json_type, accept)

    async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(bridge.host, bridge.port)

    async def answered(reader: asyncio.StreamReader) -> bytes:
        async with asyncio.timeout(10):
            return (await reader.readuntil(b"\r\n\r\n"))[:12]

    kept = await opened()
    kept[1].write(control(1))
    assert await answered(kept[0]) == b"HTTP/1.1 200"
    await kept[0].readuntil(b"}}")
    await device.next_commands(1)
    bridge.pause()
    new, gone, model = await opened(), await opened(), await opened()
    for (_, writer), request in zip(
        (kept, new, gone, model), [*map(control, (2, 3, 4)), tool], strict=True
    ):
        writer.write(request)
    gone[1].close()
    await asyncio.sleep(2)
    bridge.resume()
    assert await answered(kept[0]) == await answered(new[0]) == b"HTTP/1.1 504"
    await answered(model[0])
    assert b'"isError":true' in await model[0].readuntil(b"}}")
    # What comes in the second after may have come before.
    async with asyncio.timeout(10), aiohttp.ClientSession(bridge.url) as http:
        while (await http.post("/api/control", json=pwm(6))).status != 200:
            await asyncio.sleep(0.1)
    assert [command["frequency"] for command in await device.next_commands(1)] == [6]
    for _, writer in (kept, new, model):
        writer.close()


# Connections that are cut


@pytest.fixture
async def tapped(private_mosquitto, private_bridge) -> AsyncIterator[tuple[Tap, Any, Any]]:
    """Starts a bridge that reaches its broker by a line that can be cut."""
    broker = private_mosquitto()
    async with Tap(broker) as tap:

        async def start(**settings: Any) -> Bridge:
            return await asyncio.to_thread(lambda: private_bridge(broker=tap, **settings))

        yield tap, broker, start


async def test_commands_that_waited_for_the_connection_are_executed_when_it_is_back(
    tapped, connect_requester, board
):
    tap, broker, start = tapped
    await start()
    requester, device = await connect_requester(broker), await board(BOARD_A, broker)
    tap.cut()
    replies = await asyncio.gather(*(requester.ask("control", pwm(n)) for n in range(1, 21)))
    assert [reply.code for reply in replies] == [200] * 20
    await device.next_commands(20)
    assert sorted(command.json["frequency"] for command in device.commands) == list(range(1, 21))


async def test_stop_amidst_a_reconnect_still_answers_and_says_goodbye(
    tapped, connect_requester, private_mariadb
):
    tap, broker, start = tapped
    database = private_mariadb()
    bridge = await start(database=database, DB_TIMEOUT="8", REQUEST_TIMEOUT="9")
    requester, watcher = await connect_requester(broker), await connect_requester(broker)
    await watcher.subscribe(f"plugin/status/{bridge.instance}")
    database.pause()
    asking = asyncio.create_task(requester.ask("sensor-data", READING, timeout=20))
    await becomes(lambda: counted(bridge, "bridge_in_flight") == 1)
    broker.pause()
    tap.cut()
    stopping = asyncio.create_task(asyncio.to_thread(bridge.stop))
    # It connects, and waits for an answer.
    await asyncio.sleep(1.0)
    broker.resume()
    database.resume()
    assert (await asking).code == 200
    assert await stopping == 0
    await becomes(
        lambda: bool(watcher.messages) and watcher.messages[-1].json["status"] == "offline"
    )


# A command that the broker refuses

DENIED = f"topic readwrite plugin/#\ntopic read devices/{BOARD_A}/control\n"
ALLOWED = f"topic readwrite plugin/#\ntopic readwrite devices/{BOARD_A}/control\n"


async def test_command_that_the_broker_refused_is_tried_again_under_its_id(
    private_mosquitto, private_bridge, connect_requester, board
):
    """It is told as unavailable, which says: ask again. Nothing has reached anyone."""
    broker = private_mosquitto(acl=DENIED)
    private_bridge(broker=broker)
    requester, device = await connect_requester(broker), await board(BOARD_A, broker)
    command = {**pwm(1), "request_id": "refused"}
    assert (await requester.ask("control", command)).error == "mqtt_unavailable"
    await asyncio.to_thread(broker.set_acl, ALLOWED)
    assert [(await requester.ask("control", command)).code for _ in range(2)] == [200, 200]
    await device.next_command()
    assert len(device.commands) == 1


# More than can be taken


async def test_full_bridge_rejects_commands_reads_and_duplicates_but_not_health(
    private_bridge, connect_requester, board
):
    bridge = private_bridge(MAX_IN_FLIGHT="1")
    requester = await connect_requester(bridge.broker)
    device = await board(BOARD_A, bridge.broker)
    known = {**pwm(1), "request_id": "known"}
    first = await requester.ask("control", known)
    assert first.code == 200
    walking = asyncio.create_task(
        requester.ask("preset", {"device_uuid": BOARD_A, "preset_key": SLOW_SEQUENCE})
    )
    await becomes(lambda: counted(bridge, "bridge_in_flight") == 1)
    for fields in (known, {**pwm(2), "request_id": "new"}, READING):
        operation = "control" if "port_type" in fields else "sensor-data"
        reply = await requester.ask(operation, fields)
        assert reply.code == 429, reply.body
        assert reply.body.get("request_id") == fields.get("request_id")
    assert (await requester.ask("health")).code == 200
    walking.cancel()
    assert 2 not in [command.json.get("frequency") for command in device.commands]


# Stops that meet work outside our own hands


@contextlib.contextmanager
def locked(database: MariaDb, table: str) -> Iterator[None]:
    """Hold a table, so that all who write to it wait."""
    connection = pymysql.connect(
        host=database.host,
        port=database.port,
        user=WRITER,
        password=WRITER_PASSWORD,
        database=database.database,
    )
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLES {table} WRITE")
        yield


def waits_for_a_lock(database: MariaDb) -> bool:
    return any("lock" in (row["State"] or "") for row in database.query("SHOW PROCESSLIST"))


async def test_stop_waits_for_a_command_that_is_being_written_down(
    private_bridge, private_mosquitto, private_mariadb, board
):
    database, broker = private_mariadb(), private_mosquitto()
    account = {"DB_USER": WRITER, "DB_PASSWORD": WRITER_PASSWORD, "DEDUP_STORE": "mysql"}
    making = private_bridge("init-db", broker=broker, database=database, wait=None, **account)
    assert await asyncio.to_thread(making.wait) == 0
    bridge = private_bridge(broker=broker, database=database, **account)
    device = await board(BOARD_A, broker)
    async with aiohttp.ClientSession() as http:
        with locked(database, "bridge_once"):
            answering = asyncio.create_task(
                http.post(
                    f"{bridge.url}/api/control", json=LED_ON, headers={"Idempotency-Key": "k"}
                )
            )
            await becomes(lambda: waits_for_a_lock(database))
            stopping = asyncio.create_task(asyncio.to_thread(bridge.stop))
            await becomes(lambda: "draining" in bridge.output)
        async with await answering as response:
            assert (await response.json())["code"] == 200
    assert await stopping == 0
    await device.next_command()
    assert len(device.commands) == 1
