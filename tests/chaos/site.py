"""A broker, a database, bridges and a classroom full of devices, all of one run's own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.tap import Departure, Tap
from tests.lab.bridge import Bridge
from tests.lab.mariadb import WRITER, WRITER_PASSWORD, MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Connection, Message
from tests.lab.platform import Platform, seed_classroom

# The lab's server forgets the last second when it is killed, which no promise survives.
DURABLE = "--innodb-flush-log-at-trx-commit=1"
FORGETFUL = "--innodb-flush-log-at-trx-commit=0"

WALK, WALK_STEPS = "walk", 3
"""A sequence of 0.6 s; each walker has it."""
MARCH, MARCH_STEPS = "march", 8
"""A sequence of 4.2 s."""

_DELAYS = {WALK: (WALK_STEPS, 0.3), MARCH: (MARCH_STEPS, 0.6)}


class Classroom(Connection):
    """All devices: listens on every control topic and remembers what arrived."""

    commands: list[Message]

    async def connect(self, timeout: float = 10.0) -> Classroom:
        self.commands = []
        await super().connect(timeout)
        await self.subscribe("devices/+/control")
        return self

    def received(self, message: Message) -> None:
        self.commands.append(message)


@dataclass
class Site:
    """Where a run takes place; ``walkers`` are devices with sequences, each to be used once."""

    broker: Mosquitto
    database: MariaDb
    tap: Tap
    bridges: list[Bridge]
    classroom: Classroom
    walkers: list[str] = field(default_factory=list)

    def left(self) -> Counter[tuple[str, int]]:
        """How often each command left a bridge: by mark and step."""
        return Counter(mark_of(one.topic, one.command) for one in self.tap.departures)

    def arrived(self) -> Counter[tuple[str, int]]:
        """How often each command arrived at its device: by mark and step."""
        return Counter(mark_of(one.topic, one.json) for one in self.classroom.commands)


def mark_of(topic: str, command: Any) -> tuple[str, int]:
    """What tells one command from all others: its number, or its device and step.

    The contract leaves no room for an id in a command. But pwm takes any frequency, an ordinary
    preset any count, and a walker is asked to walk only once.
    """
    kind = command["cmd"]
    if kind == "pwm":
        return f"pwm {command['frequency']}", 0
    if kind == "preset":
        return f"preset {command['parameters']['count']}", 0
    return topic.split("/")[1], command["device_id"]


def departures_of(departures: Sequence[Departure], mark: str) -> int:
    """How many commands with this mark left."""
    return sum(mark_of(one.topic, one.command)[0] == mark for one in departures)


@asynccontextmanager
async def open_site(
    *,
    bridges: int = 1,
    walkers: int = 0,
    broker_lines: Sequence[str] = (),
    database_lines: Sequence[str] = (),
    tapped: bool = True,
    **settings: str,
) -> AsyncIterator[Site]:
    """Start it all; the table for `DEDUP_STORE=mysql` is made if that is among the settings.

    Where speed counts, ``tapped=False`` leaves the tap out: it costs more than the broker.
    """
    with ExitStack() as servers:

        def start() -> tuple[Mosquitto, MariaDb, list[str]]:
            broker = servers.enter_context(Mosquitto(*broker_lines))
            database = servers.enter_context(MariaDb(DURABLE, *database_lines))
            return broker, database, _add_walkers(seed_classroom(database), walkers)

        broker, database, uuids = await asyncio.to_thread(start)
        async with Tap(broker) as tap, Classroom(broker) as classroom:
            account = {"DB_USER": WRITER, "DB_PASSWORD": WRITER_PASSWORD}
            chosen = {**account, "LOG_LEVEL": "WARNING", **settings}
            if settings.get("DEDUP_STORE") == "mysql":
                await asyncio.to_thread(_make_table, broker, database, account)
            line = tap if tapped else broker
            running = [Bridge(line, database, **chosen) for _ in range(bridges)]
            try:
                for bridge in running:
                    await asyncio.to_thread(bridge.start)
                yield Site(broker, database, tap, running, classroom, uuids)
            finally:
                for bridge in running:
                    await asyncio.to_thread(bridge.close)


def _make_table(broker: Mosquitto, database: MariaDb, account: dict[str, str]) -> None:
    making = Bridge(broker, database, "init-db", **account)
    try:
        making.spawn()
        status = making.wait()
        assert status == 0, making.output
    finally:
        making.close()


def _add_walkers(platform: Platform, count: int) -> list[str]:
    presets = [_sequence(key, *shape) for key, shape in _DELAYS.items()]
    uuids = [f"5e000000-0000-4000-8000-{number:012d}" for number in range(count)]
    for uuid in uuids:
        platform.add_device(uuid, "walker", settings={"preset_commands": presets})
    return uuids


def _sequence(key: str, steps: int, delay: float) -> dict[str, Any]:
    return {
        "preset_key": key,
        "name": key,
        "type": "sequence",
        "preset_type": "sequence",
        "steps": [
            {"command": {"cmd": "led", "device_id": step, "value": 1}, "delay": delay}
            for step in range(1, steps + 1)
        ],
    }
