"""Bytes that take a while to make, made once for all who ask for them within a moment."""

import asyncio
import time
from collections.abc import Callable

# From one making to the next.
_PAUSE_SECONDS = 0.05


class Coalesced:
    """Calls `make` for whoever asks, but not again before a pause.

    Those that ask within the pause share what is made at its end. So nobody gets what was made
    before it asked, and any number of clients take a bounded part of the processor.
    """

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make
        self._not_before = 0.0
        self._next: asyncio.Future[bytes] | None = None

    async def __call__(self) -> bytes:
        """Raises what `make` raises, to all who share it."""
        if self._next is None:
            pause = self._not_before - time.monotonic()
            if pause <= 0:
                return self._made()
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            loop.call_later(pause, self._share, self._next)
        # Shielded: one that is cancelled leaves it to the others.
        return await asyncio.shield(self._next)

    def _share(self, waiting: "asyncio.Future[bytes]") -> None:
        self._next = None
        try:
            waiting.set_result(self._made())
        except Exception as error:
            waiting.set_exception(error)

    def _made(self) -> bytes:
        try:
            return self._make()
        finally:
            self._not_before = time.monotonic() + _PAUSE_SECONDS
