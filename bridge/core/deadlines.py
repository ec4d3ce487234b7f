"""Time limits that cost next to nothing, and since when a request may have waited for us.

One timer looks after all limits.

A timer of its own cost some 20 µs under uvloop, and hardly any ever fires.
Limits kept here end within `RESOLUTION` seconds after their time, which is fine for limits of
seconds.
"""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

RESOLUTION = 0.05
# Whether the event loop turns is looked at so often. Where it did not for longer than `_SLEPT`, and
# not since it was busy, the process was stopped, and what it reads within `_CATCHING_UP` may have
# come while it was (seconds).
_LOOK = 0.1
_SLEPT = 0.5
_CATCHING_UP = 1.0


class Deadlines:
    """Calls what is overdue; one for each event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._entries: dict[int, tuple[float, Callable[[], None]]] = {}
        self._last_entry = 0
        self._latest = float("inf")
        self._ticking = False
        self._awake, self._worked = self._loop.time(), time.process_time()
        # When we fell asleep, and until when what we read may have come since.
        self._slept_from = self._caught_up = 0.0
        self._look()

    def came(self) -> float:
        """When what is read now came, on the loop's clock.

        Where the process was stopped meanwhile, by a signal or a machine that was paused, the last
        moment at which it had not come: a request must not seem younger than it is.
        """
        now = self._loop.time()
        if now - self._awake > _SLEPT:
            self._wake(now)
        return self._slept_from if now < self._caught_up else now

    def _wake(self, now: float) -> None:
        worked, asleep = time.process_time(), now - self._awake
        if asleep > _SLEPT and worked - self._worked < asleep / 2:
            if self._awake >= self._caught_up:
                # Else what came in the sleep before may still be unread.
                self._slept_from = self._awake
            self._caught_up = now + _CATCHING_UP
        self._awake, self._worked = now, worked

    def _look(self) -> None:
        self._wake(self._loop.time())
        self._loop.call_later(_LOOK, self._look)

    def call_at(self, when: float, overdue: Callable[[], None]) -> int:
        """Call `overdue` once the loop's clock has passed `when`; the entry is for `cancel`."""
        self._last_entry += 1
        self._entries[self._last_entry] = (min(when, self._latest), overdue)
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(RESOLUTION, self._tick)
        return self._last_entry

    def cancel(self, entry: int) -> None:
        """Forget an entry; one that has been called is forgotten already."""
        self._entries.pop(entry, None)

    def end_by(self, when: float) -> None:
        """Have no limit end later than this, be it set already or still to come."""
        self._latest = when
        self._entries = {
            entry: (min(at, when), overdue) for entry, (at, overdue) in self._entries.items()
        }

    def has_passed(self, when: float) -> bool:
        """Whether `when`, on the loop's clock, or the limit set by `end_by` has passed."""
        return min(when, self._latest) <= self._loop.time()

    def until(self, when: float) -> "Limit":
        """`with deadlines.until(when):` raises TimeoutError where the body would wait past it."""
        return Limit(self, self._loop, when)

    def _tick(self) -> None:
        now = self._loop.time()
        overdue = [entry for entry, (when, _) in self._entries.items() if when <= now]
        for entry in overdue:
            _, call = self._entries.pop(entry)
            call()
        self._ticking = bool(self._entries)
        if self._ticking:
            self._loop.call_later(RESOLUTION, self._tick)


class Limit:
    """A time limit for the body of one `with`, in one task; after `asyncio.Timeout`'s semantics."""

    __slots__ = ("_cancelling", "_deadlines", "_entry", "_expired", "_loop", "_task", "_when")

    def __init__(self, deadlines: Deadlines, loop: asyncio.AbstractEventLoop, when: float) -> None:
        self._loop = loop
        self._deadlines = deadlines
        self._when = when
        self._expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a time limit needs a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._entry = self._deadlines.call_at(self._when, self._expire)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._deadlines.cancel(self._entry)
        if not self._expired:
            return
        # Another cancellation of the task takes precedence.
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()
