"""Time limits kept by one timer: they end what waits, and nothing else."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

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


class Clocks:
    """A loop's clock, and that of the process: its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.worked = 1000.0, 5.0
        loop = Mock(wraps=asyncio.get_running_loop(), time=lambda: self.now)
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
        monkeypatch.setattr("time.process_time", lambda: self.worked)

    def pass_by(self, seconds: float, *, at_work: float = 0.0) -> None:
        self.now += seconds
        self.worked += at_work


async def test_what_is_read_after_a_sleep_counts_from_before_it(monkeypatch):
    clocks = Clocks(monkeypatch)
    deadlines = Deadlines()
    assert deadlines.came() == 1000
    clocks.pass_by(3)
    assert deadlines.came() == 1000
    clocks.pass_by(0.3)
    assert deadlines.came() == 1000
    # Asleep again before all was read.
    clocks.pass_by(3)
    assert deadlines.came() == 1000
    clocks.pass_by(0.4)
    assert deadlines.came() == 1000
    deadlines._look()
    clocks.pass_by(0.4)
    deadlines._look()
    clocks.pass_by(0.4)
    assert deadlines.came() == clocks.now


async def test_what_is_read_after_long_work_counts_from_now(monkeypatch):
    clocks = Clocks(monkeypatch)
    deadlines = Deadlines()
    clocks.pass_by(3, at_work=2)
    assert deadlines.came() == 1003
