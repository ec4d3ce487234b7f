"""The database behind guards: every query has a deadline, and nothing but our errors gets out.

What is guarded against was found by running asyncmy 0.2.18; each guard has a test in
`tests/database/test_pool.py`:

- `autocommit=True`: else a held connection reads an old snapshot.
- Any exception but a server's own error closes the connection: it may stand amidst a result.
- A pool of our own: asyncmy's connects under its lock, so that one handshake that hangs keeps
  everyone from the connections there are; it leaks what it has made when its start fails; and it
  lets one busy task starve the others.
- A deadline around connecting too: a handshake may hang (connect_timeout is for TCP alone;
  read_timeout would cost every query a timer).
- `max_statement_time` / `max_execution_time`: a query that we gave up ends in the server too.
- One retry on a lost connection: nobody pings idle connections; some in a conflict of writers. For
  reads, and for the writes of `database/idempotency.py`, which may be repeated.
- Whatever a mangled packet makes asyncmy raise (IndexError, struct.error, …) is caught.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from asyncmy.errors import MySQLError

from ..core.deadlines import Deadlines
from ..errors import BridgeError, DatabaseTimeout, DatabaseUnavailable
from ..observability.metrics import Metrics
from ..settings import Settings
from .address import DatabaseAddress
from .connections import Connections

logger = logging.getLogger(__name__)

Row = tuple[Any, ...]

_LOST_CONNECTION = frozenset({0, 2006, 2013, 2055})
# ER_QUERY_INTERRUPTED, MariaDB's ER_STATEMENT_TIMEOUT, MySQL's ER_QUERY_TIMEOUT
_OUT_OF_TIME = frozenset({1317, 1969, 3024})
# The server's word on a statement, not on itself: what it names is not there (1146, 1054) or not
# ours to touch (1142, 1143), the server may only be read (1290, 1792, 1836), others hold the rows
# (1205, 1213), or it is no SQL to that server (1064).
_REFUSED = frozenset({1044, 1054, 1064, 1142, 1143, 1146, 1176, 1205, 1213, 1227, 1290, 1792, 1836})
# The server's word on what a statement compares, or on a row that it reads: collations that don't
# mix (1253, 1267, 1270, 1271, 3988), text that is none in a character set (1300, 1366, 3854),
# values that are none of a type (1292, 1411, 1525), or too long or too large (1264, 1406, 1690),
# JSON that can't be read (3140, 3141, 4038).
_COLLATIONS = frozenset({1253, 1267, 1270, 1271, 3988})
_OVER_CONTENT = _COLLATIONS | frozenset(
    {1264, 1292, 1300, 1366, 1406, 1411, 1525, 1690, 3140, 3141, 3854, 4038}
)
# Others wrote the same row at the same time, here (InnoDB) or on another node (Galera's failed
# certification): nothing was done, and done again it succeeds. Tried so often, this far apart.
_CONFLICT = 1213
_CONFLICT_PAUSES = (0.005, 0.02, 0.08, 0.2)
_PROBE_SECONDS = 1.0
# What says that the database is in trouble; anything else is a mistake of ours, or a packet that
# was mangled on its way. RuntimeError is asyncmy's word for a login that it has not the means for.
_TROUBLE = (MySQLError, OSError, EOFError, RuntimeError)
_SILENT = "no answer in time"
_OUTAGE = "outage"


class StatementRefused(DatabaseUnavailable):
    """One statement can't be run, or its rows can't be read; the database itself is well."""

    def __init__(self, errno: int | None, *, over_content: bool) -> None:
        super().__init__()
        # The server's number for it; None if the rows could not be read.
        self.errno = errno
        # Whether a value in it, or in a row, is at fault: without that the others can be read.
        self.over_content = over_content


class Database:
    """Queries with a deadline on connections that are made anew by themselves."""

    def __init__(
        self, settings: Settings, metrics: Metrics, deadlines: Deadlines | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._address = DatabaseAddress.of(settings)
        self._metrics = metrics
        # Fair, and held while a connection is used or made.
        self._slots = asyncio.Semaphore(settings.db_pool_size)
        self._connections = Connections(settings)
        metrics.watch_pool(settings.db_pool_size, self._connections.in_use)
        if self._address.ignored:
            logger.warning(
                "DATABASE_URL: parameters that are not understood and have no effect: %s",
                ", ".join(self._address.ignored),
            )
        self.deadlines = deadlines or Deadlines()
        # What is wrong, for logs and administrators.
        self.last_trouble: str | None = None
        # What the driver raised last; None once a statement has succeeded.
        self.last_error: Exception | None = None
        # What was logged of an outage, of each statement that fails, and of each kind of content.
        self._logged: dict[object, str] = {}
        self._last_success = float("-inf")
        self._was_available = False
        self.available = False

    async def fetch(self, sql: str, args: Sequence[Any] = (), *, deadline: float) -> list[Row]:
        """The rows of a read; tried once more if its connection turns out to be lost.

        Raises:
            DatabaseTimeout: no answer came by `deadline`, which is on the loop's clock.
            DatabaseUnavailable: the database can't be reached, refuses us, or makes no sense.
            StatementRefused: it refuses this statement (a `DatabaseUnavailable` too).
        """
        rows, _ = await self._ask(sql, args, deadline)
        return rows

    async def execute(self, sql: str, args: Sequence[Any] = (), *, deadline: float) -> int:
        """Run a write; returns the number of rows that it affected.

        It must be repeatable: it is tried again as `fetch` does.

        Raises:
            DatabaseTimeout, DatabaseUnavailable: see `fetch`; it may be done all the same.
        """
        _, affected = await self._ask(sql, args, deadline)
        return affected

    async def watch(self) -> None:
        """Keep `available` true to life: probe whenever no query has succeeded for a second."""
        while True:
            if not self._answered_lately():
                await self._probe()
            await asyncio.sleep(_PROBE_SECONDS)

    async def close(self, within: float = 0.25) -> None:
        """Close all connections; waits at most `within` seconds for the server to end idle ones."""
        await self._connections.close(within)

    async def _probe(self) -> None:
        deadline = self._loop.time() + self._settings.db_timeout
        try:
            await self.fetch("SELECT 1", deadline=deadline)
        except BridgeError:
            # If other queries fail too, the database is at fault.
            if not self._answered_lately():
                self._lost(self.last_trouble or _SILENT)

    def _answered_lately(self) -> bool:
        return self._loop.time() - self._last_success < _PROBE_SECONDS

    async def _ask(self, sql: str, args: Sequence[Any], deadline: float) -> tuple[list[Row], int]:
        began = float("inf")
        try:
            with self.deadlines.until(deadline):
                async with self._slots:
                    began = self._loop.time()
                    answer = await self._run_until_done(sql, args)
        except Exception as error:
            raise self._failed(sql, error, began) from None
        self._succeeded(sql)
        return answer

    async def _run_until_done(self, sql: str, args: Sequence[Any]) -> tuple[list[Row], int]:
        """Run it: once more if its connection is lost, a few times more in a conflict."""
        pauses = iter(_CONFLICT_PAUSES)
        was_lost = False
        while True:
            try:
                return await self._run(sql, args)
            except MySQLError as error:
                errno = _errno(error)
                pause = next(pauses, None) if errno == _CONFLICT else None
                if pause is None and (was_lost or errno not in _LOST_CONNECTION):
                    raise
            if pause is not None:
                await asyncio.sleep(pause)
                continue
            was_lost = True
            # The other idle connections are most likely lost too.
            self._connections.cut_idle()

    async def _run(self, sql: str, args: Sequence[Any]) -> tuple[list[Row], int]:
        connection = await self._connections.take()
        try:
            cursor = connection.cursor()
            await cursor.execute(sql, args)
            rows = list(await cursor.fetchall()) if cursor.description else []
        except BaseException as error:
            # After a server's own error the connection is in order; after anything else (a
            # cancellation, a failed conversion) the rest of a result may still be under way.
            if isinstance(error, MySQLError) and _is_servers_own(_errno(error)):
                self._connections.give_back(connection)
            else:
                self._connections.cut(connection)
            raise
        self._connections.give_back(connection)
        return rows, cursor.rowcount

    def _succeeded(self, sql: str) -> None:
        self._last_success = self._loop.time()
        self.last_error = None
        if self._logged:
            self._logged.pop(sql, None)
        if not self.available:
            self.available = True
            self.last_trouble = None
            self._logged.pop(_OUTAGE, None)
            self._metrics.connected("database", True)
            if self._was_available:
                self._metrics.reconnected("database")
            self._was_available = True
            logger.info("database available", extra={"database": str(self._address)})

    def _failed(self, sql: str, error: Exception, began: float) -> BridgeError:
        """Our error for whatever was raised; what it says goes to the log.

        `began`: when the database's part began, on the loop's clock.
        """
        self.last_error = error
        errno = _errno(error)
        if isinstance(error, TimeoutError) or errno in _OUT_OF_TIME:
            # With less time the queue or a short deadline may be the cause; the probe decides.
            had = self._loop.time() - began
            if had >= self._settings.db_timeout / 2:
                self._lost(_SILENT)
            return DatabaseTimeout()
        trouble = f"{type(error).__name__}: {error}"
        if errno in _OVER_CONTENT or isinstance(error, UnicodeError):
            kind = _COLLATIONS if errno in _COLLATIONS else errno or type(error)
            # The words differ with each value.
            level = logging.WARNING if self._is_new(kind, "") else logging.DEBUG
            words = "a statement fails over a value in it and is tried again without: %s"
            logger.log(level, words, trouble)
            return StatementRefused(errno, over_content=True)
        if isinstance(error, _TROUBLE) and errno not in _REFUSED:
            self._lost(trouble)
            return DatabaseUnavailable()
        self.last_trouble = trouble
        if not isinstance(error, _TROUBLE):
            if self._is_new(sql, trouble):
                logger.error(
                    "a statement failed unexpectedly", exc_info=error, extra={"statement": sql}
                )
            # A row that the driver can't convert, or a mangled packet.
            return StatementRefused(None, over_content=True)
        if self._is_new(sql, trouble):
            logger.warning("the database refuses a statement: %s", trouble)
        return StatementRefused(errno, over_content=False)

    def _lost(self, trouble: str) -> None:
        """The database is in trouble, by its own doing; logged once per change."""
        self.available = False
        self._metrics.connected("database", False)
        self.last_trouble = trouble
        if self._is_new(_OUTAGE, trouble):
            logger.warning(
                "database unavailable: %s",
                trouble,
                extra={"database": str(self._address)},
            )

    def _is_new(self, about: object, trouble: str) -> bool:
        """Whether this was not the last that was logged about it."""
        logged, self._logged[about] = self._logged.get(about), trouble
        return logged != trouble


def _errno(error: BaseException) -> int | None:
    if isinstance(error, MySQLError) and error.args and isinstance(error.args[0], int):
        return error.args[0]
    return None


def _is_servers_own(errno: int | None) -> bool:
    return errno is not None and (1000 <= errno < 2000 or errno >= 3000)
