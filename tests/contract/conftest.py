"""Callers over each transport, and bridges of unusual settings that a module's tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from tests.contract.callers import TRANSPORTS, Caller, Transport, caller
from tests.lab.bridge import Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Broker
from tests.lab.platform import Platform, seed_classroom

ConnectCaller = Callable[..., Awaitable[Caller]]


@pytest.fixture
async def connect_caller(bridge: Bridge, mosquitto: Mosquitto) -> AsyncIterator[ConnectCaller]:
    """Connects callers: to the shared bridge, or to ``of=`` on ``broker=``."""
    async with AsyncExitStack() as connections:

        async def connect(
            transport: Transport, of: Bridge = bridge, broker: Broker = mosquitto
        ) -> Caller:
            return await connections.enter_async_context(caller(transport, of, broker))

        yield connect


@pytest.fixture(params=TRANSPORTS)
async def call(request: pytest.FixtureRequest, connect_caller: ConnectCaller) -> Caller:
    """A caller of the shared bridge; the test runs once a transport."""
    return await connect_caller(request.param)


class Place:
    """A database with text where JSON should be, and a bridge on it."""

    def __init__(self, broker: Mosquitto, database: MariaDb, bridge: Bridge) -> None:
        self.broker, self.database, self.bridge = broker, database, bridge
        self.platform = Platform(database)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Mosquitto() as broker, MariaDb("--sql-mode=ALLOW_INVALID_DATES") as database:
        Platform(database).drop_json_checks()
        seed_classroom(database)
        with Bridge(broker, database) as bridge:
            yield Place(broker, database, bridge)
