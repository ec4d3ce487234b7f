"""What the link does with packets that it has read: in order, a few in each turn of the loop."""

from __future__ import annotations

import asyncio
import time

import pytest

from bridge.link import inbox as inbox_module
from bridge.link import packets as wire
from bridge.link.inbox import SLEPT_SECONDS, Inbox


class Taken:
    """An inbox, and what it has handed on."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.came: list[float] = []
        self.pubacks: list[int] = []
        self.broken: list[wire.MalformedPacketError] = []
        self.room = 0
        self.inbox = Inbox(
            self._take,
            lambda packet_id, _: self.pubacks.append(packet_id),
            self.broken.append,
            self._has_room,
        )

    def _take(self, first: int, body: bytes, came: float, read: float) -> None:
        self.payloads.append(wire.read_publish(first, body, with_properties=True).payload)
        self.came.append(came)
        assert came <= read <= time.monotonic()

    def _has_room(self) -> None:
        self.room += 1


@pytest.fixture
async def taken() -> Taken:
    return Taken()


def message(payload: bytes) -> bytes:
    return wire.publish(b"t", payload, qos=0, retain=False, packet_id=0, properties=b"")


async def test_flood_is_taken_whole_and_in_order_over_several_turns(taken):
    flood = [b"%d" % number for number in range(3000)]
    taken.inbox.feed(b"".join(map(message, flood)), all_read=True)
    turns = 0
    while len(taken.payloads) < 3000:
        before = len(taken.payloads)
        await asyncio.sleep(0)
        assert len(taken.payloads) - before <= 256, "too much for one turn"
        turns += 1
    assert taken.payloads == flood
    assert turns > 9


async def test_few_are_taken_at_once(taken):
    taken.inbox.feed(message(b"a") + message(b"b"), all_read=True)
    assert taken.payloads == [b"a", b"b"]


async def test_pubacks_overtake_the_messages_before_them(taken):
    """They let replies go; behind the requests that these answer they would wait for themselves."""
    taken.inbox.feed(message(b"x") * 1000 + wire.puback(7), all_read=True)
    assert taken.pubacks == [7]
    assert len(taken.payloads) < 1000


async def test_nothing_comes_after_the_connection_was_lost(taken):
    taken.inbox.feed(message(b"x") * 1000, all_read=True)
    taken.inbox.clear()
    before = len(taken.payloads)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(taken.payloads) == before


async def test_bytes_that_are_no_mqtt_are_told(taken):
    taken.inbox.feed(b"\x30\xff\xff\xff\xff\xff", all_read=True)
    taken.inbox.feed(b"\x30\x02\xff\xff", all_read=True)
    assert len(taken.broken) == 2


async def test_inbox_that_was_full_says_when_it_has_room(taken, monkeypatch):
    monkeypatch.setattr(inbox_module, "_MOST_BYTES", 5000)
    taken.inbox.feed(message(b"x" * 100) * 3000, all_read=True)
    assert taken.inbox.is_full
    assert not taken.room
    while taken.inbox.is_full:
        await asyncio.sleep(0)
    assert taken.room == 1


async def test_message_that_was_read_late_came_when_it_had_not_been_there_last(taken):
    taken.inbox.feed(message(b"a"), all_read=True)
    slept_since = taken.inbox._read_until = time.monotonic() - 10 * SLEPT_SECONDS
    taken.inbox.feed(message(b"b"), all_read=False)
    taken.inbox.feed(message(b"c"), all_read=True)
    taken.inbox.feed(message(b"d"), all_read=True)
    assert taken.came[1:3] == [slept_since] * 2
    assert taken.came[3] > slept_since + 9 * SLEPT_SECONDS
