"""Long work is let through a little in each turn of the loop, first come, first served."""

from __future__ import annotations

import asyncio

import pytest

from bridge.pace import Pace


@pytest.fixture
async def pace() -> Pace:
    return Pace(2)


async def a_turn() -> None:
    await asyncio.sleep(0)


async def test_so_many_go_at_once(pace):
    done: list[int] = []

    async def work(number: int) -> None:
        await pace.keep()
        done.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(7)]
    await a_turn()
    assert done == [0, 1]
    for _ in range(20):
        before = len(done)
        await a_turn()
        assert len(done) - before <= 2
    assert done == list(range(7))
    await asyncio.gather(*tasks)


async def test_one_alone_never_waits(pace):
    for _ in range(10):
        waiting = asyncio.ensure_future(pace.keep())
        await a_turn()
        assert waiting.done()
        await a_turn()


async def test_newcomer_does_not_overtake_those_who_wait(pace):
    done: list[str] = []

    async def work(name: str) -> None:
        await pace.keep()
        done.append(name)

    tasks = [asyncio.create_task(work(f"early {number}")) for number in range(5)]
    await a_turn()
    tasks.append(asyncio.create_task(work("late")))
    await asyncio.gather(*tasks)
    assert done[-1] == "late"


async def test_one_that_was_cancelled_takes_nobodys_place(pace):
    waiting = [asyncio.create_task(pace.keep()) for _ in range(6)]
    await a_turn()
    waiting[2].cancel()
    await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1)
    assert [task.cancelled() for task in waiting] == [False, False, True, False, False, False]
