"""Connections to the database: how each is made, and those that are open.

`pool.py` gives the reasons for not using asyncmy's own pool.
"""

import asyncio
import logging
import ssl
from collections import deque
from typing import Any

import asyncmy

from ..settings import Settings
from .address import DatabaseAddress, DatabaseTls

logger = logging.getLogger(__name__)

# Below any server's wait_timeout that one meets, so that idle connections are ours to close.
_RECYCLE_SECONDS = 240


class Connections:
    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._address = DatabaseAddress.of(settings)
        self._open: set[Any] = set()
        self._idle: deque[Any] = deque()
        self._closed = False

    def in_use(self) -> int:
        """How many connections execute a statement now."""
        return len(self._open) - len(self._idle)

    async def take(self) -> Any:
        """The connection that was idle longest, so that all stay fresh; or a new one.

        Raises ConnectionError after `close`, TimeoutError, and what asyncmy raises on connecting.
        """
        if self._closed:
            raise ConnectionError("closed by us")
        now = self._loop.time()
        while self._idle:
            connection = self._idle.popleft()
            if now - connection.last_usage < _RECYCLE_SECONDS:
                return connection
            self.cut(connection)
        connection = await self._connect()
        self._open.add(connection)
        return connection

    def give_back(self, connection: Any) -> None:
        """Make it idle; only for connections whose last result was read whole (else `cut`)."""
        if self._closed:
            self.cut(connection)
        else:
            self._idle.append(connection)

    def cut(self, connection: Any) -> None:
        """Close it without a COM_QUIT."""
        self._open.discard(connection)
        connection.close()

    def cut_idle(self) -> None:
        while self._idle:
            self.cut(self._idle.popleft())

    async def close(self, within: float) -> None:
        """Send COM_QUIT on idle connections within so many seconds; then close all."""
        self._closed = True
        leaving = [connection.ensure_closed() for connection in self._idle]
        try:
            async with asyncio.timeout(within):
                await asyncio.gather(*leaving, return_exceptions=True)
        except TimeoutError:
            logger.debug("the database did not close the connections in time")
        self._idle.clear()
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
                unix_socket=address.unix_socket,
                charset=address.charset,
                autocommit=True,
                connect_timeout=timeout,
                init_command=_session(address.charset, timeout),
                # Read anew each time, so that a renewed certificate is taken up.
                ssl=tls_context(self._settings),
            )


def _session(charset: str, seconds: float) -> str:
    """The statement that makes a session ours, whatever the server or a proxy has set up."""
    # SET NAMES again: a server's init_connect runs after the handshake.
    # Executable comments: only MariaDB reads the first, only MySQL from 5.7.8 on the second.
    # A mode of our own: under NO_BACKSLASH_ESCAPES a list that asyncmy escaped can break out.
    return (
        f"SET NAMES {charset}, SESSION sql_mode = 'STRICT_ALL_TABLES'"
        f" /*M!100101 , SESSION max_statement_time = {seconds:.3f} */"
        f" /*!50708 , SESSION max_execution_time = {int(seconds * 1000)} */"
    )


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """The context of `DB_TLS_CA` or `DATABASE_URL`; None for plain TCP.

    It verifies the server, unless `DATABASE_URL` says otherwise. Raises OSError if a file can't be
    used, SettingsError as `DatabaseAddress.of` does.
    """
    # Always a context of our own: asyncmy takes an empty mapping for plaintext, and True for
    # encryption without verification.
    tls = DatabaseAddress.of(settings).tls
    if tls is None and settings.db_tls_ca is None:
        return None
    tls = tls or DatabaseTls()
    context = ssl.create_default_context(cafile=str(tls.ca or settings.db_tls_ca or "") or None)
    context.check_hostname = tls.verify_host and tls.verify
    if not tls.verify:
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    return context
