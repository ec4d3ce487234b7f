"""Admission: how many requests may be in flight, and how long the others wait for a place.

A request that finds no place waits for one, first come first served, for `WAIT_SECONDS` at most.
Clients that come back at once would else take all the time for being rejected.
"""

import asyncio
from collections import deque
from typing import NamedTuple

from ..errors import Busy

WAIT_SECONDS = 0.25
# So many waiters are rejected in one turn of the event loop. An admitted request needs several
# turns, and clients that send their next request at once would make each turn as long as all these
# requests take (seen: of what was asked, at 1.5 times the capacity, 5 % was accepted).
_REJECTED_IN_A_TURN = 2
# Those that are overdue for longer are rejected at once: requests over MQTT come however slowly
# they are answered, and each would wait until it expires.
_MOST_OVERDUE_SECONDS = 0.2
# Each waiter keeps its whole request.
_MOST_WAITERS = 4096


class Place:
    """A place among the requests in flight."""

    __slots__ = ("_admission", "_aside", "_held")

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._held = True
        self._aside = False

    def release(self) -> None:
        """Give it back; may be said again."""
        if self._held:
            self._held = False
            self._admission.release()
        if self._aside:
            self._aside = False
            self._admission.waiting_duplicates -= 1

    def step_aside(self) -> None:
        """Give it back while the request waits for another one's outcome.

        Raises:
            Busy: as many wait so already as there are places.
        """
        if self._aside:
            return
        if self._admission.waiting_duplicates >= self._admission.places:
            raise Busy()
        self._aside = True
        self._admission.waiting_duplicates += 1
        if self._held:
            self._held = False
            self._admission.release()


class _Waiter(NamedTuple):
    admitted: "asyncio.Future[None]"
    until: float


class Admission:
    """Gives out the places."""

    def __init__(self, places: int, wait_seconds: float = WAIT_SECONDS) -> None:
        self._loop = asyncio.get_running_loop()
        self._wait_seconds = wait_seconds
        self._taken = 0
        # In the order of their arrival, which is that of their ends too.
        self._waiters: deque[_Waiter] = deque()
        self._timer: asyncio.Handle | None = None
        self.places = places
        self.waiting_duplicates = 0

    @property
    def in_flight(self) -> int:
        """How many places are taken."""
        return self._taken

    async def enter(self, received: float | None = None) -> Place:
        """A place, waited for if need be.

        Args:
            received: when the request came, on the loop's clock; None: now. In a flood over MQTT
                requests wait before they get here, and the wait counts from there.

        Raises:
            Busy: none came free in time.
        """
        if self._taken < self.places and not self._waiters:
            self._taken += 1
            return Place(self)
        now = self._loop.time()
        until = (now if received is None else received) + self._wait_seconds
        if until <= now or len(self._waiters) >= _MOST_WAITERS:
            raise Busy()
        waiter = _Waiter(self._loop.create_future(), until)
        self._waiters.append(waiter)
        self._watch_first()
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                self.release()
            raise
        return Place(self)

    def release(self) -> None:
        """Give one place back, to the first waiter if there is one."""
        self._taken -= 1
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.admitted.done():
                self._taken += 1
                waiter.admitted.set_result(None)
                return

    def _watch_first(self) -> None:
        if self._timer is None and self._waiters:
            self._timer = self._loop.call_at(self._waiters[0].until, self._reject_overdue)

    def _reject_overdue(self) -> None:
        self._timer = None
        now = self._loop.time()
        rejected = 0
        while self._waiters and self._waiters[0].until <= now:
            due = self._waiters[0].until
            if rejected >= _REJECTED_IN_A_TURN and now - due < _MOST_OVERDUE_SECONDS:
                self._timer = self._loop.call_soon(self._reject_overdue)
                return
            waiter = self._waiters.popleft()
            if not waiter.admitted.done():
                waiter.admitted.set_exception(Busy())
                rejected += 1
        self._watch_first()
