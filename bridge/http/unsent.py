"""What clients have not read of their responses: bounded for each of them, and for all together."""

import asyncio
from dataclasses import dataclass

# A client must take so much of its responses, or all of them, in so long; a modem does.
_LEAST_BYTES = 32 * 1024
_READER_SECONDS = 30.0
# What all clients together may keep in memory by not reading it.
_MOST_BYTES = 64 * 1024 * 1024
# If they keep more, the largest are cut until so much is left: each cut takes a look at all.
_LEFT_SHARE = 15 / 16
_LOOK_SECONDS = 0.5


@dataclass(slots=True)
class _Reader:
    # What it had not read at `since`, and what was written to it afterwards.
    unread: int
    since: float
    # What was written for it alone since it had read everything, and the longest of that.
    own: int = 0
    longest: int = 0
    # The memory that it keeps, when it was last looked at.
    held: int = 0

    def hold(self, unsent: int) -> int:
        """Note the memory that it keeps: uvloop keeps a response until all of it was sent."""
        self.held = min(self.own, unsent + self.longest)
        return self.held


class UnsentReplies:
    """Aborts clients that read too slowly, and the largest debtors where all owe too much."""

    def __init__(
        self, most_bytes: int = _MOST_BYTES, reader_seconds: float = _READER_SECONDS
    ) -> None:
        self._loop = asyncio.get_running_loop()
        # asyncio's own loops copy what they can't send at once.
        self._copies = isinstance(self._loop, asyncio.BaseEventLoop)
        self._most_bytes = most_bytes
        self._reader_seconds = reader_seconds
        self._readers: dict[asyncio.Transport, _Reader] = {}
        # What they keep, or more: what has been read since the last look still counts.
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, transport: asyncio.Transport, written: int, own: int) -> None:
        """Watch a client that has not read all of its responses, until it has; may abort others.

        Args:
            written: the length of the response that was just written to it.
            own: how much of that is in memory for this client alone.
        """
        unsent = transport.get_write_buffer_size()
        reader = self._readers.get(transport)
        if reader is None or unsent <= written:
            # Whatever came before has left.
            self._held -= reader.held if reader else 0
            reader = self._readers[transport] = _Reader(unsent, self._loop.time())
        else:
            self._held -= reader.held
            reader.unread += written
        own = written if self._copies else own
        reader.own += own
        reader.longest = max(reader.longest, own)
        self._held += reader.hold(unsent)
        if self._held > self._most_bytes:
            self._bound_total()
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._readers.clear()

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._held = 0
        for transport, reader in list(self._readers.items()):
            unsent = transport.get_write_buffer_size()
            self._held += reader.hold(unsent)
            if not unsent:
                self._forget(transport)
            elif reader.unread - unsent >= _LEAST_BYTES:
                reader.unread, reader.since = unsent, now
            elif now - reader.since >= self._reader_seconds:
                self._abort(transport)
        if self._readers:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)

    def _bound_total(self) -> None:
        readers = self._readers.items()
        self._held = sum(
            reader.hold(transport.get_write_buffer_size()) for transport, reader in readers
        )
        if self._held <= self._most_bytes:
            return
        for transport, _ in sorted(readers, key=lambda each: each[1].held, reverse=True):
            self._abort(transport)
            if self._held <= self._most_bytes * _LEFT_SHARE:
                return

    def _abort(self, transport: asyncio.Transport) -> None:
        self._forget(transport)
        transport.abort()

    def _forget(self, transport: asyncio.Transport) -> None:
        self._held -= self._readers.pop(transport).held
