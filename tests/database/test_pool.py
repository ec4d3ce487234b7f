"""The guards around asyncmy, each against a real server that is made to misbehave.

What is guarded against stands at the top of `bridge/database/pool.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack
from typing import Any

import pytest
from asyncmy import converters
from asyncmy.constants import FIELD_TYPE

from bridge.database.pool import Database
from bridge.database.store import MysqlStore
from bridge.errors import DatabaseTimeout, DatabaseUnavailable
from bridge.observability.metrics import Metrics
from bridge.settings import Settings
from tests.lab.certificates import Certificates
from tests.lab.mariadb import MariaDb
from tests.lab.platform import BOARD_A, BOARD_B, BOARD_E, BOARDS, NAMES, UNKNOWN_BOARD
from tests.lab.servers import LOOPBACK, free_port, wait_until
from tests.lab.timing import at_most, settled

OpenDatabase = Callable[..., Database]


def settings_for(address: Any, **chosen: Any) -> Settings:
    """Settings that read `address`: a lab database, or a port of this host."""
    if isinstance(address, int):
        values = {"db_host": LOOPBACK, "db_port": address, "db_name": "aiot", "db_user": "bridge"}
    else:
        values = {
            "db_host": address.host,
            "db_port": address.port,
            "db_name": address.database,
            "db_user": address.user,
            "db_password": address.password,
        }
    return Settings(**{"_env_file": None, **values, **chosen})


@pytest.fixture
async def open_database() -> AsyncIterator[OpenDatabase]:
    async with AsyncExitStack() as stack:

        def open_(address: Any, *, metrics: Metrics | None = None, **chosen: Any) -> Database:
            database = Database(settings_for(address, **chosen), metrics or Metrics())
            stack.push_async_callback(database.close)
            return database

        yield open_


def within(seconds: float) -> float:
    """A deadline on the loop's clock."""
    return asyncio.get_running_loop().time() + seconds


async def connection_id(database: Database) -> int:
    ((number,),) = await database.fetch("SELECT CONNECTION_ID()", deadline=within(5))
    return int(number)


async def connection_ids(database: Database, count: int) -> set[int]:
    """The ids of `count` connections, all in use at once."""
    rows = await asyncio.gather(
        *(
            database.fetch("SELECT CONNECTION_ID(), SLEEP(0.1)", deadline=within(5))
            for _ in range(count)
        )
    )
    return {int(row[0][0]) for row in rows}


# Connections are kept, and see what others have written


async def test_a_kept_connection_sees_what_others_write_meanwhile(mariadb, platform, open_database):
    database = open_database(mariadb, db_pool_size=1)
    sql = "SELECT sensor_value FROM device_sensors WHERE device_uuid = %s AND sensor_name = %s"
    first = await connection_id(database)
    for value in ("20.5", "21.5"):
        platform.report(BOARD_A, "temperature", value)
        assert await database.fetch(sql, (BOARD_A, "temperature"), deadline=within(5)) == [(value,)]
    assert await connection_id(database) == first


async def test_account_that_may_only_select_is_enough(mariadb, open_database):
    database = open_database(mariadb)
    assert await database.fetch("SELECT COUNT(*) FROM device_main", deadline=within(5)) == [(5,)]
    with pytest.raises(DatabaseUnavailable):
        await database.execute("UPDATE device_main SET name = 'x'", deadline=within(5))
    assert mariadb.query("SELECT name FROM device_main WHERE uuid = %s", BOARD_A) == [
        {"name": NAMES[BOARD_A]}
    ]


async def test_server_error_leaves_the_connection_in_use(mariadb, open_database):
    database = open_database(mariadb, db_pool_size=1)
    first = await connection_id(database)
    with pytest.raises(DatabaseUnavailable):
        await database.fetch("SELECT * FROM no_such_table", deadline=within(5))
    assert await connection_id(database) == first
    assert database.available


async def test_failure_amidst_a_result_leaves_no_poisoned_connection(
    mariadb, open_database, monkeypatch
):
    def refuse(value: object) -> None:
        raise ZeroDivisionError

    # Taken over by each connection as it is made; the rest of the rows is still under way.
    monkeypatch.setitem(converters.conversions, FIELD_TYPE.LONGLONG, refuse)
    database = open_database(mariadb, db_pool_size=1)
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable):
            await database.fetch(
                "SELECT seq, REPEAT('x', 500) FROM seq_1_to_5000", deadline=within(5)
            )
        assert await database.fetch("SELECT 'well'", deadline=within(5)) == [("well",)]


async def test_mistake_of_ours_is_logged_with_its_traceback_once_per_change(
    mariadb, open_database, caplog
):
    database = open_database(mariadb)

    async def mistake() -> None:
        with pytest.raises(DatabaseUnavailable):
            await database.fetch("SELECT %s", (1, 2), deadline=within(5))

    await connection_id(database)
    for _ in range(3):
        await mistake()
    assert database.available
    assert [record.exc_info is None for record in errors_in(caplog)] == [False]
    assert await database.fetch("SELECT %s", (1,), deadline=within(5)) == [(1,)]
    await mistake()
    assert len(errors_in(caplog)) == 2


def errors_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_busy_task_does_not_starve_one_that_waits(mariadb, open_database):
    database = open_database(mariadb, db_pool_size=1)
    hogged = 0

    async def hog() -> None:
        nonlocal hogged
        while True:
            await database.fetch("SELECT 1", deadline=within(5))
            hogged += 1

    hogging = asyncio.create_task(hog())
    while hogged < 10:
        await asyncio.sleep(0.001)
    for _ in range(20):
        before = hogged
        await database.fetch("SELECT 2", deadline=within(5))
        assert hogged - before <= 2
    hogging.cancel()


# Connections


class Fault:
    """What happens to one statement on a `Line`; its sender may have left meanwhile."""

    def __init__(self, *, goes_on: bool, is_answered: bool) -> None:
        self.is_answered = is_answered
        self.caught = asyncio.Event()
        self.done = asyncio.Event()
        self._goes_on = asyncio.Event()
        if goes_on:
            self._goes_on.set()

    async def goes_on(self) -> None:
        self.caught.set()
        await self._goes_on.wait()

    async def pass_on(self) -> None:
        """Let it go on to the server, and wait until that has done it."""
        self._goes_on.set()
        async with asyncio.timeout(5):
            await self.done.wait()


class Line:
    """The way to a real server, on which things go wrong when the test says so."""

    def __init__(self, server: MariaDb) -> None:
        self._server = server
        self._faults: dict[bytes, Fault] = {}
        self._garbled: set[bytes] = set()
        self._passages: set[asyncio.Task[None]] = set()
        # Whether new connections are taken without a word.
        self.silent = False
        self.host, self.port = LOOPBACK, 0
        self.database, self.user, self.password = server.database, server.user, server.password

    async def __aenter__(self) -> Line:
        self._listening = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.port = self._listening.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        for passage in self._passages:
            passage.cancel()
        await asyncio.gather(*self._passages, return_exceptions=True)

    def hold(self, word: bytes) -> Fault:
        """Keep back the next statement that has this word."""
        fault = self._faults[word] = Fault(goes_on=False, is_answered=True)
        return fault

    def cut(self, word: bytes) -> Fault:
        """Cut the connection of the next statement that has this word, once it is done."""
        fault = self._faults[word] = Fault(goes_on=True, is_answered=False)
        return fault

    def garble(self, word: bytes) -> None:
        """Answer the next statement that has this word, unheard, with what makes no sense."""
        self._garbled.add(word)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passage = asyncio.create_task(self._pass(reader, writer))
        self._passages.add(passage)
        await asyncio.wait([passage])
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.silent:
            await reader.read()
            return
        answers, server = await asyncio.open_connection(self._server.host, self._server.port)
        awaited: list[Fault] = []
        back = asyncio.create_task(_pass_back(answers, writer, awaited))
        try:
            while chunk := await reader.read(65536):
                if (word := _word_in(chunk, self._garbled)) is not None:
                    self._garbled.discard(word)
                    # An error packet without a number.
                    writer.write(b"\x01\x00\x00\x01\xff")
                elif (word := _word_in(chunk, self._faults)) is not None:
                    fault = self._faults.pop(word)
                    await fault.goes_on()
                    awaited.append(fault)
                    server.write(chunk)
                    await fault.done.wait()
                else:
                    server.write(chunk)
        finally:
            server.close()
            back.cancel()


def _word_in(chunk: bytes, words: Collection[bytes]) -> bytes | None:
    return next((word for word in words if word in chunk), None)


async def _pass_back(
    answers: asyncio.StreamReader, writer: asyncio.StreamWriter, awaited: list[Fault]
) -> None:
    is_answered = True
    while is_answered and (chunk := await answers.read(65536)):
        while awaited:
            fault = awaited.pop()
            is_answered = fault.is_answered
            fault.done.set()
        if is_answered and not writer.is_closing():
            writer.write(chunk)
    writer.close()


async def test_no_more_connections_are_made_than_are_allowed(mariadb, open_database):
    database = open_database(mariadb, db_pool_size=3)
    assert len(await connection_ids(database, 12)) == 3


async def test_connections_that_could_be_made_are_kept_and_used_though_others_could_not(
    private_mariadb, open_database
):
    server = private_mariadb()
    server.execute("CREATE USER few@'%' IDENTIFIED BY 'few' WITH MAX_USER_CONNECTIONS 3")
    server.execute(f"GRANT SELECT ON {server.database}.* TO few@'%'")
    database = open_database(server, db_user="few", db_password="few")

    async def five_at_once() -> list[Any]:
        asking = (database.fetch("SELECT 1, SLEEP(0.2)", deadline=within(5)) for _ in range(5))
        return await asyncio.gather(*asking, return_exceptions=True)

    for _ in range(3):
        answers = await five_at_once()
        assert answers.count([(1, 0)]) == 3
        assert [type(one) for one in answers].count(DatabaseUnavailable) == 2
    ids = server.query("SELECT id FROM information_schema.processlist WHERE user = 'few'")
    assert len(ids) == 3
    server.execute("ALTER USER few@'%' WITH MAX_USER_CONNECTIONS 5")
    assert await five_at_once() == [[(1, 0)]] * 5


async def test_one_that_cannot_be_made_keeps_nobody_from_those_there_are(mariadb, open_database):
    async with Line(mariadb) as line:
        database = open_database(line, db_pool_size=2)
        await connection_id(database)
        line.silent = True
        asking = [
            asyncio.create_task(database.fetch("SELECT 1", deadline=within(5))) for _ in range(2)
        ]
        done, hanging = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        for _ in range(20):
            await database.fetch("SELECT 1", deadline=within(5))
        assert [task.result() for task in done] == [[(1,)]]
        assert not any(task.done() for task in hanging)
        for task in hanging:
            task.cancel()


async def test_closing_takes_leave_of_the_server(mariadb, open_database):
    def aborted() -> Any:
        return mariadb.query("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")

    before = aborted()
    database = open_database(mariadb)
    ids = await connection_ids(database, 3)
    await database.close()
    listed = ", ".join(map(str, ids))
    await asyncio.to_thread(
        wait_until,
        lambda: (
            not mariadb.query(
                f"SELECT id FROM information_schema.processlist WHERE id IN ({listed})"
            )
        ),
        2,
        "the end of the connections",
    )
    assert aborted() == before


async def test_nothing_is_asked_once_it_is_closed(mariadb, open_database):
    database = open_database(mariadb)
    await connection_id(database)
    await database.close()
    with pytest.raises(DatabaseUnavailable):
        await database.fetch("SELECT 1", deadline=within(5))


# Whether it is available


@pytest.fixture
def probing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.database.pool._PROBE_SECONDS", 0.01)


GREETINGS = {
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "cut off": b"\x05\x00\x00\x00\x0ahe",
    "empty": b"\x00" * 64,
    "half a packet": b"\x03\x00\x00\x00abc",
    "without salt": b"\x4a\x00\x00\x00\x0a5.5\x00" + b"\x01" * 20,
}


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS.keys())
async def test_mangled_greeting_is_told_as_ours_and_ends_no_watch(
    open_database, probing_at_once, greeting
):
    greeted = asyncio.Semaphore(0)

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()
        greeted.release()

    async with await asyncio.start_server(greet, LOOPBACK, 0) as server:
        database = open_database(server.sockets[0].getsockname()[1])
        with pytest.raises(DatabaseUnavailable):
            await database.fetch("SELECT 1", deadline=within(5))
        watching = asyncio.create_task(database.watch())
        for _ in range(4):
            await greeted.acquire()
        assert not watching.done()
        assert not database.available
        watching.cancel()


async def test_waiting_for_others_of_ours_is_no_outage(mariadb, open_database):
    database = open_database(mariadb, db_pool_size=1, db_timeout=0.4)
    await connection_id(database)
    hogging = asyncio.create_task(database.fetch("SELECT SLEEP(0.3)", deadline=within(0.4)))
    await settled()
    with pytest.raises(DatabaseTimeout):
        await database.fetch("SELECT 1", deadline=within(0.05))
    assert database.available
    assert await hogging == [(0,)]


async def test_callers_haste_is_no_outage(mariadb, open_database):
    database = open_database(mariadb, db_timeout=2)
    await connection_id(database)
    with pytest.raises(DatabaseTimeout):
        await database.fetch("SELECT SLEEP(1)", deadline=within(0.05))
    assert database.available


async def test_silence_for_as_long_as_may_be_waited_is_an_outage(mariadb, open_database):
    database = open_database(mariadb, db_timeout=0.3)
    await connection_id(database)
    with pytest.raises(DatabaseTimeout):
        await database.fetch("SELECT SLEEP(1)", deadline=within(0.3))
    assert not database.available


@pytest.mark.parametrize(
    "refused",
    ["SELECT * FROM no_such_table", "UPDATE device_main SET name = 'x'", "SELECT no_such_column"],
    ids=["no table", "no right", "no column"],
)
async def test_refused_statement_is_told_once_and_is_no_outage(
    mariadb, open_database, caplog, refused
):
    database = open_database(mariadb)
    await connection_id(database)
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable):
            await database.execute(refused, deadline=within(5))
        await connection_id(database)
    assert database.available
    (told,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert database.last_trouble is not None
    assert database.last_trouble in told.getMessage()


async def test_outage_is_seen_though_nobody_asks(private_mariadb, open_database, probing_at_once):
    server = private_mariadb()
    database = open_database(server)
    watching = asyncio.create_task(database.watch())
    for is_well, change in ((True, lambda: None), (False, server.kill), (True, server.start)):
        await asyncio.to_thread(change)
        async with asyncio.timeout(10):
            while database.available is not is_well:
                await asyncio.sleep(0.01)
    watching.cancel()


# Nothing is waited for past its deadline


class Silent:
    """A server that accepts and says nothing; the first few it may pass on to a real one."""

    def __init__(self, after: int = 0, before: MariaDb | None = None) -> None:
        self.port = 0
        self.open = 0
        self.accepted = 0
        self._after = after
        self._before = before
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Silent:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.accepted += 1
        self._writers.append(writer)
        try:
            await reader.read()
        finally:
            self.open -= 1
            writer.close()


async def test_silent_server_is_a_timeout_in_time(open_database):
    async with Silent() as silent:
        database = open_database(silent.port, db_timeout=0.3)
        with at_most(1.5):
            outcomes = await asyncio.gather(
                *(database.fetch("SELECT 1", deadline=within(0.3)) for _ in range(12)),
                return_exceptions=True,
            )
        assert {type(outcome) for outcome in outcomes} == {DatabaseTimeout}
        assert not database.available


async def test_attempts_at_a_silent_server_leave_no_connection_behind(open_database):
    async with Silent() as silent:
        database = open_database(silent.port)
        for _ in range(5):
            with pytest.raises(DatabaseTimeout):
                await database.fetch("SELECT 1", deadline=within(0.05))
        assert silent.accepted >= 5
        async with asyncio.timeout(2):
            while silent.open:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", ["its deadline passed", "it was cancelled"])
async def test_query_that_was_given_up_ends_in_the_server_too(mariadb, open_database, way):
    database = open_database(mariadb, db_timeout=0.5)
    mark = f"given up because {way}"
    asking = asyncio.create_task(
        database.fetch(f"SELECT SLEEP(30) /* {mark} */", deadline=within(0.3))
    )

    def is_running() -> bool:
        rows = mariadb.query(
            "SELECT COUNT(*) AS n FROM information_schema.processlist"
            " WHERE info LIKE %s AND id <> CONNECTION_ID()",
            f"%{mark}%",
        )
        return bool(rows[0]["n"])

    async with asyncio.timeout(2):
        while not is_running():
            await asyncio.sleep(0.01)
    if way == "it was cancelled":
        asking.cancel()
    with pytest.raises((DatabaseTimeout, asyncio.CancelledError)):
        await asking
    await asyncio.to_thread(wait_until, lambda: not is_running(), 2, "the end of the query")


async def test_query_that_the_server_cuts_short_is_a_timeout_and_spares_the_connection(
    mariadb, open_database
):
    database = open_database(mariadb, db_timeout=0.8, db_pool_size=1)
    first = await connection_id(database)
    with at_most(3), pytest.raises(DatabaseTimeout):
        await database.fetch(
            "SELECT COUNT(*) FROM seq_1_to_100000 a, seq_1_to_100000 b", deadline=within(10)
        )
    assert await connection_id(database) == first


async def test_good_queries_go_on_beside_one_that_hangs(mariadb, open_database):
    database = open_database(mariadb, db_pool_size=2)
    hanging = asyncio.create_task(database.fetch("SELECT SLEEP(1)", deadline=within(5)))
    await asyncio.sleep(0)
    for _ in range(20):
        await database.fetch("SELECT 1", deadline=within(5))
    assert not hanging.done()
    hanging.cancel()


async def test_closing_does_not_wait_for_a_query_that_hangs(mariadb, open_database):
    database = open_database(mariadb, db_timeout=20)
    await connection_id(database)
    asking = asyncio.create_task(database.fetch("SELECT SLEEP(20)", deadline=within(20)))
    await asyncio.sleep(0.1)
    with at_most(2):
        await database.close(within=0.1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


# It comes back by itself


@pytest.mark.parametrize("way", ["fetch", "execute"])
async def test_idle_connections_that_were_killed_cost_nothing(mariadb, open_database, way):
    database = open_database(mariadb, db_pool_size=4)
    ids = await connection_ids(database, 4)
    assert len(ids) == 4
    for number in ids:
        mariadb.execute(f"KILL {number}")
    # No turn of the loop between: it has not heard of their end yet.
    await getattr(database, way)("DO 1", deadline=within(5))
    assert database.available
    assert not ids & await connection_ids(database, 4)


async def test_reads_after_a_restart_of_the_server_work_at_once(private_mariadb, open_database):
    server = private_mariadb()
    metrics = Metrics()
    database = open_database(server, db_pool_size=3, metrics=metrics)
    await connection_ids(database, 3)
    await asyncio.to_thread(server.restart)
    rows = await asyncio.gather(
        *(database.fetch("SELECT 1", deadline=within(5)) for _ in range(10))
    )
    assert rows == [[(1,)]] * 10
    assert database.available


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"db_password": "wrong"}, "password"),
        ({"db_name": "nowhere"}, "database"),
        ({"db_user": "nobody"}, "user"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_refusal_is_told_as_unavailable(mariadb, open_database, wrong, why):
    with pytest.raises(DatabaseUnavailable):
        await open_database(mariadb, **wrong).fetch("SELECT 1", deadline=within(5))


async def test_absent_server_is_told_at_once_and_met_when_it_comes(open_database):
    server = MariaDb()
    try:
        database = open_database(server)
        with at_most(1), pytest.raises(DatabaseUnavailable):
            await database.fetch("SELECT 1", deadline=within(5))
        await asyncio.to_thread(server.start)
        assert await database.fetch("SELECT 1", deadline=within(5)) == [(1,)]
    finally:
        await asyncio.to_thread(server.close)


async def test_drivers_words_stay_in_the_log(open_database, caplog):
    port = free_port()
    with pytest.raises(DatabaseUnavailable) as refusal:
        await open_database(port).fetch("SELECT 1", deadline=within(5))
    assert str(port) in caplog.text
    for language in ("zh", "en"):
        assert str(port) not in refusal.value.detail(language)
    assert refusal.value.__cause__ is None


# TLS


async def test_connection_to_a_trusted_server_is_encrypted(
    private_mariadb, open_database, certificates
):
    server = private_mariadb(certificates=certificates, require_tls=True)
    database = open_database(server, db_tls_ca=certificates.ca)
    ((_, cipher),) = await database.fetch("SHOW STATUS LIKE 'Ssl_cipher'", deadline=within(5))
    assert cipher


async def test_untrusted_certificate_is_refused(
    private_mariadb, open_database, certificates, tmp_path
):
    server = private_mariadb(certificates=certificates)
    others = Certificates(tmp_path)
    with pytest.raises(DatabaseUnavailable):
        await open_database(server, db_tls_ca=others.ca).fetch("SELECT 1", deadline=within(5))


async def test_server_without_tls_is_refused_when_tls_is_wanted(
    mariadb, open_database, certificates
):
    with pytest.raises(DatabaseUnavailable):
        await open_database(mariadb, db_tls_ca=certificates.ca).fetch(
            "SELECT 1", deadline=within(5)
        )


# The store on it


@pytest.fixture
def store_on(open_database: OpenDatabase) -> Callable[..., tuple[MysqlStore, Metrics]]:
    def make(server: MariaDb) -> tuple[MysqlStore, Metrics]:
        metrics = Metrics()
        return MysqlStore(open_database(server, metrics=metrics), 3.0, metrics), metrics

    return make


async def test_many_reads_at_once_take_few_statements_and_each_gets_its_own(mariadb, store_on):
    store, metrics = store_on(mariadb)
    asked = [*BOARDS, UNKNOWN_BOARD] * 50
    found = await asyncio.gather(*(store.readings(uuid) for uuid in asked))
    assert [device and device.name for device in found] == [NAMES.get(uuid) for uuid in asked]
    statements = metrics.registry.get_sample_value("bridge_batch_size_count")
    assert statements is not None
    assert 1 <= statements <= 3


async def test_uuid_is_looked_up_in_any_case(mariadb, store_on):
    store, _ = store_on(mariadb)
    devices = await asyncio.gather(store.readings(BOARD_A.upper()), store.profile(BOARD_B.upper()))
    assert [device and device.uuid for device in devices] == [BOARD_A, BOARD_B]


HOSTILE = [
    "' OR '1'='1",
    "\\",
    "\\' OR 1=1 -- ",
    "') OR 1=1 -- ",
    '" OR ""="',
    "%s",
    "%",
    "{0}",
    "\x00",
    "\x1a",
    "ß" * 36,
    "\U0001f600" * 36,
    "İ",
    f"{BOARD_E} ",
]


@pytest.mark.parametrize("sql_mode", ["", "NO_BACKSLASH_ESCAPES,ANSI_QUOTES"])
async def test_hostile_uuids_find_nothing_and_disturb_nobody(private_mariadb, store_on, sql_mode):
    server = private_mariadb(f"--sql-mode={sql_mode}")
    store, _ = store_on(server)
    found = await asyncio.gather(
        *(
            read(uuid)
            for read in (store.readings, store.profile, store.controls)
            for uuid in [*HOSTILE, BOARD_A]
        )
    )
    names = [device and device.name for device in found]
    assert names == ([None] * len(HOSTILE) + [NAMES[BOARD_A]]) * 3
    by_sensor = await store.sensors(
        [(uuid, (name,)) for uuid in [*HOSTILE, BOARD_A] for name in [*HOSTILE, "temperature"]]
    )
    found = [[row.sensor_name for row in device.rows] for device in by_sensor if device]
    assert found == [["temperature"]] * (len(HOSTILE) + 1)


async def test_reads_behind_a_hung_server_fail_in_time_and_work_when_it_goes_on(
    private_mariadb, open_database
):
    server = private_mariadb()
    metrics = Metrics()
    store = MysqlStore(open_database(server, metrics=metrics, db_timeout=0.4), 0.4, metrics)
    assert await store.readings(BOARD_A)
    server.pause()

    async def late(after: float) -> None:
        await asyncio.sleep(after)
        with at_most(0.4 + 0.5 + 0.5), pytest.raises(DatabaseTimeout):
            await store.readings(BOARD_A)

    await asyncio.gather(*(late(0.1 * number) for number in range(10)))
    server.resume()
    with at_most(3):
        assert await store.readings(BOARD_A)
