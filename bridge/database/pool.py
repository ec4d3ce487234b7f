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
- One retry on a lost connection: nobody pings what rests. For reads, and for the writes of
  `database/idempotency.py`, which may be repeated.
- Whatever a mangled packet makes asyncmy raise (IndexError, struct.error, …) is caught.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Any

import asyncmy
from asyncmy.errors import MySQLError

from ..core.deadlines import Deadlines
from ..errors import BridgeError, DatabaseTimeout, DatabaseUnavailable
from ..observability.metrics import Metrics
from ..settings import Settings
from .address import DatabaseAddress

logger = logging.getLogger(__name__)

Row = tuple[Any, ...]

_LOST_CONNECTION = frozenset({0, 2006, 2013, 2055})
# ER_QUERY_INTERRUPTED, MariaDB's ER_STATEMENT_TIMEOUT, MySQL's ER_QUERY_TIMEOUT
_OUT_OF_TIME = frozenset({1317, 1969, 3024})
# The server's word on a statement, not on itself: what it names is not there (1146, 1054) or not
# ours to touch (1142, 1143), the server may only be read (1290, 1792, 1836), others hold the rows
# (1205, 1213), or it is no SQL to that server (1064).
_REFUSED = frozenset({1054, 1064, 1142, 1143, 1146, 1205, 1213, 1290, 1792, 1836})
# Below any server's wait_timeout that one meets, so that idle connections are ours to close.
_RECYCLE_SECONDS = 240
_PROBE_SECONDS = 1.0
# What says that the database is in trouble; anything else is a mistake of ours, or a packet that
# was mangled on its way. RuntimeError is asyncmy's word for a login that it has not the means for.
_TROUBLE = (MySQLError, OSError, EOFError, RuntimeError)
_SILENT = "no answer in time"


class Database:
    """Queries with a deadline on connections that are made anew by themselves."""

    def __init__(
        self, settings: Settings, metrics: Metrics, deadlines: Deadlines | None = None
    ) -> None:
        self._settings = settings
        self._address = DatabaseAddress.of(settings)
        self._metrics = metrics
        # First come, first served; whoever has a slot has a connection, or makes one.
        self._slots = asyncio.Semaphore(settings.db_pool_size)
        self._connections = _Connections(settings)
        metrics.watch_pool(settings.db_pool_size, self._connections.in_use)
        self.deadlines = deadlines or Deadlines()
        # The words for what is wrong, for logs and for administrators at a terminal.
        self.last_trouble: str | None = None
        # What was told of an outage, and of each statement that fails: once per change.
        self._outage: str | None = None
        self._told: dict[str, str] = {}
        self._last_success = float("-inf")
        self._was_available = False
        self.available = False

    async def fetch(self, sql: str, args: Sequence[Any] = (), *, deadline: float) -> list[Row]:
        """The rows of a read; tried once more if its connection turns out to be lost.

        Args:
            deadline: on the loop's clock; nothing is waited for past it.

        Raises:
            DatabaseTimeout: no answer came in time.
            DatabaseUnavailable: the database can't be reached, refuses us, or makes no sense.
        """
        rows, _ = await self._ask(sql, args, deadline)
        return rows

    async def execute(self, sql: str, args: Sequence[Any] = (), *, deadline: float) -> int:
        """Run a write, which must be such that running it twice does no harm.

        It is tried once more if its connection turns out to be lost, as reads are.

        Returns:
            The number of rows that it affected.

        Raises:
            DatabaseTimeout: no answer came in time; it may have been done, or be done later.
            DatabaseUnavailable: see `fetch`; it may have been done.
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
        """Close all connections; `within` seconds are for leaving the server politely."""
        await self._connections.close(within)

    async def _probe(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._settings.db_timeout
        try:
            await self.fetch("SELECT 1", deadline=deadline)
        except BridgeError:
            # Whatever went wrong: where nobody else is answered either, it is the database's doing.
            if not self._answered_lately():
                self._lost(self.last_trouble or _SILENT)

    def _answered_lately(self) -> bool:
        return asyncio.get_running_loop().time() - self._last_success < _PROBE_SECONDS

    async def _ask(self, sql: str, args: Sequence[Any], deadline: float) -> tuple[list[Row], int]:
        began = float("inf")
        try:
            with self.deadlines.until(deadline):
                async with self._slots:
                    began = asyncio.get_running_loop().time()
                    answer = await self._run_again_if_lost(sql, args)
        except Exception as error:
            raise self._failed(sql, error, began) from None
        self._succeeded(sql)
        return answer

    async def _run_again_if_lost(self, sql: str, args: Sequence[Any]) -> tuple[list[Row], int]:
        try:
            return await self._run(sql, args)
        except MySQLError as error:
            if _errno(error) not in _LOST_CONNECTION:
                raise
        # It is seldom the only one: the server was restarted, or all have rested for too long.
        self._connections.cut_those_at_rest()
        return await self._run(sql, args)

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
        self._last_success = asyncio.get_running_loop().time()
        if self._told:
            self._told.pop(sql, None)
        if not self.available:
            self.available = True
            self.last_trouble = self._outage = None
            self._metrics.connected("database", True)
            if self._was_available:
                self._metrics.reconnected("database")
            self._was_available = True
            logger.info("database available", extra={"database": str(self._address)})

    def _failed(self, sql: str, error: Exception, began: float) -> BridgeError:
        """Our error for whatever was raised; what it says goes to the log.

        Args:
            began: when the database's part began, on the loop's clock; before, it waited for us.
        """
        if isinstance(error, TimeoutError) or _errno(error) in _OUT_OF_TIME:
            # With less time, it was our own queue or the caller's haste; the probe will see.
            had = asyncio.get_running_loop().time() - began
            if had >= self._settings.db_timeout / 2:
                self._lost(_SILENT)
            return DatabaseTimeout()
        trouble = f"{type(error).__name__}: {error}"
        if not isinstance(error, _TROUBLE):
            if self._is_news(sql, trouble):
                logger.error(
                    "a statement failed unexpectedly", exc_info=error, extra={"statement": sql}
                )
        elif _errno(error) in _REFUSED:
            if self._is_news(sql, trouble):
                logger.warning("the database refuses a statement: %s", trouble)
        else:
            self._lost(trouble)
        return DatabaseUnavailable()

    def _lost(self, trouble: str) -> None:
        """The database is in trouble, by its own doing; told once per change."""
        self.available = False
        self._metrics.connected("database", False)
        self.last_trouble = trouble
        if trouble != self._outage:
            self._outage = trouble
            logger.warning(
                "database unavailable: %s",
                trouble,
                extra={"database": str(self._address)},
            )

    def _is_news(self, sql: str, trouble: str) -> bool:
        """Whether one statement has not yet failed so; others may do well meanwhile."""
        self.last_trouble = trouble
        told, self._told[sql] = self._told.get(sql), trouble
        return told != trouble


class _Connections:
    """Those that are open: in use, or at rest until the next statement."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._address = DatabaseAddress.of(settings)
        self._open: set[Any] = set()
        self._at_rest: deque[Any] = deque()
        self._closed = False

    def in_use(self) -> int:
        """How many execute a statement."""
        return len(self._open) - len(self._at_rest)

    async def take(self) -> Any:
        """The one that has rested longest, so that all stay fresh; or a new one."""
        if self._closed:
            raise ConnectionError("closed by us")
        now = asyncio.get_running_loop().time()
        while self._at_rest:
            connection = self._at_rest.popleft()
            if now - connection.last_usage < _RECYCLE_SECONDS:
                return connection
            self.cut(connection)
        connection = await self._connect()
        self._open.add(connection)
        return connection

    def give_back(self, connection: Any) -> None:
        """Let it rest."""
        if self._closed:
            self.cut(connection)
        else:
            self._at_rest.append(connection)

    def cut(self, connection: Any) -> None:
        """End it without a word to the server."""
        self._open.discard(connection)
        connection.close()

    def cut_those_at_rest(self) -> None:
        """End all that nobody uses."""
        while self._at_rest:
            self.cut(self._at_rest.popleft())

    async def close(self, within: float) -> None:
        """Take leave of the server on those at rest, within so many seconds; then end all."""
        self._closed = True
        leaving = [connection.ensure_closed() for connection in self._at_rest]
        try:
            async with asyncio.timeout(within):
                await asyncio.gather(*leaving, return_exceptions=True)
        except TimeoutError:
            logger.debug("the database did not let us go in time")
        self._at_rest.clear()
        for connection in list(self._open):
            self.cut(connection)
        # Their sockets are closed in the next turn of the loop, which may be its last.
        await asyncio.sleep(0)

    async def _connect(self) -> Any:
        address = self._address
        timeout = self._settings.db_timeout
        # On Python 3.11 the statement's own deadline may be lost just as TCP connects (its
        # `wait_for` swallows the cancellation): then this ends a handshake that hangs.
        async with asyncio.timeout(timeout):
            return await asyncmy.connect(
                host=address.host,
                port=address.port,
                user=address.user,
                password=address.password,
                database=address.name,
                charset="utf8mb4",
                autocommit=True,
                connect_timeout=timeout,
                init_command=_statement_limit(timeout),
                # Read anew each time, so that a renewed certificate is taken up.
                ssl=tls_context(self._settings),
            )


def _errno(error: BaseException) -> int | None:
    if isinstance(error, MySQLError) and error.args and isinstance(error.args[0], int):
        return error.args[0]
    return None


def _is_servers_own(errno: int | None) -> bool:
    return errno is not None and (1000 <= errno < 2000 or errno >= 3000)


def _statement_limit(seconds: float) -> str:
    # Executable comments: only MariaDB reads the first, only MySQL from 5.7.8 on the second.
    # A mode of our own: under NO_BACKSLASH_ESCAPES a list that asyncmy escaped can break out.
    return (
        "SET SESSION sql_mode = 'STRICT_ALL_TABLES'"
        f" /*M!100101 , SESSION max_statement_time = {seconds:.3f} */"
        f" /*!50708 , SESSION max_execution_time = {int(seconds * 1000)} */"
    )


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """The context for `DB_TLS_CA`, which always verifies; None for plain TCP.

    Raises:
        OSError: the file can't be used.
    """
    # Always a context of our own: asyncmy takes an empty mapping for plaintext, and True for
    # encryption without verification.
    if settings.db_tls_ca is None:
        return None
    return ssl.create_default_context(cafile=str(settings.db_tls_ca))
