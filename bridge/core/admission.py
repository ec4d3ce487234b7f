"""Admission: how many requests may be in flight, and how long the others wait for a place.

A request that finds no place waits for one, first come first served, for `WAIT_SECONDS` at most.
After that it gets no place any more, and is rejected.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple, Self

from ..errors import Busy

WAIT_SECONDS = 0.25
# In one turn of the event loop, one waiter is rejected for so many places. A request that has a
# place needs several turns, and clients that were rejected fill each of them with new requests.
# Measured in an open loop at 1.5 times the capacity on 3,500 connections, with 64 and 256 places:
# without this bound 7 to 16 % were accepted, their p99 was 0.9 to 1.1 s, and /livez took 0.3 to
# 0.7 s (p50); with it 50 % were accepted, p99 was 0.3 to 0.47 s, and /livez took 0.01 to 0.04 s.
_PLACES_FOR_A_REJECTION = 16
# Each waiter keeps its whole request: so many may wait, with so many bytes in all.
_MOST_WAITERS = 4096
_MOST_BYTES = 32 * 1024 * 1024
# These operations take at most one place in so many each. A batch may cost as much as hundreds of
# other requests: as many as there are places would keep the event loop for seconds. The lists of
# devices are read one after another, and wait for that in their places. A preset may be a sequence
# that keeps its place for two minutes.
_NARROW = {"batch": 8, "devices": 8, "preset": 2}
# A list takes little time, so that many of them may wait longer for their few places (seconds).
_NARROW_WAIT = {"devices": 1.0}
# Of the duplicates that wait, those of one API key or client level are one in so many at most: the
# first attempt may be a sequence of two minutes.
_DUPLICATES_SHARE = 4


class Place:
    """A place among the requests in flight; as a context manager it is given back at the end."""

    __slots__ = ("_admission", "_aside", "_held", "narrow")

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._held = True
        # Whose duplicate it is that waits for another one's outcome; None if it does not.
        self._aside: str | None = None
        # Its place in the narrow admission that it passed first.
        self.narrow: Place | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give it back; may be said again."""
        self._give_back()
        if self._aside is not None:
            self._admission.ended_as_duplicate(self._aside)
            self._aside = None

    def step_aside(self, share: str = "") -> None:
        """Give it back while the request waits for another one's outcome.

        Args:
            share: whose duplicate it is; empty for requesters without a name.

        Raises:
            Busy: as many wait so already as there are places, or of this share a quarter of that.
        """
        if self._aside is not None:
            return
        self._admission.wait_as_duplicate(share)
        self._aside = share
        self._give_back()

    def _give_back(self) -> None:
        if self._held:
            self._held = False
            self._admission.release()
            if self.narrow is not None:
                self.narrow.release()


class _Waiter(NamedTuple):
    # Not `Busy` as its exception: future, exception and frames would refer to each other, and the
    # whole request would stay in memory until the garbage collector comes by.
    admitted: "asyncio.Future[bool]"
    until: float
    asks_again: bool


class Admission:
    """Gives out the places.

    What `enter_for` names must first get a place in the narrow admission that `narrow` returns for
    that name, if it returns one.
    """

    def __init__(
        self,
        places: int,
        wait_seconds: float = WAIT_SECONDS,
        *,
        most_waiters: int = _MOST_WAITERS,
        narrow: Callable[[str], "Admission | None"] = lambda _: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._wait_seconds = wait_seconds
        self._most_waiters = most_waiters
        self._waiting_bytes = 0
        self._taken = 0
        # In the order of their arrival, which is that of their ends too.
        self._waiters: deque[_Waiter] = deque()
        # Those that got no place in time, until they are rejected.
        self._overdue: deque[_Waiter] = deque()
        self._timer: asyncio.Handle | None = None
        self._rejected_in_a_turn = max(1, places // _PLACES_FOR_A_REJECTION)
        self._narrow = narrow
        self.places = places
        # How many duplicates of each share wait for another one's outcome.
        self._duplicates: Counter[str] = Counter()

    @classmethod
    def for_requests(cls, places: int) -> Self:
        """The admission of a bridge: some operations take only a part of its places."""
        narrow = {
            name: Admission(max(1, places // part), _NARROW_WAIT.get(name, WAIT_SECONDS))
            for name, part in _NARROW.items()
        }
        return cls(places, narrow=narrow.get)

    @property
    def in_flight(self) -> int:
        """How many places are taken."""
        return self._taken

    def take(self) -> Place | None:
        """A place if one is free and nobody waits for it; see `enter`."""
        if self._taken >= self.places or self._waiters:
            return None
        self._taken += 1
        return Place(self)

    def take_for(self, name: str) -> Place | None:
        """The same for what has this name and must pass no narrow admission; see `enter_for`."""
        return None if self._narrow(name) is not None else self.take()

    async def enter(
        self, received: float | None = None, size: int = 0, asks_again: bool = False
    ) -> Place:
        """A place, waited for if need be.

        Args:
            received: when the request came, on the loop's clock; None: now. In a flood over MQTT
                requests wait before they get here, and the wait counts from there.
            size: of what it keeps while it waits, in bytes.
            asks_again: whether its client sends its next request as soon as it is answered, as on
                an HTTP connection: so it is rejected in its turn, see above.

        Raises:
            Busy: none came free in time, or too much waits already.
        """
        place = self.take()
        if place is not None:
            return place
        now = self._loop.time()
        until = (now if received is None else received) + self._wait_seconds
        if until <= now or self._is_crowded(size):
            raise Busy()
        waiter = _Waiter(self._loop.create_future(), until, asks_again)
        self._waiters.append(waiter)
        self._waiting_bytes += size
        self._watch()
        try:
            admitted = await waiter.admitted
        except asyncio.CancelledError:
            if not waiter.admitted.cancelled() and waiter.admitted.result():
                self.release()
            raise
        finally:
            self._waiting_bytes -= size
        if not admitted:
            raise Busy()
        return Place(self)

    def _is_crowded(self, size: int) -> bool:
        waiters = len(self._waiters) + len(self._overdue)
        return waiters >= self._most_waiters or self._waiting_bytes + size > _MOST_BYTES

    async def enter_for(
        self, name: str, received: float | None = None, size: int = 0, asks_again: bool = False
    ) -> Place:
        """A place for what has this name, such as an operation; see `enter`."""
        admission = self._narrow(name)
        if admission is None:
            return await self.enter(received, size, asks_again)
        narrow = await admission.enter(received, size, asks_again)
        if admission._wait_seconds > self._wait_seconds:
            received = None
        try:
            place = await self.enter(received, size, asks_again)
        except BaseException:
            narrow.release()
            raise
        place.narrow = narrow
        return place

    def release(self) -> None:
        """Give one place back, to the first that has not waited too long, if there is one."""
        self._taken -= 1
        if not self._waiters:
            return
        self._note_overdue()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.admitted.done():
                self._taken += 1
                waiter.admitted.set_result(True)
                return

    def wait_as_duplicate(self, share: str) -> None:
        """Count a duplicate that waits outside the places; raises Busy if too many do."""
        most = max(1, self.places // _DUPLICATES_SHARE)
        if self._duplicates[share] >= most or self._duplicates.total() >= self.places:
            raise Busy()
        self._duplicates[share] += 1

    def ended_as_duplicate(self, share: str) -> None:
        """It waits no more."""
        self._duplicates[share] -= 1
        if not self._duplicates[share]:
            del self._duplicates[share]

    def _note_overdue(self) -> None:
        now = self._loop.time()
        while self._waiters and self._waiters[0].until <= now:
            waiter = self._waiters.popleft()
            if waiter.asks_again:
                self._overdue.append(waiter)
            else:
                _reject(waiter)

    def _reject_some(self) -> None:
        self._timer = None
        self._note_overdue()
        for _ in range(min(len(self._overdue), self._rejected_in_a_turn)):
            _reject(self._overdue.popleft())
        self._watch()

    def _watch(self) -> None:
        """See to it that whoever gets no place is rejected."""
        if self._timer is not None:
            return
        if self._overdue:
            self._timer = self._loop.call_soon(self._reject_some)
        elif self._waiters:
            self._timer = self._loop.call_at(self._waiters[0].until, self._reject_some)


def _reject(waiter: _Waiter) -> None:
    if not waiter.admitted.done():
        waiter.admitted.set_result(False)
