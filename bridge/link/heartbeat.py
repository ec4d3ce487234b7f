"""Whether the broker is still there: it is pinged when silent, and given up when it stays so."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

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


@dataclass(slots=True)
class Heartbeat:
    """Watches one connection, and calls `lose` when it is dead; times in seconds."""

    stream: Stream
    inbox: Inbox
    outbox: Outbox
    send_ping: Callable[[], object]
    lose: Callable[[LinkError], None]
    keepalive: float = KEEPALIVE_SECONDS
    last_ping: float = field(default_factory=time.monotonic)

    async def run(self) -> None:
        """Ping a silent broker, and give up one that stays silent or no longer acknowledges."""
        checked = oldest_since = time.monotonic()
        oldest: Outgoing | None = None
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            if self.outbox.oldest is not oldest:
                oldest, oldest_since = self.outbox.oldest, now
            slept = now - checked > 2 * SLEPT_SECONDS
            checked = now
            if slept:
                # The process or machine was suspended: read first what has come meanwhile.
                continue
            if self.stream.is_reading:
                # Else it would have been read by now.
                self.inbox.nothing_came()
            self._check_broker(None if oldest is None else now - oldest_since)

    def _check_broker(self, oldest_age: float | None) -> None:
        now = asyncio.get_running_loop().time()
        stream = self.stream
        # While we don't read, a broker that takes what we write is alive.
        silence = now - (stream.last_heard if stream.is_reading else stream.last_sent)
        if silence > SILENCE_UNTIL_LOST:
            self.lose(LinkError("the broker does not answer"))
        elif oldest_age is not None and oldest_age > UNACKNOWLEDGED_UNTIL_LOST:
            self.lose(LinkError("the broker does not acknowledge"))
        elif now - self.last_ping >= _BETWEEN_PINGS and (
            silence >= SILENCE_BEFORE_PING
            # For the broker's keepalive only what we send counts.
            or now - stream.last_sent >= self.keepalive / 2
        ):
            self.last_ping = now
            self.send_ping()
