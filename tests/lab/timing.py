"""Bounds on how long something takes, and waiting for what needs no outside event."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fail if the body takes longer."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


async def settled() -> None:
    """Let everything happen that needs no outside event."""
    for _ in range(20):
        await asyncio.sleep(0)
