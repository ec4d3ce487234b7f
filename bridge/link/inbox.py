"""What comes in: read at once, and taken a little at a time, in the order of its arrival."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from . import packets

# What is not read in time the broker may drop (Mosquitto holds 1000 packets for a socket that is
# full), so all there is is read; but what the packets ask is seen to in turns that stay short for
# everyone else. So many packets at the most, and no more once so many seconds have passed.
_PACKETS_A_TURN = 64
_SECONDS_A_TURN = 0.003
_BETWEEN_LOOKS = 8
# No more is read while so much waits (bytes).
_MOST_BYTES = 64 * 1024 * 1024
# Who slept longer than this can't tell when a packet came (seconds).
SLEPT_SECONDS = 0.5


class Inbox:
    """Hands packets to `take`, each with when it came and was read; PUBACKs go to `acknowledged` at
    once.

    When it came is on the monotonic clock. Where we slept, or did not read, it is the last moment
    at which it had not come: a request must not seem younger than it is. `broken` hears of bytes
    that are no MQTT, and `has_room` when it is no longer full.
    """

    def __init__(
        self,
        take: Callable[[int, bytes, float, float], None],
        acknowledged: Callable[[int, int], None],
        broken: Callable[[packets.MalformedPacketError], None],
        has_room: Callable[[], None],
        limit: int | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._acknowledged = acknowledged
        self._broken = broken
        self._has_room = has_room
        self._frames = packets.Frames(limit)
        self._waiting: deque[tuple[int, bytes, float, float]] = deque()
        self._waiting_bytes = 0
        self._going_on = False
        # The last moment at which nothing was unread.
        self._read_until = time.monotonic()

    @property
    def is_full(self) -> bool:
        """Whether the socket should not be read for now."""
        return self._waiting_bytes >= _MOST_BYTES

    def nothing_came(self) -> None:
        """There is nothing unread at this moment."""
        self._read_until = time.monotonic()

    def feed(self, data: bytes, *, all_read: bool) -> None:
        """Take what was read; `all_read`: there was no more."""
        now = time.monotonic()
        came = now if now - self._read_until < SLEPT_SECONDS else self._read_until
        if all_read:
            self._read_until = now
        try:
            for first, body in self._frames.feed(data):
                if first >> 4 == packets.PUBACK:
                    # PUBACKs make room for replies, and must not wait behind requests.
                    self._acknowledged(*packets.read_puback(body))
                else:
                    self._waiting.append((first, body, came, now))
                    self._waiting_bytes += len(body)
        except packets.MalformedPacketError as error:
            self._broken(error)
            return
        if not self._going_on:
            self._see_to_some()

    def clear(self) -> None:
        """Forget what waits: it comes again on the next connection, if the session survives."""
        self._waiting.clear()
        self._waiting_bytes = 0

    def _see_to_some(self) -> None:
        self._going_on = False
        was_full = self.is_full
        try:
            self._take_some()
        except packets.MalformedPacketError as error:
            self._broken(error)
        finally:
            # The other packets are still to be taken, whatever this one raised.
            if self._waiting:
                self._going_on = True
                self._loop.call_soon(self._see_to_some)
        if was_full and not self.is_full:
            self._has_room()

    def _take_some(self) -> None:
        ends = time.monotonic() + _SECONDS_A_TURN
        for number in range(_PACKETS_A_TURN):
            if not self._waiting or (number % _BETWEEN_LOOKS == 0 and time.monotonic() > ends):
                # Nothing is left, or it is the turn of others.
                return
            first, body, came, read = self._waiting.popleft()
            self._waiting_bytes -= len(body)
            self._take(first, body, came, read)
