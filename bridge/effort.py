"""What refusing costs, as a share of the time.

A refusal is cheap, but at twice the load that the bridge can bear there are more of them than of
anything else. What they take of the processor is missing for what was accepted: a house as full as
before would make it wait for longer. So there are fewer places in it meanwhile.
"""

import time
from collections.abc import Callable

# The share is that of the last so many seconds.
_SPAN = 0.1
# What lies between two refusals that follow so closely is the reading of the second (seconds).
_CLOSELY = 50e-6
# The cost is counted twice. What the kernel does for a refusal, and the cold caches that it leaves,
# no clock of ours sees: half as much again, by what refusing does to the rest. And where much is
# refused the rest goes by fits and starts, so that the slowest of it needs some room.
_WEIGHT = 2.0
_MOST = 0.75


class Effort:
    """Adds up what passes between `begin` and `end`, and between one refusal and the next."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since = self._began = clock()
        # When the request before was refused; None if it was not.
        self._ended: float | None = None
        self._spent = self._reading = self._share = 0.0
        # Whether there is nothing to add up: nothing was refused of late.
        self.rests = True

    def begin(self) -> float:
        """A request has come; the share of the places that is not to be given away now."""
        self._began = now = self._clock()
        if self._ended is not None and now - self._ended < _CLOSELY:
            self._reading += (now - self._ended - self._reading) / 64
        self._ended = None
        elapsed = now - self._since
        if elapsed >= _SPAN:
            self._share = min(_MOST, _WEIGHT * self._spent / elapsed)
            self.rests = not self._spent
            self._spent, self._since = 0.0, now
        return self._share

    def end(self) -> None:
        """It was refused, and the refusal is written."""
        self._ended = now = self._clock()
        self.rests = False
        self._spent += now - self._began + self._reading
