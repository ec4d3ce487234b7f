"""What clients have not read of their responses: bounded for each of them, and for all together."""

import asyncio
from dataclasses import dataclass

# A client must take so much of its response in so long; a modem does.
_LEAST_BYTES = 32 * 1024
_READER_SECONDS = 30.0
# What all clients together may leave unread.
_MOST_BYTES = 64 * 1024 * 1024
_LOOK_SECONDS = 0.5


@dataclass(slots=True)
class _Progress:
    unsent: int
    since: float


class UnsentReplies:
    """Aborts clients that read too slowly, and the largest debtors where all owe too much."""

    def __init__(
        self, most_bytes: int = _MOST_BYTES, reader_seconds: float = _READER_SECONDS
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._most_bytes = most_bytes
        self._reader_seconds = reader_seconds
        self._readers: dict[asyncio.Transport, _Progress] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, transport: asyncio.Transport) -> None:
        """Watch a client that has not read all of its response, until it has; may abort others."""
        if transport not in self._readers:
            unsent = transport.get_write_buffer_size()
            self._readers[transport] = _Progress(unsent, self._loop.time())
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
        for transport, progress in list(self._readers.items()):
            unsent = transport.get_write_buffer_size()
            if not unsent:
                del self._readers[transport]
            elif progress.unsent - unsent >= _LEAST_BYTES:
                progress.unsent, progress.since = unsent, now
            elif now - progress.since >= self._reader_seconds:
                self._abort(transport)
        if self._readers:
            self._timer = self._loop.call_later(_LOOK_SECONDS, self._look)

    def _bound_total(self) -> None:
        while self._readers:
            owed = {transport: transport.get_write_buffer_size() for transport in self._readers}
            if sum(owed.values()) <= self._most_bytes:
                return
            self._abort(max(owed, key=owed.__getitem__))

    def _abort(self, transport: asyncio.Transport) -> None:
        del self._readers[transport]
        transport.abort()
