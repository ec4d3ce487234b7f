"""Many HTTP clients at once, each with a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from tests.lab.bridge import Bridge

Ask = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def clients(bridge: Bridge, count: int, request: bytes) -> AsyncIterator[list[bytes]]:
    """So many clients that send this; the first lines of the answers that they have got."""
    first_lines: list[bytes] = []

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(request)
        await writer.drain()
        first_lines.append(await reader.readline())

    async with _connected(bridge, count, ask):
        yield first_lines


@contextlib.asynccontextmanager
async def flood(bridge: Bridge, count: int, request: bytes) -> AsyncIterator[Counter[int]]:
    """So many clients that send this again whenever they are answered; the answers' statuses."""
    statuses: Counter[int] = Counter()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            _, _, length = head.lower().partition(b"content-length:")
            await reader.readexactly(int(length.split()[0]))
            statuses[int(head.split()[1])] += 1

    async with _connected(bridge, count, ask):
        yield statuses


@contextlib.asynccontextmanager
async def _connected(bridge: Bridge, count: int, ask: Ask) -> AsyncIterator[None]:
    """So many connections, on each of which `ask` is called once all are there."""
    streams = [await asyncio.open_connection(bridge.host, bridge.port) for _ in range(count)]

    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await ask(reader, writer)

    asking = [asyncio.create_task(use(*stream)) for stream in streams]
    try:
        yield
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for _, writer in streams:
            writer.close()
