"""At most once over a real database: across processes, crashes, and statements that come late.

A `MysqlIdempotency` of its own stands for a bridge: what one has, another knows by the table alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from bridge.core.context import Drain
from bridge.core.deadlines import Deadlines
from bridge.core.idempotency import MemoryIdempotency
from bridge.core.replies import Reply
from bridge.database.batch_loader import LANES
from bridge.database.idempotency import MysqlIdempotency
from bridge.database.idempotency_table import CREATE_TABLE, TABLE
from bridge.database.pool import Database, Row
from bridge.errors import DatabaseUnavailable, Draining, OutcomeUnknown, RequestTimeout
from bridge.observability.metrics import Metrics
from tests.core.test_idempotency import AnyStore, Ask, Asked, asking, said
from tests.database.test_pool import Line, at_most, settings_for
from tests.lab.mariadb import READER, READER_PASSWORD, WRITER, WRITER_PASSWORD, MariaDb

ROW = f"SELECT *, expires_at - UNIX_TIMESTAMP() AS expires_in FROM {TABLE} WHERE id = %s"


class Counting(Database):
    """Counts its reads."""

    reads = 0

    async def fetch(self, *args: Any, **options: Any) -> list[Row]:
        self.reads += 1
        return await super().fetch(*args, **options)


@dataclass
class OnceBridge:
    """What one bridge has of it."""

    database: Counting
    drain: Drain
    once: MysqlIdempotency
    ask: Ask


OpenBridge = Callable[..., OnceBridge]


@pytest.fixture
def table(mariadb: MariaDb) -> Iterator[MariaDb]:
    """The shared database, with our table in it while the test runs."""
    mariadb.execute(CREATE_TABLE)
    yield mariadb
    mariadb.execute(f"DROP TABLE IF EXISTS {TABLE}")


@pytest.fixture
def private_table(private_mariadb: Callable[..., MariaDb]) -> Callable[..., MariaDb]:
    """Starts databases that may be broken, with our table in them."""

    def start(*options: str) -> MariaDb:
        server = private_mariadb(*options)
        server.execute(CREATE_TABLE)
        return server

    return start


@pytest.fixture
async def open_bridge() -> AsyncIterator[OpenBridge]:
    async with AsyncExitStack() as stack:

        def open_(
            server: MariaDb | Line, instance: str = "one", ttl: float = 300, **chosen: Any
        ) -> OnceBridge:
            account = {"db_user": WRITER, "db_password": WRITER_PASSWORD}
            ours = {"mqtt_instance": instance, "dedup_ttl": max(ttl, 1e-6)}
            settings = settings_for(server, **{**account, **ours, **chosen})
            database = Counting(settings, Metrics())
            drain, deadlines = Drain(), Deadlines()
            once = MysqlIdempotency(database, settings, deadlines, drain)
            stack.push_async_callback(database.close)
            stack.push_async_callback(once.close)
            return OnceBridge(database, drain, once, asking(once))

        yield open_


class TestMysql(AnyStore):
    @pytest.fixture
    async def ask(self, table: MariaDb, open_bridge: OpenBridge) -> Ask:
        return open_bridge(table, ttl=0.0).ask


class TestMysqlAlone(AnyStore):
    """The same where our memory keeps nothing that the table has."""

    @pytest.fixture
    async def ask(self, table: MariaDb, open_bridge: OpenBridge) -> Ask:
        bridge = open_bridge(table, ttl=0.0)
        bridge.once._ours = Forgetful(0.0, Deadlines(), "zh")
        return bridge.ask


class Forgetful(MemoryIdempotency):
    def note_kept_elsewhere(self, key: bytes) -> None:
        super().note_kept_elsewhere(key)
        asyncio.get_running_loop().call_soon(self._forget, key)


# Several bridges


async def test_other_bridge_gives_the_same_answer(table, open_bridge):
    one, two = open_bridge(table), open_bridge(table, "two")
    assert await one.ask().sent(said("first")) == said("first")
    other = two.ask()
    assert await other.answered() == await two.ask().recalled() == said("first")
    assert other.executed == 0
    assert other.duplicate


@pytest.fixture
def conflicts(table: MariaDb) -> Iterator[Callable[[int], None]]:
    """Has the next so many INSERTs fail as Galera's certification does."""
    # In memory, the count stays when the statement is rolled back.
    table.execute("CREATE TABLE conflicts (remaining INT) ENGINE=MEMORY")
    table.execute("INSERT INTO conflicts VALUES (0)")
    table.execute(
        f"CREATE TRIGGER conflict BEFORE INSERT ON {TABLE} FOR EACH ROW BEGIN "
        "UPDATE conflicts SET remaining = remaining - 1; "
        "IF (SELECT remaining FROM conflicts) >= 0 THEN "
        "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END IF; END"
    )
    yield lambda count: table.execute("UPDATE conflicts SET remaining = %s", count)
    table.execute("DROP TABLE conflicts")


@pytest.mark.parametrize(("failing", "executed"), [(3, 1), (50, 0)])
async def test_write_that_conflicts_is_tried_again_a_few_times(
    table, conflicts, open_bridge, failing, executed
):
    bridge = open_bridge(table)
    conflicts(failing)
    asked = bridge.ask()
    if executed:
        assert await asked.sent(said("done")) == said("done")
    else:
        with pytest.raises(DatabaseUnavailable):
            await asked.answered()
    assert asked.executed == executed


async def test_other_bridge_waits_for_the_first(table, open_bridge):
    one, two = open_bridge(table), open_bridge(table, "two")
    first, other = one.ask(), two.ask()
    answer = await first.under_way()
    waiting = [other.answered(), two.ask().recalled()]
    async with asyncio.timeout(5):
        while not other.duplicate:
            await asyncio.sleep(0.01)
    first.send()
    first.end(said("first"))
    assert await asyncio.gather(answer, *waiting) == [said("first")] * 3
    assert other.executed == 0


async def test_other_bridge_executes_what_the_first_did_not_send(table, open_bridge):
    one, two = open_bridge(table), open_bridge(table, "two")
    first, other = one.ask(), two.ask()
    answer = await first.under_way()
    waiting = other.answered()
    async with asyncio.timeout(5):
        while not other.duplicate:
            await asyncio.sleep(0.01)
    first.end(Reply(503, error="mqtt_unavailable"))
    assert (await answer).code == 503
    await other.begun.wait()
    other.send()
    other.end(said("second"))
    assert await waiting == await one.ask().answered() == said("second")
    assert not other.duplicate


async def test_of_many_bridges_at_once_only_one_executes(table, open_bridge):
    bridges = [open_bridge(table, f"bridge-{number}") for number in range(5)]
    asked = [bridge.ask() for bridge in bridges for _ in range(5)]
    for number, one in enumerate(asked):
        one.send()
        one.end(said(f"answer {number}"))
    replies = await asyncio.gather(*(one.answered() for one in asked))
    assert sum(one.executed for one in asked) == 1
    assert [reply for reply in replies if reply != replies[0]] == []


async def test_what_a_crashed_bridge_had_begun_is_unknown(table, open_bridge):
    crashed, again, other = (open_bridge(table, name) for name in ("one", "one", "two"))
    asked = crashed.ask()
    await asked.under_way()
    # Its successor of the same name knows at once; others when it has had its time.
    for way in (Asked.answered, Asked.recalled):
        with pytest.raises(OutcomeUnknown):
            await way(again.ask())
    table.execute(f"UPDATE {TABLE} SET works_until = UNIX_TIMESTAMP() - 1")
    for way in (Asked.answered, Asked.recalled):
        with pytest.raises(OutcomeUnknown):
            await way(other.ask())


async def test_time_of_one_who_waits_for_another_bridge_ends_as_unknown(table, open_bridge):
    one, two = open_bridge(table), open_bridge(table, "two")
    await one.ask().under_way()
    with at_most(1), pytest.raises(OutcomeUnknown):
        await two.ask(seconds=0.3).answered()


async def test_end_of_a_drain_is_told_to_one_who_waits_for_another_bridge(table, open_bridge):
    one, two = open_bridge(table), open_bridge(table, "two")
    first = one.ask()
    answer = await first.under_way()
    waiting = {two.ask().answered(), two.ask().recalled()}
    now = asyncio.get_running_loop().time()
    two.drain.begin(now + 1.4)
    done, waiting = await asyncio.wait(waiting, timeout=0.2)
    assert not done
    with at_most(0.8):
        for task in waiting:
            with pytest.raises(Draining):
                await task
    first.send()
    first.end(said("first"))
    assert await answer == said("first")


async def test_one_who_waits_for_another_bridge_is_answered_while_a_drain_lasts(table, open_bridge):
    one, two = open_bridge(table), open_bridge(table, "two")
    first, other = one.ask(), two.ask()
    await first.under_way()
    waiting = other.answered()
    async with asyncio.timeout(5):
        while not other.duplicate:
            await asyncio.sleep(0.01)
    two.drain.begin(asyncio.get_running_loop().time() + 8)
    first.send()
    first.end(said("first"))
    assert await waiting == said("first")


# The table


async def test_refused_commands_are_looked_up_in_few_statements(table, open_bridge):
    bridge = open_bridge(table)
    kept = [f"id {number}" for number in range(0, 500, 50)]
    for request_id in kept:
        await bridge.ask(request_id).sent(said(request_id))
    other = open_bridge(table, "two")
    ids = [f"id {number}" for number in range(500)]
    known = await asyncio.gather(*(other.ask(one).recalled() for one in ids))
    assert known == [said(one) if one in kept else None for one in ids]
    assert other.database.reads <= LANES + 1


async def test_answer_is_known_though_its_row_was_lost_meanwhile(table, open_bridge):
    one, two = open_bridge(table), open_bridge(table, "two")
    first = one.ask()
    answer = await first.under_way()
    table.execute(f"DELETE FROM {TABLE}")
    first.send()
    first.end(said("first"))
    assert await answer == await two.ask().answered() == said("first")


async def test_sweep_removes_what_has_expired_and_nothing_else(table, open_bridge):
    bridge = open_bridge(table)
    table.execute(
        f"INSERT INTO {TABLE} SELECT LPAD(seq, 16, 'x'), 'f', 'p', 'i', 0, 0, NULL"
        " FROM seq_1_to_2500"
    )
    await bridge.ask("kept").sent(said("kept"))
    running = await bridge.ask("running").under_way()
    await bridge.once.sweep_once()
    assert table.query(f"SELECT COUNT(*) AS n FROM {TABLE}") == [{"n": 2}]
    running.cancel()


async def test_ids_that_the_table_holds_are_never_refused_for_want_of_memory(table, open_bridge):
    bridge = open_bridge(table)
    bridge.once._ours = MemoryIdempotency(300, Deadlines(), "zh", most_entries=40)
    for number in range(100):
        assert await bridge.ask(f"id {number}").sent(said(f"{number}")) == said(f"{number}")
    for number in range(100):
        again = bridge.ask(f"id {number}")
        assert await again.answered() == said(f"{number}")
        assert again.executed == 0


@pytest.mark.parametrize("lacking", ["the table", "the right to write", "any right"])
async def test_misconfiguration_is_logged_and_is_no_outage(
    private_mariadb, open_bridge, caplog, lacking
):
    server = private_mariadb()
    if lacking != "the table":
        server.execute(CREATE_TABLE)
    if lacking == "any right":
        server.execute("CREATE USER some@'%' IDENTIFIED BY 'some'")
        server.execute(f"GRANT SELECT ON {server.database}.device_main TO some@'%'")
        bridge = open_bridge(server, db_user="some", db_password="some")
    else:
        bridge = open_bridge(server, db_user=READER, db_password=READER_PASSWORD)
    read = "SELECT COUNT(*) FROM device_main"
    deadline = asyncio.get_running_loop().time() + 5
    for number in range(3):
        await bridge.database.fetch(read, deadline=deadline)
        asked = bridge.ask(f"id {number}")
        with pytest.raises(DatabaseUnavailable):
            await asked.answered()
        assert asked.executed == 0
        assert bridge.database.available
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert TABLE in told[0].getMessage()


# The table's clock


MIDNIGHT = 1761436800
"""2025-10-26 in UTC; an hour later summer time ends in Central Europe."""


async def test_end_of_summer_time_in_the_servers_zone_moves_nothing(
    private_table, open_bridge, monkeypatch
):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    server = await asyncio.to_thread(private_table)

    def clock_stands_at(seconds: float) -> None:
        """For all who connect from now on."""
        server.execute(f"SET GLOBAL init_connect = 'SET timestamp = {seconds}'")

    hours = [
        server.query(f"SET STATEMENT timestamp = {MIDNIGHT + after} FOR SELECT HOUR(NOW()) AS h")
        for after in (60, 3660)
    ]
    assert hours == [[{"h": 2}]] * 2
    for change in (MIDNIGHT, MIDNIGHT + 3600, MIDNIGHT + 7200):
        request_id = f"at {change}"
        clock_stands_at(change - 30)
        assert await open_bridge(server).ask(request_id).sent(said("first")) == said("first")
        clock_stands_at(change + 30)
        again = open_bridge(server, "two").ask(request_id)
        assert await again.answered() == said("first")
        assert again.executed == 0
        clock_stands_at(change + 300)
        assert await open_bridge(server, "two").ask(request_id).recalled() is None


# Statements that fail, or come late


async def test_command_whose_answer_could_not_be_written_is_not_sent_again(
    table, open_bridge, caplog
):
    """Not even where the driver raises what no driver should."""
    async with Line(table) as line:
        bridge = open_bridge(line)
        line.garble(b"REPLACE")
        assert await bridge.ask().sent(said("first")) == said("first")
        again = bridge.ask()
        assert await again.answered() == said("first")
        assert again.executed == 0
        assert "could not be kept" in caplog.text
        assert "Traceback" in caplog.text
        # Where it is not known, it is told as that, and not executed either.
        table.execute(f"UPDATE {TABLE} SET works_until = UNIX_TIMESTAMP() - 1")
        for instance in ("one", "two"):
            with pytest.raises(OutcomeUnknown):
                await open_bridge(table, instance).ask().answered()


async def test_command_that_our_memory_forgot_unwritten_is_not_sent_again(table, open_bridge):
    async with Line(table) as line:
        bridge = open_bridge(line)
        line.garble(b"REPLACE")
        await bridge.ask().sent(said("first"))
        bridge.once._ours = MemoryIdempotency(300, Deadlines(), "zh")
        table.execute(f"UPDATE {TABLE} SET works_until = UNIX_TIMESTAMP() - 1")
        for way in (Asked.answered, Asked.recalled):
            with pytest.raises(OutcomeUnknown):
                await way(bridge.ask())


async def test_intent_whose_connection_was_lost_is_written_once_and_ours(table, open_bridge):
    async with Line(table) as line:
        bridge = open_bridge(line)
        cut = line.cut(b"INSERT")
        assert await bridge.ask().sent(said("first")) == said("first")
        assert cut.done.is_set()
        assert await open_bridge(table, "two").ask().answered() == said("first")


async def test_late_delete_does_not_remove_the_row_of_a_later_attempt(table, open_bridge):
    async with Line(table) as line:
        bridge = open_bridge(line, db_timeout=0.3)
        late = line.hold(b"DELETE")
        first = bridge.ask()
        first.end(Reply(404, error="device_not_found"))
        assert (await first.answered()).code == 404
        assert late.caught.is_set()
        assert await bridge.ask().sent(said("second")) == said("second")
        await late.pass_on()
        assert await open_bridge(table, "two").ask().answered() == said("second")


async def test_late_insert_does_not_pass_for_a_command_that_was_sent(table, open_bridge):
    async with Line(table) as line:
        bridge = open_bridge(line, db_timeout=0.3)
        late = line.hold(b"INSERT")
        first = bridge.ask()
        with pytest.raises(DatabaseUnavailable):
            await first.answered()
        assert first.executed == 0
        await late.pass_on()
        assert table.query(ROW, first.key)
        assert await bridge.ask().recalled() is None
        assert await bridge.ask().sent(said("second")) == said("second")
        assert await open_bridge(table, "two").ask().answered() == said("second")


async def test_late_insert_does_not_disturb_a_later_attempt(table, open_bridge):
    async with Line(table) as line:
        bridge = open_bridge(line, db_timeout=0.3)
        late = line.hold(b"INSERT")
        with pytest.raises(DatabaseUnavailable):
            await bridge.ask().answered()
        second = bridge.ask()
        answer = await second.under_way()
        await late.pass_on()
        second.send()
        second.end(said("second"))
        assert await answer == said("second")
        assert await open_bridge(table, "two").ask().answered() == said("second")


async def test_sweep_removes_what_came_late_and_was_never_sent(table, open_bridge):
    async with Line(table) as line:
        bridge = open_bridge(line, db_timeout=0.3)
        late = line.hold(b"INSERT")
        first = bridge.ask()
        with pytest.raises(DatabaseUnavailable):
            await first.answered()
        await late.pass_on()
        running = bridge.ask("running")
        answer = await running.under_way()
        await bridge.once.sweep_once()
        assert not table.query(ROW, first.key)
        assert table.query(ROW, running.key)
        assert await open_bridge(table, "two").ask().sent(said("second")) == said("second")
        answer.cancel()


async def test_sweep_goes_on_after_a_statement_that_failed(table, open_bridge, monkeypatch):
    monkeypatch.setattr("bridge.database.idempotency._SWEEP_SECONDS", 0.01)
    table.execute(f"INSERT INTO {TABLE} VALUES ('id', 'f', 'p', 'i', 0, 0, NULL)")
    async with Line(table) as line:
        line.garble(b"DELETE")
        sweeping = asyncio.create_task(open_bridge(line).once.sweep())
        async with asyncio.timeout(5):
            while table.query(f"SELECT 1 FROM {TABLE}"):
                await asyncio.sleep(0.02)
        assert not sweeping.done()
        sweeping.cancel()


async def test_recall_that_meets_a_command_begun_meanwhile_waits_for_it(table, open_bridge):
    async with Line(table) as line:
        bridge = open_bridge(line)
        looking = line.hold(b"SELECT id")
        recalled = bridge.ask().recalled()
        await looking.caught.wait()
        first = bridge.ask()
        answer = await first.under_way()
        await looking.pass_on()
        # Not even where the table is never told.
        line.garble(b"REPLACE")
        first.send()
        first.end(said("first"))
        assert await answer == await recalled == said("first")


# A database that hangs


async def test_own_time_of_a_command_ends_in_time_and_says_that_nothing_was_sent(
    private_table, open_bridge
):
    server = private_table()
    bridge = open_bridge(server, db_timeout=5)
    await bridge.ask("before").sent(said("well"))
    server.pause()
    for way in (Asked.answered, Asked.recalled):
        asked = bridge.ask(seconds=0.2)
        with at_most(1), pytest.raises(RequestTimeout):
            await way(asked)
        assert asked.executed == 0
    assert bridge.database.available
    server.resume()
    assert await bridge.ask().sent(said("well")) == said("well")


async def test_nothing_is_asked_past_its_time(table, open_bridge):
    bridge = open_bridge(table)
    asked = bridge.ask(seconds=-1)
    with pytest.raises(RequestTimeout):
        await asked.answered()
    assert not table.query(ROW, asked.key)


async def test_one_who_is_cancelled_by_the_end_of_a_drain_ends_at_once(private_table, open_bridge):
    server = private_table()
    bridge = open_bridge(server, db_timeout=5)
    asked = [bridge.ask(f"id {number}") for number in range(20)]
    answers = [await one.under_way() for one in asked]
    server.pause()
    started = time.monotonic()
    for answer in answers:
        answer.cancel()
    await asyncio.gather(*answers, return_exceptions=True)
    assert time.monotonic() - started < 0.5
    server.resume()
    assert await bridge.ask("id 7").sent(said("well")) == said("well")


async def test_one_who_is_cancelled_unsent_leaves_no_row(table, open_bridge):
    bridge = open_bridge(table)
    asked = bridge.ask()
    answer = await asked.under_way()
    assert table.query(ROW, asked.key)
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    assert not table.query(ROW, asked.key)
    assert await open_bridge(table, "one").ask().sent(said("second")) == said("second")


async def test_answer_is_given_though_the_database_hangs_and_is_kept_here(
    private_table, open_bridge
):
    server = private_table()
    bridge = open_bridge(server, db_timeout=0.4)
    first, other = bridge.ask(), bridge.ask()
    answer = await first.under_way()
    server.pause()
    first.send()
    first.end(said("first"))
    assert await answer == await other.answered() == said("first")
    assert await bridge.ask().recalled() == said("first")
    server.resume()
