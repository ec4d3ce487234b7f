"""The memory of a process, watched while a test does something to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tests.lab.servers import Server

_EVERY_SECONDS = 0.02


@dataclass
class Memory:
    """Resident memory in bytes: before, and the most that was seen since."""

    before: int
    most: int

    @property
    def growth(self) -> float:
        """The most that it grew by, in MiB."""
        return (self.most - self.before) / 2**20


@contextlib.asynccontextmanager
async def watched(server: Server) -> AsyncIterator[Memory]:
    """Watch a server's memory until the block ends."""
    before = server.rss_bytes
    memory = Memory(before, before)

    async def look() -> None:
        while True:
            memory.most = max(memory.most, server.rss_bytes)
            await asyncio.sleep(_EVERY_SECONDS)

    looking = asyncio.create_task(look(), name="memory")
    try:
        yield memory
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        memory.most = max(memory.most, server.rss_bytes)
