"""One statement for many reads, against a `load` that answers when the test says so."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

from bridge.core.deadlines import Deadlines
from bridge.database.batch_loader import LANES, BatchLoader
from bridge.errors import DatabaseTimeout, DatabaseUnavailable
from tests.lab.timing import at_most, settled


class Loads:
    """A `load` whose statements end when the test says so; it keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.deadlines: list[float] = []
        self.ends: list[asyncio.Future[Mapping[str, str]]] = []

    async def __call__(self, keys: Sequence[str], deadline: float) -> Mapping[str, str]:
        self.asked.append(tuple(keys))
        self.deadlines.append(deadline)
        end: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()
        self.ends.append(end)
        return await end

    def answer(self, number: int, word: str = "", leave_out: str = "") -> None:
        """End a statement with `<key>=<word>` for each of its keys."""
        self.ends[number].set_result(
            {key: f"{key}={word}" for key in self.asked[number] if key != leave_out}
        )


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
async def together(loads: Loads) -> AsyncIterator[BatchLoader[str, str]]:
    together = BatchLoader[str, str](loads, 5.0, Deadlines())
    yield together
    await together.close()


async def all_lanes_taken(together: BatchLoader[str, str]) -> list[asyncio.Task[str | None]]:
    """Start as many statements as may be under way at once."""
    tasks = []
    for lane in range(LANES):
        tasks.append(asyncio.create_task(together.get(f"lane{lane}")))
        await settled()
    return tasks


async def ask(together: BatchLoader[str, str], *keys: str) -> list[asyncio.Task[str | None]]:
    tasks = [asyncio.create_task(together.get(key)) for key in keys]
    await settled()
    return tasks


async def test_first_request_goes_at_once(together, loads):
    (task,) = await ask(together, "a")
    assert loads.asked == [("a",)]
    loads.answer(0, "1")
    assert await task == "a=1"


async def test_requests_that_arrive_meanwhile_share_one_statement(together, loads):
    first = await all_lanes_taken(together)
    later = await ask(together, "a", "b", "a", "c")
    assert len(loads.asked) == LANES
    loads.answer(0, "1")
    await settled()
    assert loads.asked[LANES:] == [("a", "b", "c")]
    loads.answer(LANES, "2")
    assert await asyncio.gather(*later) == ["a=2", "b=2", "a=2", "c=2"]
    for lane in range(1, LANES):
        loads.answer(lane, "1")
    assert await asyncio.gather(*first) == [f"lane{lane}=1" for lane in range(LANES)]


async def test_key_without_a_row_is_none(together, loads):
    tasks = await ask(together, "a", "b")
    loads.answer(0, "1", leave_out="b")
    assert await asyncio.gather(*tasks) == ["a=1", None]


async def test_no_answer_is_older_than_its_question(together, loads):
    before = await ask(together, "a")
    after = await ask(together, "a")
    assert loads.asked == [("a",), ("a",)]
    loads.answer(1, "new")
    loads.answer(0, "old")
    assert await asyncio.gather(*before, *after) == ["a=old", "a=new"]


async def test_question_asked_as_the_lanes_end_is_not_answered_by_them(together, loads):
    await all_lanes_taken(together)
    loads.answer(0, "old")
    # In the same turn of the loop in which the statement ends.
    asking = asyncio.create_task(together.get("lane0"))
    await settled()
    loads.answer(LANES, "new")
    assert await asking == "lane0=new"


async def test_failure_reaches_everyone_who_waits_for_that_statement_and_nobody_else(
    together, loads
):
    first = await ask(together, "a", "a", "b")
    second = await ask(together, "a")
    loads.ends[0].set_exception(DatabaseUnavailable())
    loads.answer(1, "well")
    outcomes = await asyncio.gather(*first, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * 3
    assert await asyncio.gather(*second) == ["a=well"]


async def test_statement_goes_on_after_a_failure(together, loads):
    await all_lanes_taken(together)
    waiting = await ask(together, "a")
    for lane in range(LANES):
        loads.ends[lane].set_exception(DatabaseUnavailable())
    await settled()
    loads.answer(LANES, "1")
    assert await asyncio.gather(*waiting) == ["a=1"]


@pytest.mark.parametrize("when", ["under way", "still waiting"])
async def test_one_who_goes_away_does_not_disturb_the_others(together, loads, when):
    if when == "still waiting":
        await all_lanes_taken(together)
    gone, stays, other = await ask(together, "a", "a", "b")
    gone.cancel()
    await settled()
    if when == "still waiting":
        loads.answer(0)
        await settled()
    loads.answer(-1 if when == "still waiting" else 0, "1")
    assert await asyncio.gather(stays, other) == ["a=1", "b=1"]
    assert gone.cancelled()


async def test_one_who_went_away_makes_no_noise_when_the_statement_fails(together, loads, caplog):
    gone, stays = await ask(together, "a", "a")
    gone.cancel()
    await settled()
    loads.ends[0].set_exception(DatabaseUnavailable())
    with pytest.raises(DatabaseUnavailable):
        await stays
    await settled()
    assert caplog.text == ""


async def test_those_behind_statements_that_hang_are_answered_in_time(loads):
    together = BatchLoader[str, str](loads, 0.2, Deadlines())
    hung = await all_lanes_taken(together)
    behind = await ask(together, "a", "b")
    with at_most(1):
        outcomes = await asyncio.gather(*behind, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DatabaseTimeout] * 2
    again = await ask(together, "a")
    loads.answer(0)
    await settled()
    loads.answer(LANES, "1")
    assert await asyncio.gather(*again) == ["a=1"]
    await together.close()
    await asyncio.gather(*hung, return_exceptions=True)


async def test_no_statement_is_sent_for_those_who_were_given_up_in_that_very_turn(loads):
    # Overdue at once, though `Deadlines` looks only from time to time.
    together = BatchLoader[str, str](loads, 0.0, Deadlines())
    await all_lanes_taken(together)
    (waiting,) = await ask(together, "a")
    lane = next(iter(together._under_way))
    # After the lane's own callback, which begins the next statement, and before that has begun.
    lane.add_done_callback(lambda _: together._give_up())
    for end in loads.ends:
        end.set_result({})
    with pytest.raises(DatabaseTimeout):
        await waiting
    await settled()
    assert () not in loads.asked
    await together.close()


async def test_only_those_who_waited_too_long_are_given_up(loads):
    together = BatchLoader[str, str](loads, 0.4, Deadlines())
    hung = await all_lanes_taken(together)
    (early,) = await ask(together, "a")
    await asyncio.sleep(0.2)
    (late,) = await ask(together, "b")
    with pytest.raises(DatabaseTimeout):
        await early
    assert not late.done()
    loads.answer(0)
    await settled()
    assert loads.asked[LANES:] == [("b",)]
    loads.answer(LANES, "1")
    assert await late == "b=1"
    await together.close()
    await asyncio.gather(*hung, return_exceptions=True)


async def test_queue_that_never_empties_fails_nobody_who_waits_shortly(loads):
    """The keys of two are more than one statement holds, so that one is always left over."""
    together = BatchLoader[tuple[str, int], str](loads, 0.3, Deadlines())
    keys = 1024

    async def ask_again_and_again(name: str) -> None:
        while not over.is_set():
            await together.get_all([(name, number) for number in range(keys)])

    async def answer_each() -> None:
        for number in itertools.count():
            while len(loads.ends) <= number:
                await asyncio.sleep(0.005)
            loads.ends[number].set_result({})

    over = asyncio.Event()
    answering = asyncio.create_task(answer_each())
    asking = [asyncio.create_task(ask_again_and_again(str(n))) for n in range(LANES + 2)]
    await asyncio.sleep(0.8)
    over.set()
    assert await asyncio.gather(*asking) == [None] * (LANES + 2)
    answering.cancel()


async def test_many_keys_of_one_request_are_answered_in_their_order(together, loads):
    asking = together.get_all(["b", "a", "b", "none"])
    await settled()
    assert loads.asked == [("b", "a", "none")]
    loads.answer(0, "1", leave_out="none")
    assert await asking == ["b=1", "a=1", "b=1", None]


async def test_statement_has_what_is_left_of_its_oldest_requests_time(loads):
    together = BatchLoader[str, str](loads, 2.0, Deadlines())
    now = asyncio.get_running_loop().time()
    await all_lanes_taken(together)
    await ask(together, "a")
    await asyncio.sleep(0.3)
    await ask(together, "b")
    loads.answer(0)
    await settled()
    assert loads.asked[LANES] == ("a", "b")
    assert loads.deadlines[0] == pytest.approx(now + 2.0, abs=0.15)
    assert loads.deadlines[LANES] == pytest.approx(now + 2.0, abs=0.15)
    await together.close()


async def test_statement_does_not_pay_for_the_age_of_those_who_go_before(loads):
    together = BatchLoader[Any, str](loads, 2.0, Deadlines())
    await all_lanes_taken(together)
    # As many keys as one statement holds.
    together.get_all([f"a{number}" for number in range(1024)])
    await asyncio.sleep(0.3)
    now = asyncio.get_running_loop().time()
    await ask(together, "b")
    for lane in range(2):
        loads.answer(lane)
        await settled()
    assert [asked[0] for asked in loads.asked[LANES:]] == ["a0", "b"]
    assert loads.deadlines[LANES:] == [
        pytest.approx(now - 0.3 + 2.0, abs=0.1),
        pytest.approx(now + 2.0, abs=0.1),
    ]
    await together.close()


async def test_closing_leaves_nobody_waiting(together, loads):
    waiting = [*await all_lanes_taken(together), *await ask(together, "a", "b")]
    await together.close()
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * (LANES + 2)
    assert len(loads.asked) == LANES
