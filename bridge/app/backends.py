"""Stores with a life of their own."""

import asyncio
from typing import Protocol

from ..core.context import Drain, Store
from ..core.deadlines import Deadlines
from ..database.idempotency import MysqlIdempotency
from ..database.pool import Database
from ..database.store import MysqlStore
from ..observability.metrics import Metrics
from ..settings import Settings


class Backend(Protocol):
    """A store with a life of its own: the platform's database, or the demo's."""

    @property
    def store(self) -> Store: ...

    @property
    def available(self) -> bool:
        """Whether the last query or probe succeeded."""

    async def watch(self) -> None:
        """Keep `available` true to life, until cancelled."""

    async def close(self) -> None:
        """Cancel the reads that run, and close what it has opened itself."""


class MysqlBackend:
    def __init__(self, settings: Settings, metrics: Metrics, deadlines: Deadlines) -> None:
        self._database = Database(settings, metrics, deadlines)
        self._store = MysqlStore(self._database, settings.db_timeout, metrics)
        self._idempotency: MysqlIdempotency | None = None

    @property
    def store(self) -> MysqlStore:
        return self._store

    @property
    def available(self) -> bool:
        return self._database.available

    def idempotency(
        self, settings: Settings, deadlines: Deadlines, drain: Drain
    ) -> MysqlIdempotency:
        """At most once with `DEDUP_STORE=mysql`."""
        self._idempotency = MysqlIdempotency(self._database, settings, deadlines, drain)
        return self._idempotency

    async def watch(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._database.watch(), name="database probe")
            if self._idempotency is not None:
                tasks.create_task(self._idempotency.sweep(), name="expired ids")

    async def close(self) -> None:
        await self._store.close()
        if self._idempotency is not None:
            await self._idempotency.close()
        await self._database.close()
