"""The real process, while its database and its broker are frozen, killed, absent and back.

Each test has servers of its own to break. What a requester owes the bridge is to ask again, with
the same id, when no answer came.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack
from signal import SIGTERM
from typing import Any

import aiohttp
import pytest

from bridge.link import packets as wire
from tests.lab.board import Board
from tests.lab.bridge import Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A, SLOW_SEQUENCE, seed_classroom
from tests.lab.requester import Reply, Requester
from tests.lab.scripted import ACCEPTED, PUBACK, PUBLISH, SUBSCRIBE, Scripted
from tests.lab.timing import at_most

READING = {"device_uuid": BOARD_A, "sensor": "temperature"}
LED_ON = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
DB_TIMEOUT = 1.0
# How soon all is well again after what was wrong has ended.
RECOVERY = 5.0


class Site:
    """A broker, a database and a bridge of one test's own, and clients of both transports."""

    def __init__(self, broker: Mosquitto, database: MariaDb, bridge: Bridge) -> None:
        self.broker, self.database, self.bridge = broker, database, bridge
        self.http: aiohttp.ClientSession
        self.requester: Requester
        self.board: Board

    async def read(self) -> tuple[int, Any]:
        """A reading over HTTP: status and body."""
        return await self._answer(self.http.get("/api/sensor-data", params=READING))

    async def control(self, **more: Any) -> tuple[int, Any]:
        """A control over HTTP: status and body."""
        return await self._answer(self.http.post("/api/control", json={**LED_ON, **more}))

    async def get(self, path: str) -> tuple[int, Any]:
        return await self._answer(self.http.get(path))

    async def _answer(self, request: Any) -> tuple[int, Any]:
        async with asyncio.timeout(15), request as response:
            return response.status, await response.json()

    async def ask(self, operation: str, fields: Mapping[str, Any], request_id: str) -> Reply:
        """Ask over MQTT, again with the same id while no answer comes."""
        async with asyncio.timeout(25):
            while True:
                try:
                    return await self.requester.ask(
                        operation, {**fields, "request_id": request_id}, timeout=3
                    )
                except (TimeoutError, ConnectionError):
                    await self.requester.online()

    async def well(self, within: float = RECOVERY) -> None:
        """Wait until both transports read and control; fail if that takes too long."""
        started = time.monotonic()
        await self.requester.online()
        await self.board.online()
        await until(self._is_well, within)
        assert time.monotonic() - started < within

    async def in_flight(self, count: int) -> None:
        """Wait until the bridge says that it has so many requests in flight."""

        async def are() -> bool:
            return bool((await self.get("/health"))[1]["in_flight"] == count)

        await until(are, 5)

    async def _is_well(self) -> bool:
        if (await self.get("/readyz"))[0] != 200:
            return False
        code = (await self.requester.ask("sensor-data", READING, timeout=3)).code
        return (code, (await self.read())[0], (await self.control())[0]) == (200, 200, 200)


async def until(condition: Callable[[], Awaitable[bool]], timeout: float) -> None:
    async with asyncio.timeout(timeout):
        while not await condition():
            await asyncio.sleep(0.02)


async def in_thread(work: Callable[[], Any]) -> None:
    await asyncio.to_thread(work)


@pytest.fixture
async def open_site(
    private_mosquitto, private_mariadb, private_bridge
) -> AsyncIterator[Callable[..., Awaitable[Site]]]:
    async with contextlib.AsyncExitStack() as stack:

        async def open_(*, board: bool = True, **settings: str) -> Site:
            broker, database = private_mosquitto(), private_mariadb()
            chosen = {"DB_TIMEOUT": str(DB_TIMEOUT), **settings}
            bridge = await asyncio.to_thread(
                lambda: private_bridge(broker=broker, database=database, **chosen)
            )
            site = Site(broker, database, bridge)
            site.http = await stack.enter_async_context(aiohttp.ClientSession(bridge.url))
            site.requester = await stack.enter_async_context(Requester(broker))
            if board:
                site.board = await stack.enter_async_context(Board(broker, BOARD_A))
            return site

        yield open_


# The database


async def test_frozen_database_costs_its_readers_a_504_and_nobody_else_anything(open_site):
    site = await open_site()
    pid = site.bridge.pid
    await site.well()
    site.database.pause()

    async def reading_times_out(number: int) -> None:
        await asyncio.sleep(number * 0.1)
        with at_most(DB_TIMEOUT + 1):
            status, body = await site.read()
        assert (status, body["error"]) == (504, "database_timeout")
        with at_most(DB_TIMEOUT + 1):
            reply = await site.requester.ask("sensor-data", READING)
        assert (reply.code, reply.error) == (504, "database_timeout")

    async def state_is_told_at_once() -> None:
        took = {"/livez": [], "/health": []}
        for _ in range(20):
            for path, times in took.items():
                started = time.monotonic()
                await site.get(path)
                times.append(time.monotonic() - started)
            await asyncio.sleep(0.05)
        # The second largest: this machine may have others to serve as well.
        assert {path: sorted(times)[-2] < 0.1 for path, times in took.items()} == {
            "/livez": True,
            "/health": True,
        }

    await asyncio.gather(state_is_told_at_once(), *(reading_times_out(n) for n in range(6)))
    status, health = await site.get("/health")
    assert (status, health["status"], health["database"], health["mqtt"]) == (
        503,
        "degraded",
        False,
        True,
    )
    assert (await site.get("/readyz"))[0] == 503
    site.database.resume()
    await site.well()
    assert site.bridge.pid == pid
    assert (await site.get("/health"))[1]["status"] == "healthy"


async def test_killed_database_is_told_at_once_and_met_again_when_it_is_back(open_site):
    site = await open_site()
    await site.well()
    await in_thread(site.database.kill)
    for _ in range(3):
        with at_most(1):
            status, body = await site.read()
        assert (status, body["error"]) == (503, "database_unavailable")
        with at_most(1):
            reply = await site.requester.ask("sensor-data", READING)
        assert (reply.code, reply.error) == (503, "database_unavailable")
    assert (await site.get("/livez"))[0] == 200
    await in_thread(site.database.start)
    # Made for speed, the lab's server forgets what was written shortly before it was killed.
    await in_thread(lambda: seed_classroom(site.database))
    await site.well()
    assert site.bridge.running


async def test_reads_go_on_over_a_quick_restart_of_the_database(open_site):
    site = await open_site(DB_TIMEOUT="3")
    await site.well()
    await in_thread(site.database.restart)
    assert [(await site.read())[0] for _ in range(5)] == [200] * 5


# The broker


@pytest.mark.parametrize("way", ["killed", "restarted"])
async def test_requests_outstanding_when_the_broker_ends_are_answered(open_site, way):
    site = await open_site(DB_TIMEOUT="6")
    await site.well()
    site.database.pause()
    over_mqtt = [
        asyncio.create_task(site.ask("sensor-data", READING, f"mqtt-{n}")) for n in range(20)
    ]
    over_http = [asyncio.create_task(site.read()) for _ in range(20)]
    await site.in_flight(40)
    await in_thread(site.broker.kill if way == "killed" else site.broker.stop)
    await in_thread(site.broker.start)
    site.database.resume()
    assert [status for status, _ in await asyncio.gather(*over_http)] == [200] * 20
    replies = await asyncio.gather(*over_mqtt)
    assert [(r.code, r.request_id) for r in replies] == [(200, f"mqtt-{n}") for n in range(20)]
    await site.well()


async def test_command_is_refused_while_the_broker_is_away_and_sent_when_it_is_back(open_site):
    site = await open_site()
    await site.well()
    await in_thread(site.broker.kill)
    await site.board.offline()
    with at_most(2):
        status, body = await site.control(port_id=2)
    assert (status, body["error"]) == (503, "mqtt_unavailable")
    assert (await site.read())[0] == 200
    assert (await site.get("/readyz"))[0] == 503
    await in_thread(site.broker.start)
    await site.board.online()
    await until(lambda: controlled(site), RECOVERY)

    async def arrived() -> bool:
        # The broker acknowledges to us before it delivers to the board.
        return bool(commands_to(site, 2))

    await until(arrived, RECOVERY)
    assert len(commands_to(site, 2)) == 1


def commands_to(site: Site, port_id: int) -> list[Any]:
    return [command for command in site.board.commands if command.json["device_id"] == port_id]


async def controlled(site: Site) -> bool:
    return (await site.control(port_id=2))[0] == 200


async def test_broker_that_freezes_shortly_delays_answers_and_loses_none(open_site):
    site = await open_site()
    await site.well()
    asked = [
        asyncio.create_task(site.requester.ask("sensor-data", READING, timeout=10))
        for _ in range(50)
    ]
    await asyncio.sleep(0.01)
    site.broker.pause()
    commanded = [asyncio.create_task(site.control()) for _ in range(5)]
    assert (await site.read())[0] == 200
    await asyncio.sleep(1)
    site.broker.resume()
    assert {reply.code for reply in await asyncio.gather(*asked)} == {200}
    assert {status for status, _ in await asyncio.gather(*commanded)} == {200}


async def test_broker_that_freezes_for_long_is_told_and_left_and_met_again(open_site):
    site = await open_site(REQUEST_TIMEOUT="2")
    await site.well()
    site.broker.pause()
    with at_most(4):
        status, body = await site.control(request_id="frozen")
    assert (status, body["error"]) == (504, "outcome_unknown")

    async def is_told() -> bool:
        status, health = await site.get("/health")
        return status == 503 and not health["mqtt"]

    await until(is_told, 5)
    asking = asyncio.create_task(site.ask("sensor-data", READING, "asked-of-a-frozen-broker"))
    await asyncio.to_thread(site.bridge.wait_for_line, "mqtt unavailable", 10)
    site.broker.resume()
    await site.well()
    assert (await asking).code == 200
    # It may have reached the device, and is never sent again under this id.
    status, body = await site.control(request_id="frozen")
    assert (status, body["error"]) == (504, "outcome_unknown")


# The start


async def test_start_needs_neither_database_nor_broker(private_bridge):
    with ExitStack() as servers:
        broker, database = Mosquitto(), MariaDb()
        servers.callback(broker.close)
        servers.callback(database.close)
        with at_most(10):
            bridge = await asyncio.to_thread(
                lambda: private_bridge(broker=broker, database=database, wait="live")
            )
        site = Site(broker, database, bridge)
        async with aiohttp.ClientSession(bridge.url) as site.http:
            assert (await site.get("/readyz"))[0] == 503
            status, health = await site.get("/health")
            assert (status, health["database"], health["mqtt"]) == (503, False, False)
            assert (await site.read())[1]["error"] == "database_unavailable"
            assert (await site.control())[1]["error"] == "database_unavailable"

            await in_thread(database.start)
            await in_thread(lambda: seed_classroom(database))
            assert (await site.read())[0] == 200
            assert (await site.control())[1]["error"] == "mqtt_unavailable"
            assert (await site.get("/readyz"))[0] == 503

            await in_thread(broker.start)
            async with Board(broker, BOARD_A) as board, Requester(broker) as requester:
                site.board, site.requester = board, requester
                await site.well()


async def test_taken_port_is_told_with_what_to_do(mosquitto, mariadb):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        bridge = Bridge(mosquitto, mariadb, SERVICE_PORT=str(port))
        try:
            await asyncio.to_thread(bridge.spawn)
            assert await asyncio.to_thread(bridge.wait) == 1
            assert str(port) in bridge.output
            assert "SERVICE_PORT" in bridge.output
            assert "Traceback" not in bridge.output
        finally:
            await asyncio.to_thread(bridge.close)


# The end


async def presence(site: Site) -> str:
    topic = f"plugin/status/{site.bridge.instance}"
    async with Requester(site.broker) as reader:
        await reader.subscribe(topic)
        return str((await reader.next_message(topic=topic)).json["status"])


async def test_sigterm_ends_an_idle_bridge_well(open_site):
    site = await open_site(board=False)
    assert await presence(site) == "online"
    with at_most(3):
        assert await asyncio.to_thread(site.bridge.stop) == 0
    assert await presence(site) == "offline"
    assert "Traceback" not in site.bridge.output


async def test_sigterm_lets_what_is_in_flight_finish_and_takes_no_more(open_site):
    site = await open_site(DB_TIMEOUT="5")
    await site.well()
    site.database.pause()
    over_mqtt = asyncio.create_task(site.requester.ask("sensor-data", READING))
    over_http = asyncio.create_task(site.read())
    await site.in_flight(2)
    site.bridge.send_signal(SIGTERM)

    await asyncio.to_thread(site.bridge.wait_for_line, "draining")
    assert (await site.read())[1]["error"] == "draining"
    assert (await site.get("/livez"))[0] == 200
    assert (await site.get("/readyz"))[0] == 503
    site.database.resume()
    assert (await over_http)[0] == 200
    assert (await over_mqtt).code == 200
    with at_most(5):
        assert await asyncio.to_thread(site.bridge.wait) == 0
    assert await presence(site) == "offline"


async def test_five_restarts_under_load_leave_no_request_unanswered(open_site):
    site = await open_site(board=False)
    over = asyncio.Event()

    async def restart() -> None:
        for _ in range(5):
            await in_thread(site.bridge.restart)
            await asyncio.sleep(0.5)
        over.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(restart())
        asked = []
        while not over.is_set():
            asking = site.requester.ask("sensor-data", READING, timeout=20)
            asked.append(tasks.create_task(asking))
            await asyncio.sleep(0.01)
    codes = Counter(task.result().code for task in asked)
    # What gathered at the broker comes at once: some may find no place, or no database yet.
    assert set(codes) <= {200, 429, 503}, codes
    assert codes[200] > len(asked) / 4, codes


async def test_sigterm_cuts_a_sequence_short_and_says_so(open_site):
    site = await open_site(DRAIN_TIMEOUT="4")
    await site.well()
    asking = asyncio.create_task(
        site.requester.ask("preset", {"device_uuid": BOARD_A, "preset_key": SLOW_SEQUENCE})
    )
    before = len(site.board.commands)
    await until_async(lambda: len(site.board.commands) > before)
    with at_most(5):
        assert await asyncio.to_thread(site.bridge.stop) == 0
    reply = await asking
    assert (reply.code, reply.data["success"]) == (200, False)
    assert len(reply.data["executed_steps"]) == 1


async def until_async(condition: Callable[[], bool]) -> None:
    async def met() -> bool:
        return condition()

    await until(met, 10)


@pytest.mark.parametrize("way", ["kill", "pause"])
@pytest.mark.parametrize("gone", ["broker", "database", "both"])
async def test_sigterm_ends_it_in_time_though_its_servers_are_gone(open_site, gone, way):
    drain_timeout = 4.0
    site = await open_site(DRAIN_TIMEOUT=str(drain_timeout), DB_TIMEOUT="10")
    await site.well()
    for server in {"broker": [site.broker], "database": [site.database]}.get(
        gone, [site.broker, site.database]
    ):
        await in_thread(getattr(server, way))
    hanging = asyncio.gather(site.read(), site.control(), return_exceptions=True)
    await asyncio.sleep(0.1)
    with at_most(drain_timeout + 0.25):
        assert await asyncio.to_thread(site.bridge.stop) == 0
    await hanging
    assert "Traceback" not in site.bridge.output


async def test_sigterm_answers_what_waits_for_a_database_that_hangs(open_site):
    site = await open_site(DRAIN_TIMEOUT="4", DB_TIMEOUT="30", REQUEST_TIMEOUT="30")
    await site.well()
    site.database.pause()
    asking = [
        asyncio.create_task(site.requester.ask("sensor-data", READING, timeout=20)),
        asyncio.create_task(site.requester.ask("control", LED_ON, timeout=20)),
    ]
    over_http = asyncio.create_task(site.read())
    await site.in_flight(3)
    with at_most(4.25):
        assert await asyncio.to_thread(site.bridge.stop) == 0
    assert [(await reply).code for reply in asking] == [504, 504]
    assert (await over_http)[0] == 504
    assert "given up" not in site.bridge.output


# A crash, and the order of acknowledgements


async def test_request_in_flight_at_a_crash_comes_back_and_is_answered(open_site):
    site = await open_site(DB_TIMEOUT="8")
    await site.well()
    site.database.pause()
    asked = [
        asyncio.create_task(site.requester.ask("sensor-data", READING, timeout=15))
        for _ in range(10)
    ]
    await site.in_flight(10)
    await in_thread(site.bridge.kill)
    site.database.resume()
    await in_thread(site.bridge.start)
    assert {reply.code for reply in await asyncio.gather(*asked)} == {200}


async def test_acknowledgements_go_out_in_order_of_receipt_each_after_its_reply(
    private_mariadb, private_bridge
):
    database = private_mariadb()
    async with Scripted(ACCEPTED) as broker:
        starting = asyncio.create_task(
            asyncio.to_thread(lambda: private_bridge(broker=broker, database=database))
        )
        # The session's markers, and the requests.
        for granted in (b"\x01\x01", b"\x01\x01"):
            _, subscribe = await broker.packet(SUBSCRIBE)
            broker.send(bytes((0x90, 3 + len(granted))) + subscribe[:2] + b"\x00" + granted)
        await acknowledge_next(broker)
        await starting
        database.pause()
        broker.send(request("sensor-data", READING, packet_id=1))
        broker.send(request("health", {}, packet_id=2))
        broker.send(request("nonsense", {}, packet_id=3))
        quick = [await reply_of(broker) for _ in range(2)]
        assert {topic for topic, _ in quick} == {"plugin/reply/2", "plugin/reply/3"}
        for _, packet_id in quick:
            broker.send(wire.puback(packet_id))
        await asyncio.sleep(0.2)
        assert not broker.holds(PUBACK)
        database.resume()
        topic, packet_id = await reply_of(broker)
        assert topic == "plugin/reply/1"
        # None before the reply of the first has been acknowledged itself.
        await asyncio.sleep(0.2)
        assert not broker.holds(PUBACK)
        broker.send(wire.puback(packet_id))
        pubacks = [wire.read_puback((await broker.packet(PUBACK))[1]) for _ in range(3)]
        assert pubacks == [(1, 0), (2, 0), (3, 0)]


def request(operation: str, fields: Mapping[str, Any], *, packet_id: int) -> bytes:
    body = {**fields, "reply_to": f"plugin/reply/{packet_id}"}
    return wire.publish(
        f"plugin/request/{operation}".encode(),
        json.dumps(body).encode(),
        qos=1,
        retain=False,
        packet_id=packet_id,
        properties=b"",
    )


async def reply_of(broker: Scripted) -> tuple[str, int]:
    """The topic and packet id of the next message from the bridge."""
    first, body = await broker.packet(PUBLISH)
    message = wire.read_publish(first, body, with_properties=True)
    return message.topic, message.packet_id


async def acknowledge_next(broker: Scripted) -> None:
    _, packet_id = await reply_of(broker)
    broker.send(wire.puback(packet_id))


async def test_flood_behind_one_slow_request_is_answered_whole(open_site):
    """Mosquitto with its default settings keeps 1000 messages for one who is slow, and no more."""
    site = await open_site(board=False, DB_TIMEOUT="50", REQUEST_TIMEOUT="50")
    await site.requester.subscribe(site.requester.reply_topic())
    site.database.pause()
    slow = asyncio.create_task(site.requester.ask("sensor-data", READING, timeout=60))
    await site.in_flight(1)
    flood = [asyncio.create_task(site.requester.ask("health", timeout=40)) for _ in range(3000)]
    answered = await asyncio.gather(*flood)
    assert {reply.code for reply in answered} == {200}
    assert not slow.done()
    site.database.resume()
    assert (await slow).code == 200
