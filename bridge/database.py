"""The asyncmy pool behind guards: every query has a deadline, and no driver error gets out.

What is guarded against was found by running asyncmy 0.2.18; each guard has a test in
`tests/test_database.py`:

- `autocommit=True`: else the pool drops each connection and a held one reads an old snapshot.
- Any exception but a server's own error closes the connection: it may stand amidst a result.
- A first-come-first-served semaphore: the pool itself lets one busy task starve the others.
- A deadline around acquiring too: the pool connects under its lock, and a handshake may hang
  (connect_timeout is for TCP alone; read_timeout would cost every query a timer).
- `max_statement_time` / `max_execution_time`: a query that we gave up ends in the server too.
- One retry on a lost connection: the pool never pings what it hands out. For reads, and for the
  writes of `once_mysql.py`, which may be repeated.
"""

import asyncio
import logging
import ssl
from collections.abc import Sequence
from typing import Any

import asyncmy
from asyncmy.errors import MySQLError

from .deadlines import Deadlines
from .errors import BridgeError, DatabaseTimeout, DatabaseUnavailable
from .metrics import Metrics
from .settings import Settings

logger = logging.getLogger(__name__)

Row = tuple[Any, ...]

_LOST_CONNECTION = frozenset({0, 2006, 2013, 2055})
# ER_QUERY_INTERRUPTED, MariaDB's ER_STATEMENT_TIMEOUT, MySQL's ER_QUERY_TIMEOUT
_OUT_OF_TIME = frozenset({1317, 1969, 3024})
# Below any server's wait_timeout that one meets, so that idle connections are ours to close.
_RECYCLE_SECONDS = 240
_PROBE_SECONDS = 1.0
# What says that the database is in trouble; anything else is a mistake of ours. RuntimeError is
# asyncmy's word for a login that it has not the means for.
_TROUBLE = (MySQLError, OSError, EOFError, TimeoutError, RuntimeError)


class Database:
    """Queries with a deadline on a pool that recovers by itself."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._was_available = False
        self._slots = asyncio.Semaphore(settings.db_pool_size)
        self.deadlines = Deadlines()
        self._pool: Any = None
        self._opening = asyncio.Lock()
        # The driver's words of what is wrong, for logs and for administrators at a terminal.
        self.last_trouble: str | None = None
        self._last_success = float("-inf")
        self.available = False

    async def fetch(self, sql: str, args: Sequence[Any] = (), *, deadline: float) -> list[Row]:
        """The rows of a read; tried once more if its connection turns out to be lost.

        Args:
            deadline: on the loop's clock; nothing is waited for past it.

        Raises:
            DatabaseTimeout: no answer came in time.
            DatabaseUnavailable: the database can't be reached, or refuses us.
        """
        try:
            with self.deadlines.until(deadline):
                async with self._slots:
                    rows, _ = await self._run_again_if_lost(sql, args)
        except _TROUBLE as error:
            raise self._failed(error) from None
        self._succeeded()
        return rows

    async def execute(self, sql: str, args: Sequence[Any] = (), *, deadline: float) -> int:
        """Run a write, which must be such that running it twice does no harm.

        It is tried once more if its connection turns out to be lost, as reads are.

        Returns:
            The number of rows that it affected.

        Raises:
            DatabaseTimeout: no answer came in time; it may have been done.
            DatabaseUnavailable: the database can't be reached, or refuses us.
        """
        try:
            with self.deadlines.until(deadline):
                async with self._slots:
                    _, affected = await self._run_again_if_lost(sql, args)
        except _TROUBLE as error:
            raise self._failed(error) from None
        self._succeeded()
        return affected

    async def watch(self) -> None:
        """Keep `available` true to life: probe whenever no query has succeeded for a second."""
        loop = asyncio.get_running_loop()
        while True:
            if loop.time() - self._last_success >= _PROBE_SECONDS:
                try:
                    await self.fetch("SELECT 1", deadline=loop.time() + self._settings.db_timeout)
                except BridgeError:
                    logger.debug("the database did not answer a probe")
            await asyncio.sleep(_PROBE_SECONDS)

    async def close(self, within: float = 0.25) -> None:
        """Close the pool; connections still in use after `within` seconds are cut."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        pool.close()
        try:
            async with asyncio.timeout(within):
                await pool.wait_closed()
        except TimeoutError:
            pool.terminate()

    async def _run_again_if_lost(self, sql: str, args: Sequence[Any]) -> tuple[list[Row], int]:
        try:
            return await self._run(sql, args)
        except MySQLError as error:
            if _errno(error) not in _LOST_CONNECTION:
                raise
        return await self._run(sql, args)

    async def _run(self, sql: str, args: Sequence[Any]) -> tuple[list[Row], int]:
        pool = self._pool or await self._open()
        connection = await pool.acquire()
        try:
            cursor = connection.cursor()
            await cursor.execute(sql, args)
            rows = list(await cursor.fetchall()) if cursor.description else []
            return rows, cursor.rowcount
        except BaseException as error:
            # After a server's own error the connection is in order; after anything else (a
            # cancellation, a failed conversion) the rest of a result may still be under way.
            if not (isinstance(error, MySQLError) and _is_servers_own(_errno(error))):
                connection.close()
            raise
        finally:
            await pool.release(connection)

    async def _open(self) -> Any:
        async with self._opening:
            if self._pool is None:
                address = self._settings.database
                timeout = self._settings.db_timeout
                self._pool = await asyncmy.create_pool(
                    minsize=self._settings.db_pool_size,
                    maxsize=self._settings.db_pool_size,
                    pool_recycle=_RECYCLE_SECONDS,
                    host=address.host,
                    port=address.port,
                    user=address.user,
                    password=address.password,
                    database=address.name,
                    charset="utf8mb4",
                    autocommit=True,
                    connect_timeout=timeout,
                    init_command=_statement_limit(timeout),
                    ssl=tls_context(self._settings),
                )
            return self._pool

    def _succeeded(self) -> None:
        self._last_success = asyncio.get_running_loop().time()
        if not self.available:
            self.available = True
            self.last_trouble = None
            self._metrics.connected("database", True)
            if self._was_available:
                self._metrics.reconnected("database")
            self._was_available = True
            logger.info("database available", extra={"database": str(self._settings.database)})

    def _failed(self, error: Exception) -> BridgeError:
        """Our error for the driver's; its words go to the log, once per change."""
        self.available = False
        self._metrics.connected("database", False)
        out_of_time = isinstance(error, TimeoutError) or _errno(error) in _OUT_OF_TIME
        trouble = "no answer in time" if out_of_time else f"{type(error).__name__}: {error}"
        if trouble != self.last_trouble:
            self.last_trouble = trouble
            logger.warning(
                "database unavailable: %s",
                trouble,
                extra={"database": str(self._settings.database)},
            )
        return DatabaseTimeout() if out_of_time else DatabaseUnavailable()


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
