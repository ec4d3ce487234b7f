"""Many HTTP clients at once, each with a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.lab.bridge import Bridge


@contextlib.asynccontextmanager
async def clients(bridge: Bridge, count: int, request: bytes) -> AsyncIterator[list[bytes]]:
    """So many clients that send this; the first lines of the answers that they have got."""
    streams = [await asyncio.open_connection(bridge.host, bridge.port) for _ in range(count)]
    first_lines: list[bytes] = []

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
            first_lines.append(await reader.readline())

    asking = [asyncio.create_task(ask(*stream)) for stream in streams]
    try:
        yield first_lines
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for _, writer in streams:
            writer.close()
