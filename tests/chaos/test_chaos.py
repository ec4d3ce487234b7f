"""The promises under fault, drain, overload and attack, in short; at length: `tests/chaos/run`.

Each run judges itself; what it says was broken is what fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bridge.app.bridge import Bridge as BridgeInProcess
from bridge.settings import Settings
from tests.chaos.chaos import chaos
from tests.chaos.crowd import idle_connections, question_marks
from tests.chaos.drain import drain
from tests.chaos.flood import AS_IT_COMES, SAMPLE, flood, flood_behind_a_stalled_request
from tests.chaos.hostile import hostile
from tests.chaos.load import HttpLoad, http_request
from tests.chaos.overload import closed_loop, open_loop, stopped_database
from tests.chaos.soak import soak
from tests.lab.platform import BOARD_A
from tests.lab.servers import LOOPBACK, free_port

HERE = free_port()


@pytest.mark.parametrize("bridges", [1, 2])
async def test_faults_make_nothing_happen_twice_or_late_or_unanswered(bridges):
    findings = await chaos(rounds=3, bridges=bridges, rate=20, longest=1.5)
    assert findings.broken == [], findings.figures
    assert findings.figures["commands that left"] > 0


async def test_sigterm_under_load_leaves_no_accepted_request_unanswered():
    findings = await drain(rounds=1, rate=60)
    assert findings.broken == [], findings.figures


@pytest.mark.parametrize("loop", [closed_loop, open_loop])
async def test_http_overload_is_answered_200_or_429_and_leaves_the_bridge_well(loop):
    findings = await loop(seconds=1, strict=False)
    assert findings.broken == [], findings.figures


async def test_http_overload_while_the_database_stands_still_is_answered():
    findings = await stopped_database(seconds=1, strict=False)
    assert findings.broken == [], findings.figures


async def test_mqtt_flood_is_answered_200_or_429_and_leaves_the_bridge_well():
    findings = await flood(operation="control", seconds=1)
    assert findings.broken == [], findings.figures


@pytest.mark.parametrize(
    "broker_lines", [AS_IT_COMES, SAMPLE], ids=["as it comes", "sample configuration"]
)
async def test_flood_behind_a_stalled_request_is_answered_whole(broker_lines):
    findings = await flood_behind_a_stalled_request(
        seconds=0, broker_lines=broker_lines, count=1500
    )
    assert findings.broken == [], findings.figures


async def test_longest_request_line_holds_up_nobody_while_the_bridge_is_full():
    findings = await question_marks(times=2, strict=False)
    assert findings.broken == [], findings.figures


async def test_livez_is_answered_beside_thousands_of_connections_that_send_nothing_more():
    findings = await idle_connections(tries=5)
    assert findings.broken == [], findings.figures


async def test_hostile_messages_cost_neither_the_connection_nor_a_500():
    findings = await hostile(messages=2500, of_each=60)
    assert findings.broken == [], findings.figures


async def test_soak_leaves_memory_and_open_files_where_they_were():
    # So short a run still fills caches: only a leak of many kilobytes a request shows.
    findings = await soak(requests=5000, most_growth=0.5)
    assert findings.broken == [], findings.figures


@pytest.fixture
async def bridge_here(mosquitto, mariadb) -> AsyncIterator[BridgeInProcess]:
    """A bridge in this process, under a prefix of its own; its HTTP port is ``HERE``."""
    bridge = BridgeInProcess(
        Settings(
            _env_file=None,
            db_host=mariadb.host,
            db_port=mariadb.port,
            db_name=mariadb.database,
            db_user=mariadb.user,
            db_password=mariadb.password,
            mqtt_broker=mosquitto.host,
            mqtt_port=mosquitto.port,
            mqtt_topic_prefix="here",
            mqtt_instance="here",
            service_host=LOOPBACK,
            service_port=HERE,
        )
    )
    await bridge.start()
    try:
        async with asyncio.timeout(10):
            while not bridge.is_ready():
                await asyncio.sleep(0.01)
        yield bridge
    finally:
        await bridge.stop()


async def test_tasks_are_as_many_after_a_load_as_before(bridge_here):
    """In this process, since tasks can't be counted from outside."""
    before = len(asyncio.all_tasks())
    control = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
    async with HttpLoad(f"http://{LOOPBACK}:{HERE}", most=32) as http:

        async def ask(number: int) -> None:
            fields = {**control, "request_id": f"task-{number}"}
            await http.ask(http_request("POST", "/api/control", fields))

        await asyncio.gather(*map(ask, range(1000)))
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > before:
            await asyncio.sleep(0.01)
