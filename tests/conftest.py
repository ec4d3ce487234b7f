"""Fixtures: one broker, database and bridge for all, and private ones for those who break them.

Servers are synchronous and outlive the event loops of the tests. A test that stops, starts
or pauses one while it awaits something else does so in ``asyncio.to_thread``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Protocol

import aiohttp
import pytest

from tests.lab.board import Board
from tests.lab.bridge import Bridge, Readiness
from tests.lab.certificates import Certificates
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Broker
from tests.lab.platform import Platform, seed_classroom
from tests.lab.requester import Requester
from tests.lab.servers import raise_descriptor_limit

# Some tests are clients by the thousand.
_DESCRIPTORS = 8192


def pytest_configure() -> None:
    raise_descriptor_limit(_DESCRIPTORS)


# What all share. Nobody stops, pauses or reconfigures these.


@pytest.fixture(scope="session")
def mosquitto() -> Iterator[Mosquitto]:
    with Mosquitto() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDb]:
    """Holds the classroom; a test that changes rows takes `platform`, which restores them."""
    with MariaDb() as server:
        seed_classroom(server)
        yield server


@pytest.fixture(scope="session")
def bridge(mosquitto: Mosquitto, mariadb: MariaDb) -> Iterator[Bridge]:
    """The real process on the shared servers, its API open."""
    with Bridge(mosquitto, mariadb) as process:
        yield process


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


# What each test has to itself.


@pytest.fixture
def platform(mariadb: MariaDb) -> Iterator[Platform]:
    """Writes to the shared database; the classroom is back as it was when the test ends."""
    yield Platform(mariadb)
    seed_classroom(mariadb)


@pytest.fixture
async def connect_requester(mosquitto: Mosquitto) -> AsyncIterator[ConnectRequester]:
    """Connects requesters: to the shared broker, or to ``broker=``."""
    async with AsyncExitStack() as connections:

        async def connect(broker: Broker = mosquitto, **options: Any) -> Requester:
            return await connections.enter_async_context(Requester(broker, **options))

        yield connect


@pytest.fixture
async def requester(connect_requester: ConnectRequester) -> Requester:
    """An MQTT 5 requester on the shared broker."""
    return await connect_requester()


@pytest.fixture
async def board(mosquitto: Mosquitto) -> AsyncIterator[ConnectBoard]:
    """Connects simulated boards by uuid: to the shared broker, or to ``broker=``."""
    async with AsyncExitStack() as connections:

        async def connect(uuid: str, broker: Broker = mosquitto, **options: Any) -> Board:
            return await connections.enter_async_context(Board(broker, uuid, **options))

        yield connect


@pytest.fixture
async def http(bridge: Bridge) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the shared bridge: ``http.get("/health")``."""
    async with aiohttp.ClientSession(base_url=bridge.url) as session:
        yield session


@pytest.fixture
def private_mosquitto() -> Iterator[Callable[..., Mosquitto]]:
    """Starts brokers (arguments of `Mosquitto`) that the test may break."""
    with ExitStack() as servers:
        yield lambda *extra, **options: servers.enter_context(Mosquitto(*extra, **options))


@pytest.fixture
def private_mariadb() -> Iterator[Callable[..., MariaDb]]:
    """Starts databases (arguments of `MariaDb`) that hold the classroom and may be broken."""
    with ExitStack() as servers:

        def start(*extra: str, **options: Any) -> MariaDb:
            server = servers.enter_context(MariaDb(*extra, **options))
            seed_classroom(server)
            return server

        yield start


@pytest.fixture
def private_bridge(
    private_mosquitto: Callable[..., Mosquitto], request: pytest.FixtureRequest
) -> Iterator[StartBridge]:
    """Starts bridges of a test's own.

    Without ``broker`` each gets a private one, else it would share the requests of the
    shared bridge (one `MQTT_SHARE` on one broker); it is at ``bridge.broker``. Without
    ``database`` it reads the shared one.
    """
    with ExitStack() as servers:

        def start(
            *arguments: str,
            broker: Broker | None = None,
            database: MariaDb | None = None,
            wait: Readiness | None = "ready",
            **settings: str | None,
        ) -> Bridge:
            database = database or request.getfixturevalue("mariadb")
            process = Bridge(broker or private_mosquitto(), database, *arguments, **settings)
            servers.callback(process.close)
            return process.start(wait)

        yield start


class ConnectRequester(Protocol):
    def __call__(self, broker: Broker = ..., **options: Any) -> Awaitable[Requester]: ...


class ConnectBoard(Protocol):
    def __call__(self, uuid: str, broker: Broker = ..., **options: Any) -> Awaitable[Board]: ...


class StartBridge(Protocol):
    def __call__(
        self,
        *arguments: str,
        broker: Broker | None = None,
        database: MariaDb | None = None,
        wait: Readiness | None = "ready",
        **settings: str | None,
    ) -> Bridge: ...
