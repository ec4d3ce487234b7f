"""At most once: what holds with either store (`AnyStore`), and the memory's own bounds.

A command is executed, sent and ended when the test says so; no server is needed here. The same
promises over a real database are in `test_database/idempotency.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
import pytest

from bridge.core.deadlines import Deadlines
from bridge.core.idempotency import (
    CommandId,
    Idempotency,
    MemoryIdempotency,
    fingerprint_of,
    key_of,
)
from bridge.core.replies import Reply
from bridge.devices.errors import DeviceNotFound
from bridge.devices.models import ControlFields, PresetFields
from bridge.errors import Busy, Draining, IdempotencyConflict, OutcomeUnknown

T = TypeVar("T")
Ask = Callable[..., "Asked"]


class Asked:
    """One attempt at a command under an id; it is executed, sent and ended as the test says."""

    def __init__(
        self, store: Idempotency, request_id: str, asks: bytes, seconds: float, share: str
    ) -> None:
        self.store, self.asks = store, asks
        self.key = key_of("requester", request_id)
        self.command = CommandId(self.key, asks, share)
        self.deadline = asyncio.get_running_loop().time() + seconds
        self.has_left = False
        self.duplicate = False
        self.begun = asyncio.Event()
        self.executed = 0
        self._end: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def answered(self) -> asyncio.Task[Reply]:
        return asyncio.create_task(soon(self._answered()))

    async def _answered(self) -> Reply:
        outcome = await self.store.execute(self.command, self)
        self.duplicate = outcome.duplicate
        return outcome.reply

    def recalled(self) -> asyncio.Task[Reply | None]:
        return asyncio.create_task(soon(self.store.recall(self.command, self)))

    def step_aside(self) -> None:
        self.duplicate = True

    async def run(self) -> Reply:
        self.executed += 1
        self.begun.set()
        return await self._end

    def send(self) -> None:
        self.has_left = True

    def end(self, outcome: Reply | Exception) -> None:
        if isinstance(outcome, Reply):
            self._end.set_result(outcome)
        else:
            self._end.set_exception(outcome)

    async def under_way(self) -> asyncio.Task[Reply]:
        """Its answer to come; it has begun and sent nothing yet."""
        task = self.answered()
        await self.begun.wait()
        return task

    async def sent(self, reply: Reply) -> Reply:
        """Its answer; if it is the one to be executed, it sends and ends so."""
        self.send()
        self.end(reply)
        return await self.answered()


async def soon(outcome: Awaitable[T]) -> T:
    """What is awaited; one that is executed although it should not be would never end."""
    async with asyncio.timeout(10):
        return await outcome


def said(text: str) -> Reply:
    return Reply(200, {"said": text})


def is_unknown(reply: Reply | None) -> bool:
    return reply is not None and (reply.code, reply.error) == (504, "outcome_unknown")


async def settled() -> None:
    """Let everything happen that needs no outside event."""
    for _ in range(20):
        await asyncio.sleep(0)


class AnyStore:
    """What holds whatever the store; the fixture `ask` makes requests to one with a TTL of 0.

    So an outcome is kept as long as its request's own time, which a test may end.
    """

    async def test_duplicate_gets_the_same_answer_and_is_not_executed(self, ask):
        assert await ask().sent(said("first")) == said("first")
        for _ in range(3):
            again = ask()
            assert await again.answered() == said("first")
            assert again.executed == 0
            assert again.duplicate

    async def test_duplicate_that_comes_meanwhile_waits_for_the_first(self, ask):
        first = ask()
        answer = await first.under_way()
        others = [ask() for _ in range(3)]
        waiting = [other.answered() for other in others]
        await settled()
        assert not any(task.done() for task in waiting)
        first.send()
        first.end(said("first"))
        assert await asyncio.gather(answer, *waiting) == [said("first")] * 4
        assert [other.executed for other in others] == [0] * 3

    async def test_refusal_before_anything_was_sent_is_told_to_all_and_not_kept(self, ask):
        first, other = ask(), ask()
        answer = await first.under_way()
        waiting = other.answered()
        await settled()
        first.end(Reply(404, error="device_not_found"))
        assert (await answer).code == (await waiting).code == 404
        assert await ask().sent(said("second")) == said("second")

    async def test_fault_before_anything_was_sent_is_told_to_all_and_not_kept(self, ask):
        first, other = ask(), ask()
        answer = await first.under_way()
        waiting = other.answered()
        await settled()
        first.end(DeviceNotFound())
        for task in (answer, waiting):
            with pytest.raises(DeviceNotFound):
                await task
        assert await ask().sent(said("second")) == said("second")

    async def test_other_request_under_the_same_id_is_refused(self, ask):
        running = ask()
        answer = await running.under_way()
        for state in ("running", "kept"):
            for way in (Asked.answered, Asked.recalled):
                with pytest.raises(IdempotencyConflict):
                    await way(ask(asks=b"something else!!"))
            if state == "running":
                running.send()
                running.end(said("first"))
                await answer

    @pytest.mark.parametrize("how", ["fault", "cancellation"])
    async def test_command_that_left_without_an_outcome_is_unknown_and_never_sent_again(
        self, ask, how
    ):
        first, other = ask(), ask()
        answer = await first.under_way()
        waiting = other.answered()
        await settled()
        first.send()
        if how == "fault":
            first.end(IndexError("of a driver"))
        else:
            answer.cancel()
        with pytest.raises((IndexError, asyncio.CancelledError)):
            await answer
        assert is_unknown(await waiting)
        again = ask()
        assert is_unknown(await again.answered())
        assert is_unknown(await ask().recalled())
        assert other.executed == again.executed == 0

    async def test_those_who_wait_for_one_that_was_cancelled_unsent_may_try_again(self, ask):
        first = ask()
        answer = await first.under_way()
        waiting = [ask().answered(), ask().recalled()]
        await settled()
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        for task in waiting:
            with pytest.raises(Draining):
                await task
        assert await ask().sent(said("second")) == said("second")

    async def test_one_who_waits_and_is_cancelled_disturbs_nobody(self, ask):
        first = ask()
        answer = await first.under_way()
        gone, stays = ask().answered(), ask().answered()
        await settled()
        gone.cancel()
        await settled()
        first.send()
        first.end(said("first"))
        assert await answer == await stays == said("first")
        assert gone.cancelled()

    async def test_one_whose_time_ends_as_it_waits_is_told_that_the_outcome_is_unknown(self, ask):
        first = ask()
        answer = await first.under_way()
        for way in (Asked.answered, Asked.recalled):
            with pytest.raises(OutcomeUnknown):
                await way(ask(seconds=0.05))
        first.send()
        first.end(said("first"))
        assert await answer == said("first")
        assert await ask().answered() == said("first")

    async def test_reply_that_cannot_be_written_down_is_kept_as_unknown(self, ask):
        deep: Any = "bottom"
        for _ in range(300):
            deep = {"": deep}
        reply = Reply(200, deep)
        assert await ask().sent(reply) is reply
        assert is_unknown(await ask().answered())

    async def test_outcome_is_kept_for_its_time_and_then_it_is_executed_anew(self, ask):
        first = ask()
        answer = await first.under_way()
        # Its own time is over as it ends, and the store's is 0.
        first.deadline = 0.0
        first.send()
        first.end(said("first"))
        assert await answer == said("first")
        await asyncio.sleep(0.01)
        assert await ask().recalled() is None
        assert await ask().sent(said("second")) == said("second")
        assert await ask().answered() == said("second")

    async def test_recall_knows_what_is_kept_and_waits_for_what_runs(self, ask):
        unknown = ask()
        assert await unknown.recalled() is None
        assert not unknown.duplicate
        first = ask()
        answer = await first.under_way()
        running = ask()
        waiting = running.recalled()
        await settled()
        assert not waiting.done()
        first.send()
        first.end(said("first"))
        assert await answer == await waiting == await ask().recalled() == said("first")
        assert running.duplicate

    async def test_ids_do_not_meddle_with_each_other(self, ask):
        asked = [ask(f"id {number}") for number in range(50)]
        replies = [said(f"answer {number}") for number in range(50)]
        both = list(zip(asked, replies, strict=True))
        assert await asyncio.gather(*(one.sent(reply) for one, reply in both)) == replies
        shuffled = random.Random(7).sample(range(50), 50)
        again = await asyncio.gather(*(ask(f"id {number}").recalled() for number in shuffled))
        assert again == [replies[number] for number in shuffled]


def asking(store: Idempotency) -> Ask:
    """Makes attempts; alike, unless the test says otherwise."""

    def ask(
        request_id: str = "1",
        asks: bytes = b"to switch it on.",
        seconds: float = 8,
        share: str = "",
    ) -> Asked:
        return Asked(store, request_id, asks, seconds, share)

    return ask


def memory(ttl: float, **bounds: int) -> MemoryIdempotency:
    return MemoryIdempotency(ttl, Deadlines(), "zh", **bounds)


class TestMemory(AnyStore):
    @pytest.fixture
    async def ask(self) -> Ask:
        return asking(memory(0.0))


# The memory's bounds


async def filled(once: MemoryIdempotency, ask: Ask, count: int, reply: Reply) -> None:
    for number in range(count):
        await ask(f"id {number}").sent(reply)


async def test_new_ids_are_refused_when_the_memory_is_full_and_old_ones_are_still_known():
    once = memory(300, most_entries=40)
    ask = asking(once)
    await filled(once, ask, 10, said("kept"))
    late = ask("late")
    with pytest.raises(Busy):
        await late.answered()
    assert late.executed == 0
    assert [await ask(f"id {number}").answered() for number in range(10)] == [said("kept")] * 10


@pytest.mark.parametrize("bound", [{"most_entries": 40}, {"most_bytes": 16000}])
async def test_what_runs_takes_room_too(bound):
    ask = asking(memory(300, **bound))
    running = [ask(f"id {number}") for number in range(10)]
    answers = [await one.under_way() for one in running]
    with pytest.raises(Busy):
        await ask("late").answered()
    for one in running:
        one.end(Reply(404))
    await asyncio.gather(*answers)
    assert await ask("late").sent(said("well")) == said("well")


@pytest.mark.parametrize("text", ["", "x" * 10_000])
async def test_bytes_are_bounded_however_small_or_large_the_replies(text):
    ask = asking(memory(300, most_bytes=4_000_000))
    size = len(said(text).dump())
    fitting = 0
    with pytest.raises(Busy):
        while fitting <= 1_000_000 / size:
            await ask(f"id {fitting}").sent(said(text))
            fitting += 1
    assert 1_000_000 / (size + 600) < fitting < 1_000_000 / (size + 200)


async def test_share_that_is_used_up_rejects_its_own_requesters_alone():
    once = memory(300, most_entries=40)
    ask = asking(once)
    for number in range(10):
        await ask(f"id {number}", share="loud").sent(said("kept"))
    with pytest.raises(Busy):
        await ask("one more", share="loud").answered()
    for share in ("quiet", ""):
        assert await ask(f"of {share}", share=share).sent(said("well")) == said("well")


async def test_small_share_grows_though_all_is_used_up():
    once = memory(300, most_entries=40)
    ask = asking(once)
    for number in range(40):
        await ask(f"id {number}", share=f"loud {number % 4}").sent(said("kept"))
    assert await ask("another", share="quiet").sent(said("well")) == said("well")


async def test_clients_without_end_are_bounded_and_lock_no_key_out():
    once = memory(300, most_entries=600)
    ask = asking(once)
    for number in range(600):
        await ask(f"id {number}", share=f"mqtt:client {number}").sent(said("kept"))
    for share in ("mqtt:client 1", "mqtt:another"):
        with pytest.raises(Busy):
            await ask(f"more of {share}", share=share).answered()
    for number in range(2):
        asked = ask(f"of the key {number}", share="http:school")
        assert await asked.sent(said("well")) == said("well")


async def test_what_has_expired_makes_room():
    once = memory(0.0, most_entries=400)
    ask = asking(once)
    for number in range(1000):
        asked = ask(f"id {number}")
        asked.deadline = 0.0
        assert await asked.sent(said("well")) == said("well")


async def test_what_is_kept_elsewhere_goes_first_when_room_is_short():
    once = memory(300, most_entries=800)
    ask = asking(once)
    for number in range(1000):
        asked = ask(f"id {number}")
        answer = await asked.under_way()
        if number >= 100:
            once.note_kept_elsewhere(asked.key)
        asked.send()
        asked.end(said(f"answer {number}"))
        await answer
    # The first hundred are nowhere else; of the others the latest are still here.
    for number in (*range(100), *range(910, 1000)):
        assert await ask(f"id {number}").recalled() == said(f"answer {number}")
    assert await ask("id 500").recalled() is None


# What makes requests the same


def test_order_of_keys_makes_no_difference():
    keys = [f"parameter {number}" for number in range(20)]
    orders = [random.Random(seed).sample(keys, 20) for seed in range(5)]
    prints = {
        fingerprint_of("preset", preset({key: {"x": 1, "y": [key]} for key in order}))
        for order in orders
    }
    assert len(prints) == 1


def test_order_of_keys_makes_no_difference_where_json_ends():
    one = {"a": 2**70, "b": {"c": 1, "d": [2**65]}}
    other = {"b": {"d": [2**65], "c": 1}, "a": 2**70}
    assert fingerprint_of("preset", preset(one)) == fingerprint_of("preset", preset(other))


def deep(levels: int) -> Any:
    return orjson.loads(b'{"a":' * levels + b"1" + b"}" * levels)


ODD = [
    None,
    {},
    {"n": 1},
    {"n": 1.0},
    {"n": "1"},
    {"n": True},
    {"n": None},
    {"n": [1, 2]},
    {"n": [2, 1]},
    {"n": [[1], 2]},
    {"n": {"1": 2}},
    {"n": 2**64},
    {"n": 2**64 + 1},
    {"n": -(2**64)},
    {"n": 10**5000},
    {"n": [2**64, "x"]},
    {"n": ["x", 2**64]},
    {"n": {"a": 2**64}, "m": {}},
    {"n": {"a": 2**64, "m": {}}},
    {"n": "\ud800"},
    {"n": "\ud801"},
    {"\ud800": 1},
    {"n": float("inf"), "m": 2**64},
    deep(900),
    deep(901),
]


def test_whatever_is_asked_has_a_fingerprint_of_its_own():
    prints = [fingerprint_of("preset", preset(parameters)) for parameters in ODD]
    prints.append(fingerprint_of("other", preset(None)))
    assert len(set(prints)) == len(ODD) + 1
    assert {len(one) for one in prints} == {16}


def test_spelling_of_a_field_makes_no_difference():
    plain = {"device_uuid": "d", "port_type": "led", "action": "on"}
    prints = {
        fingerprint_of("control", ControlFields.model_validate({**plain, "port_id": port_id}))
        for port_id in (1, "1")
    }
    assert len(prints) == 1


def preset(parameters: Any) -> PresetFields:
    # As it is: what pydantic lets through is not the question.
    return PresetFields.model_construct(device_uuid="d", preset_key="p", parameters=parameters)
