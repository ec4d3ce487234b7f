"""Whether the broker is still there: it is pinged when silent, and given up when it stays so."""

import asyncio
import time
from collections.abc import Callable

from .inbox import SLEPT_SECONDS, Inbox
from .outbox import LinkError, Outbox, Outgoing
from .stream import Stream

KEEPALIVE_SECONDS = 30
# A broker that says nothing for so long, though pinged, is taken for gone (seconds).
SILENCE_BEFORE_PING = 2.0
SILENCE_UNTIL_LOST = 6.0
# A PUBACK that does not come for so long never will: Mosquitto drops PUBACKs too, for a client that
# reads too slowly, and each that is missing takes its place in the send quota for good. Only a new
# connection frees it (MQTT 5.0, section 4.4).
UNACKNOWLEDGED_UNTIL_LOST = 10.0
# How often we look whether we are awake, and the broker too.
_LOOK_SECONDS = 0.25
_BETWEEN_PINGS = 1.0


class Heartbeat:
    def __init__(
        self,
        stream: Stream,
        inbox: Inbox,
        outbox: Outbox,
        *,
        ping: Callable[[], None],
        lose: Callable[[LinkError], None],
        keepalive: float = KEEPALIVE_SECONDS,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._inbox = inbox
        self._outbox = outbox
        self._send_ping = ping
        self._lose = lose
        self._keepalive = keepalive
        self._last_ping = self._loop.time()

    async def run(self) -> None:
        """Ping a silent broker, and give up one that stays silent or no longer acknowledges."""
        checked = oldest_since = time.monotonic()
        oldest: Outgoing | None = None
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            if self._outbox.oldest is not oldest:
                oldest, oldest_since = self._outbox.oldest, now
            slept = now - checked > 2 * SLEPT_SECONDS
            checked = now
            if slept:
                # A suspended process or machine: hear first what has come meanwhile.
                continue
            if self._stream.is_reading:
                # Or it would have been read by now.
                self._inbox.nothing_came()
            self._check_broker(None if oldest is None else now - oldest_since)

    def _check_broker(self, oldest_age: float | None) -> None:
        now = self._loop.time()
        stream = self._stream
        # One that we don't listen to, but that takes what we write, is there.
        silence = now - (stream.last_heard if stream.is_reading else stream.last_sent)
        if silence > SILENCE_UNTIL_LOST:
            self._lose(LinkError("the broker does not answer"))
        elif oldest_age is not None and oldest_age > UNACKNOWLEDGED_UNTIL_LOST:
            self._lose(LinkError("the broker does not acknowledge"))
        elif silence >= SILENCE_BEFORE_PING or now - stream.last_sent >= self._keepalive / 2:
            # For the broker's keepalive only what we send counts, however much it says itself.
            self._ping(now)

    def _ping(self, now: float) -> None:
        if now - self._last_ping >= _BETWEEN_PINGS:
            self._last_ping = now
            self._send_ping()
