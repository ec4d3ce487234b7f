"""Nodes that are killed, frozen and restarted under load. Each scenario returns its findings."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from tests.clusters.brokers import Cluster
from tests.clusters.galera import Galera
from tests.clusters.load import OTHER_FREQUENCY, Tally, at_rate, commands, executed
from tests.lab.board import Board
from tests.lab.bridge import Bridge
from tests.lab.certificates import Certificates
from tests.lab.mariadb import WRITER, WRITER_PASSWORD, MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Broker
from tests.lab.platform import BOARD_A, seed_classroom
from tests.lab.requester import Requester
from tests.neighbours.proxies import HaProxy

ACCOUNT = {"DB_USER": WRITER, "DB_PASSWORD": WRITER_PASSWORD}
SHARED = {**ACCOUNT, "MQTT_SESSION_EXPIRY": "0", "DEDUP_STORE": "mysql", "LOG_LEVEL": "WARNING"}
COMMANDS_A_SECOND = 15


class Findings:
    """What did not hold."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)


def make_table(broker: Broker, database: MariaDb) -> None:
    making = Bridge(broker, database, "init-db", **ACCOUNT)
    try:
        making.spawn()
        assert making.wait() == 0, making.output
    finally:
        making.close()


@asynccontextmanager
async def clients(
    broker: Broker, login: dict[str, str], version: str
) -> AsyncIterator[tuple[Requester, Board]]:
    options = {**login, "version": version}
    async with (
        Requester(broker, **options) as requester,
        Board(broker, BOARD_A, **options) as board,
    ):
        yield requester, board


async def broker_node_dies(
    make: Callable[[], Cluster], protocol: str, findings: Findings, seconds: float = 36.0
) -> str:
    """Two bridges on different nodes; the second one's node is killed and brought back."""
    with ExitStack() as servers:

        def start() -> tuple[Cluster, MariaDb, list[Bridge]]:
            cluster = servers.enter_context(make())
            database = servers.enter_context(MariaDb())
            seed_classroom(database)
            make_table(cluster.nodes[0], database)
            settings = {**SHARED, **cluster.nodes[0].settings}
            settings |= {"MQTT_PROTOCOL": protocol, "MQTT_SHARE": ""}
            bridges = [Bridge(node, database, **settings) for node in cluster.nodes[:2]]
            for bridge in bridges:
                servers.callback(bridge.close)
                bridge.start()
            return cluster, database, bridges

        cluster, _, _ = await asyncio.to_thread(start)
        first, second = cluster.nodes[0], cluster.nodes[1]
        login = {}
        if first.username:
            login = {"username": first.username, "password": first.password or ""}
        async with clients(cluster.nodes[-1 if len(cluster.nodes) > 2 else 0], login, protocol) as (
            requester,
            board,
        ):
            tally, over = Tally(), asyncio.Event()

            async def faults() -> None:
                await asyncio.sleep(seconds / 4)
                await asyncio.to_thread(second.kill)
                await asyncio.sleep(seconds / 4)
                await asyncio.to_thread(second.spawn)
                await asyncio.to_thread(second.wait_for, second.answers, "serving again")
                await asyncio.sleep(seconds / 4)
                over.set()

            breaking = asyncio.create_task(faults())
            # A fault that could not be made ends the load too.
            breaking.add_done_callback(lambda _: over.set())
            sent = await at_rate(COMMANDS_A_SECOND, over, commands(requester, tally))
            await breaking
            return _judge(sent, tally, executed(board), findings)


def _judge(sent: int, tally: Tally, arrived: Counter[int], findings: Findings) -> str:
    twice = sum(count > 1 for count in arrived.values())
    findings.expect("none" not in tally.codes, f"not answered: {tally}")
    findings.expect(not twice, f"{twice} commands arrived twice")
    findings.expect(len(arrived) >= tally.codes[200], "a command was answered 200 and never came")
    return f"{sent} commands, {len(arrived)} executed, {twice} twice; {tally}"


async def database_node_dies(findings: Findings, *options: str) -> str:
    """Galera: two bridges on nodes of their own; a third node is killed, brought back and frozen,
    and the second bridge's node killed."""
    with ExitStack() as servers:

        def start() -> tuple[Galera, Mosquitto, list[Bridge]]:
            galera = servers.enter_context(Galera(*options))
            broker = servers.enter_context(Mosquitto())
            seed_classroom(galera.nodes[0])
            make_table(broker, galera.nodes[0])
            bridges = [Bridge(broker, node, **SHARED) for node in galera.nodes[:2]]
            for bridge in bridges:
                servers.callback(bridge.close)
                bridge.start()
            return galera, broker, bridges

        galera, broker, bridges = await asyncio.to_thread(start)
        _, second, third = galera.nodes
        async with clients(broker, {}, "5") as (requester, board):
            tally, over = Tally(), asyncio.Event()
            outages: list[str] = []

            async def faults() -> None:
                await asyncio.sleep(4)
                for name, fault in (("killed", third.kill), ("frozen", second.pause)):
                    watching = asyncio.create_task(_longest_outage(bridges[0], 12))
                    await asyncio.to_thread(fault)
                    outages.append(f"{name}: {await watching:.1f} s")
                    if name == "killed":
                        await asyncio.to_thread(third.start)
                        await asyncio.sleep(3)
                await asyncio.to_thread(second.resume)
                await asyncio.sleep(8)
                over.set()

            breaking = asyncio.create_task(faults())
            # A fault that could not be made ends the load too.
            breaking.add_done_callback(lambda _: over.set())
            sent = await at_rate(COMMANDS_A_SECOND, over, commands(requester, tally))
            await breaking
            outcome = _judge(sent, tally, executed(board), findings)
            said = "; ".join(outages)
            return f"{outcome}; the healthy bridge wrote nothing after another node was {said}"


async def _longest_outage(bridge: Bridge, seconds: float) -> float:
    """How long at most the commands of one bridge, over HTTP, were not executed."""
    longest = 0.0
    well = started = time.monotonic()
    body = {"device_uuid": BOARD_A, "port_type": "pwm", "port_id": 1, "action": "set", "value": 1}
    async with aiohttp.ClientSession(bridge.url) as session:
        while time.monotonic() - started < seconds:
            headers = {"Idempotency-Key": os.urandom(8).hex()}
            fields = {**body, "frequency": OTHER_FREQUENCY}
            try:
                async with session.post("/api/control", json=fields, headers=headers) as response:
                    if response.status == 200:
                        longest = max(longest, time.monotonic() - well)
                        well = time.monotonic()
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
    return max(longest, time.monotonic() - well)


async def rolling_restart(findings: Findings, rounds: int = 2) -> str:
    """Two bridges behind HAProxy, restarted in turn under 40 MQTT and 110 HTTP requests/s."""
    with ExitStack() as servers:
        folder = Path(servers.enter_context(tempfile.TemporaryDirectory()))

        def start() -> tuple[Mosquitto, list[Bridge], HaProxy]:
            broker = servers.enter_context(Mosquitto())
            database = servers.enter_context(MariaDb())
            seed_classroom(database)
            make_table(broker, database)
            bridges = [Bridge(broker, database, **SHARED) for _ in range(2)]
            for bridge in bridges:
                servers.callback(bridge.close)
                bridge.start()
            proxy = servers.enter_context(HaProxy(Certificates(folder), *bridges))
            return broker, bridges, proxy

        broker, bridges, proxy = await asyncio.to_thread(start)
        over = asyncio.Event()
        over_http: Counter[object] = Counter()
        over_mqtt: Counter[object] = Counter()

        async def roll() -> None:
            await asyncio.sleep(3)
            for bridge in bridges * rounds:
                await asyncio.to_thread(bridge.restart)
                # Until HAProxy has seen it.
                await asyncio.sleep(3)
            over.set()

        connector = aiohttp.TCPConnector(ssl=proxy.context, limit=0)
        async with (
            Requester(broker) as requester,
            aiohttp.ClientSession(proxy.url, connector=connector) as session,
        ):

            async def ask_http(number: int) -> None:
                params = {"device_uuid": BOARD_A, "sensor": "temperature"}
                try:
                    async with session.get("/api/sensor-data", params=params) as response:
                        over_http[response.status] += 1
                except aiohttp.ClientError as error:
                    over_http[type(error).__name__] += 1

            async def ask_mqtt(number: int) -> None:
                fields = {"device_uuid": BOARD_A, "sensor": "temperature"}
                try:
                    over_mqtt[(await requester.ask("sensor-data", fields)).code] += 1
                except TimeoutError:
                    over_mqtt["none"] += 1

            rolling = asyncio.create_task(roll())
            rolling.add_done_callback(lambda _: over.set())
            await asyncio.gather(at_rate(110, over, ask_http), at_rate(40, over, ask_mqtt))
            await rolling
        findings.expect(set(over_http) == {200}, f"HTTP: {dict(over_http)}")
        findings.expect(set(over_mqtt) == {200}, f"MQTT: {dict(over_mqtt)}")
        return f"{len(bridges) * rounds} restarts; HTTP {_said(over_http)}; MQTT {_said(over_mqtt)}"


def _said(codes: Counter[object]) -> str:
    return ", ".join(f"{count} x {code}" for code, count in codes.items())


__all__: Sequence[str] = ("Findings", "broker_node_dies", "database_node_dies", "rolling_restart")
