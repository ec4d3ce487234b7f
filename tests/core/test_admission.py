"""Admission: places, waiters in order, and duplicates beside them."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import pytest

from bridge.core.admission import Admission
from bridge.errors import Busy


async def test_places_are_given_until_all_are_taken():
    admission = Admission(2, wait_seconds=0.01)
    first, _ = await admission.enter(), await admission.enter()
    assert admission.in_flight == 2
    with pytest.raises(Busy):
        await admission.enter()
    first.release()
    first.release()
    assert admission.in_flight == 1
    await admission.enter()


async def test_waiters_get_places_in_the_order_of_their_arrival():
    admission = Admission(1, wait_seconds=5)
    place = await admission.enter()
    order: list[int] = []

    async def enter(number: int) -> None:
        waited = await admission.enter()
        order.append(number)
        waited.release()

    waiting = [asyncio.create_task(enter(number)) for number in range(5)]
    await asyncio.sleep(0)
    place.release()
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3, 4]
    assert admission.in_flight == 0


async def test_newcomer_does_not_overtake_waiters():
    admission = Admission(1, wait_seconds=5)
    place = await admission.enter()
    waiting = asyncio.create_task(admission.enter())
    await asyncio.sleep(0)
    place.release()
    newcomer = asyncio.create_task(admission.enter())
    (await waiting).release()
    (await newcomer).release()
    assert admission.in_flight == 0


async def test_cancelled_waiter_takes_no_place():
    admission = Admission(1, wait_seconds=5)
    place = await admission.enter()
    before, after = (asyncio.create_task(admission.enter()) for _ in range(2))
    await asyncio.sleep(0)
    before.cancel()
    await asyncio.gather(before, return_exceptions=True)
    place.release()
    after.cancel()
    await asyncio.gather(after, return_exceptions=True)
    assert admission.in_flight == 0


async def test_waiting_duplicate_leaves_its_place_to_others():
    admission = Admission(1, wait_seconds=0.01)
    duplicate = await admission.enter()
    duplicate.step_aside()
    other = await admission.enter()
    with pytest.raises(Busy):
        other.step_aside()
    duplicate.release()
    other.step_aside()
    assert admission.in_flight == 0


async def test_duplicates_of_one_share_leave_room_for_those_of_others():
    admission = Admission(8)
    places = [await admission.enter() for _ in range(5)]
    for place in places[:2]:
        place.step_aside("http:pupil")
    with pytest.raises(Busy):
        places[2].step_aside("http:pupil")
    places[3].step_aside("http:teacher")
    places[0].release()
    places[2].step_aside("http:pupil")


async def test_overdue_waiters_are_rejected_over_several_turns_of_the_loop():
    """A turn that rejects all of them would be long for the requests that have a place."""
    admission = Admission(1, wait_seconds=0.01)
    place = await admission.enter()
    waiting = [asyncio.create_task(admission.enter(asks_again=True)) for _ in range(100)]
    most = rejected = 0
    while rejected < len(waiting):
        await asyncio.sleep(0)
        before, rejected = rejected, sum(task.done() for task in waiting)
        most = max(most, rejected - before)
    assert 0 < most < 20
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Busy}
    place.release()
    assert admission.in_flight == 0


async def test_overdue_waiters_whose_clients_do_not_ask_again_are_rejected_at_once():
    admission = Admission(1, wait_seconds=0.01)
    await admission.enter()
    waiting = [asyncio.create_task(admission.enter()) for _ in range(100)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Busy}


async def test_rejected_waiter_leaves_its_request_to_no_garbage_collector():
    """In a flood there are thousands of them, and each request may be large."""
    admission = Admission(1, wait_seconds=0.01)
    await admission.enter()

    class Asked:
        """Stands for a request."""

    async def ask() -> weakref.ref[Asked]:
        asked = Asked()
        with pytest.raises(Busy):
            await admission.enter()
        return weakref.ref(asked)

    gc.disable()
    try:
        asked = await asyncio.create_task(ask())
        assert asked() is None
    finally:
        gc.enable()


async def test_place_goes_to_the_first_waiter_that_is_not_overdue():
    admission = Admission(1, wait_seconds=0.01)
    place = await admission.enter()
    overdue = asyncio.create_task(admission.enter())
    in_time = asyncio.create_task(admission.enter(asyncio.get_running_loop().time() + 5))
    await asyncio.sleep(0)
    # A turn of the event loop that takes long.
    time.sleep(0.02)
    place.release()
    (await in_time).release()
    with pytest.raises(Busy):
        await overdue
    assert admission.in_flight == 0


async def test_request_that_has_waited_before_does_not_wait_again():
    admission = Admission(1, wait_seconds=0.25)
    long_ago = asyncio.get_running_loop().time() - 1
    place = await admission.enter(long_ago)
    with pytest.raises(Busy):
        await admission.enter(long_ago)
    place.release()
    await admission.enter(long_ago)


async def test_narrow_admission_takes_a_part_of_the_places_and_gives_all_of_them_back():
    batches = Admission(1, wait_seconds=0.01)
    admission = Admission(3, wait_seconds=0.01, narrow={"batch": batches}.get)
    batch = await admission.enter_for("batch")
    with pytest.raises(Busy):
        await admission.enter_for("batch")
    others = [await admission.enter_for("control"), await admission.enter_for("control")]
    batch.release()
    batch.release()
    assert (admission.in_flight, batches.in_flight) == (2, 0)
    others.append(await admission.enter_for("control"))
    with pytest.raises(Busy):
        # There is room among the batches, but none in all.
        await admission.enter_for("batch")
    assert batches.in_flight == 0
    for place in others:
        place.release()
    assert admission.in_flight == 0


async def test_duplicate_that_steps_aside_gives_its_place_in_the_narrow_admission_back():
    presets = Admission(1, wait_seconds=0.01)
    admission = Admission(4, wait_seconds=0.01, narrow={"preset": presets}.get)
    duplicate = await admission.enter_for("preset")
    duplicate.step_aside()
    first = await admission.enter_for("preset")
    duplicate.release()
    assert (admission.in_flight, presets.in_flight) == (1, 1)
    first.release()
    assert (admission.in_flight, presets.in_flight) == (0, 0)


@pytest.mark.parametrize(("operation", "most"), [("batch", 2), ("devices", 2), ("preset", 8)])
async def test_operations_that_keep_their_places_long_leave_places_to_others(
    operation: str, most: int
):
    admission = Admission.for_requests(16)
    for _ in range(most):
        await admission.enter_for(operation)
    with pytest.raises(Busy):
        await admission.enter_for(operation)
    for _ in range(16 - most):
        await admission.enter_for("sensor-data")
