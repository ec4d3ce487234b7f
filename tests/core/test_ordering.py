"""Order per device: who leaves when, and what a place that is given up does to the others."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from bridge.core.ordering import DeviceQueues


@pytest.fixture
async def lines() -> DeviceQueues:
    return DeviceQueues()


class Queue:
    """Commands that queue in their device's line and leave when they are told that they may."""

    def __init__(self, lines: DeviceQueues) -> None:
        self._queues = lines
        self.left: list[str] = []

    def command(
        self, name: str, device: str = "a", prepared: asyncio.Event | None = None
    ) -> asyncio.Task[None]:
        """Take a place now; prepare (a query, say); leave in turn."""
        place = ExitStack()
        turn = place.enter_context(self._queues.place(device))

        async def leave() -> None:
            with place:
                if prepared is not None:
                    await prepared.wait()
                await turn.leave(lambda: self.left.append(name))

        return asyncio.create_task(leave())


@pytest.fixture
def queue(lines: DeviceQueues) -> Queue:
    return Queue(lines)


async def settled() -> None:
    """Let everything happen that needs no outside event."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_commands_leave_in_the_order_in_which_they_were_accepted(queue):
    ready = {name: asyncio.Event() for name in "1234"}
    tasks = [queue.command(name, prepared=event) for name, event in ready.items()]
    for name in "4213":
        ready[name].set()
        await settled()
    await asyncio.gather(*tasks)
    assert queue.left == ["1", "2", "3", "4"]


async def test_no_device_waits_for_another(queue):
    never = asyncio.Event()
    stuck = queue.command("a1", "a", never)
    await queue.command("b1", "b")
    assert queue.left == ["b1"]
    stuck.cancel()


async def test_place_may_be_given_up_more_than_once_and_after_it_was_left(lines):
    with lines.place("a") as first, lines.place("a") as second, lines.place("a") as third:
        first.give_up()
        first.give_up()
        await second.leave(lambda: None)
        second.give_up()
        assert await asyncio.wait_for(third.leave(lambda: 3), 1) == 3


async def test_all_whose_turn_has_come_leave_in_one_turn_of_the_loop(queue):
    """Or a long line would wait for as many turns of a busy loop."""
    first = asyncio.Event()
    tasks = [queue.command(str(n), prepared=None if n else first) for n in range(1000)]
    await settled()
    first.set()
    await tasks[0]
    assert queue.left == [str(n) for n in range(1000)]
    await asyncio.gather(*tasks)


async def test_one_that_gave_its_place_up_may_leave_all_the_same_behind_the_others(lines):
    """A duplicate whose first attempt turns out to have sent nothing is executed after all."""
    left: list[str] = []
    with lines.place("a") as first, lines.place("a") as second, lines.place("a") as third:
        second.give_up()
        waiting = asyncio.create_task(third.leave(lambda: left.append("third")))
        await first.leave(lambda: left.append("first"))
        await asyncio.wait_for(second.leave(lambda: left.append("second")), 1)
        await waiting
    assert left == ["first", "third", "second"]
    assert lines._queues == {}


async def test_what_fails_to_leave_is_told_so_and_holds_up_nobody(lines):
    def fail():
        raise ZeroDivisionError

    with lines.place("a") as first, lines.place("a") as second:
        waiting = asyncio.create_task(second.leave(lambda: "left"))
        with pytest.raises(ZeroDivisionError):
            await first.leave(fail)
        assert await asyncio.wait_for(waiting, 1) == "left"


@pytest.mark.parametrize("way", ["fails", "is cancelled", "is cancelled in its turn's queue"])
async def test_one_that_gives_up_lets_nobody_overtake(queue, lines, way):
    first = asyncio.Event()
    tasks = [queue.command("1", prepared=first)]
    if way == "fails":
        with pytest.raises(ZeroDivisionError), lines.place("a"):
            raise ZeroDivisionError
    else:
        ready = asyncio.Event()
        second = queue.command("2", prepared=ready)
        if way == "is cancelled in its turn's queue":
            ready.set()
        await settled()
        second.cancel()
    tasks.append(queue.command("3"))
    await settled()
    assert queue.left == []
    first.set()
    await asyncio.gather(*tasks)
    assert queue.left == ["1", "3"]


async def test_a_thousand_that_give_up_at_once_are_let_go(queue):
    """A chain of callbacks must not become a chain of calls."""
    first = asyncio.Event()
    head = queue.command("first", prepared=first)
    given_up = [queue.command(str(n), prepared=asyncio.Event()) for n in range(1000)]
    last = queue.command("last")
    await settled()
    for task in given_up:
        task.cancel()
    await settled()
    first.set()
    await asyncio.wait_for(asyncio.gather(head, last), 5)
    assert queue.left == ["first", "last"]


async def test_device_is_forgotten_when_nobody_is_in_its_line(queue, lines):
    tasks = [queue.command(str(n), device) for n in range(3) for device in "abc"]
    await asyncio.gather(*tasks)
    await settled()
    assert lines._queues == {}


# Sequences


def test_second_sequence_on_a_device_is_told_of_the_first(lines):
    with lines.sequence("a") as first, lines.sequence("a") as second, lines.sequence("b") as other:
        assert (first, second, other) == (True, False, True)


def test_device_is_free_again_after_a_sequence_failed(lines):
    with pytest.raises(ZeroDivisionError), lines.sequence("a"):
        raise ZeroDivisionError
    with lines.sequence("a") as alone:
        assert alone


async def test_single_commands_pass_while_a_sequence_pauses(queue, lines):
    with lines.sequence("a"):
        await asyncio.wait_for(queue.command("between"), 1)
    assert queue.left == ["between"]
