"""Time limits kept by one timer: they end what waits, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from bridge.core.deadlines import RESOLUTION, Deadlines


async def test_body_that_waits_past_its_limit_is_ended():
    deadlines = Deadlines()
    with pytest.raises(TimeoutError), deadlines.until(asyncio.get_running_loop().time() + 0.01):
        await asyncio.Event().wait()


async def test_body_that_ends_in_time_is_left_alone():
    deadlines = Deadlines()
    with deadlines.until(asyncio.get_running_loop().time() + 5):
        await asyncio.sleep(0)


async def test_cancellation_from_outside_stays_one():
    deadlines = Deadlines()

    async def wait() -> None:
        with deadlines.until(asyncio.get_running_loop().time() + 5):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_entry_is_called_once_after_its_time_and_never_when_cancelled():
    deadlines = Deadlines()
    loop = asyncio.get_running_loop()
    called: list[str] = []
    over = loop.create_future()
    deadlines.call_at(loop.time(), lambda: called.append("first"))
    cancelled = deadlines.call_at(loop.time(), lambda: called.append("cancelled"))
    deadlines.call_at(loop.time() + RESOLUTION, lambda: over.set_result(None))
    deadlines.cancel(cancelled)
    await asyncio.wait_for(over, 5)
    assert called == ["first"]


async def test_limits_set_and_to_come_end_by_the_end_of_a_drain():
    deadlines = Deadlines()
    loop = asyncio.get_running_loop()
    far = loop.time() + 1000

    async def wait() -> None:
        with deadlines.until(far):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    deadlines.end_by(loop.time())
    with pytest.raises(TimeoutError):
        await task
    assert deadlines.has_passed(far)
