"""Order per device: commands leave in the order in which they were accepted.

A command takes its place in its device's line when it is accepted, does its reading meanwhile, and
leaves when all before it have left or given up. No device waits for another.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Turn:
    """A place in a device's line."""

    def __init__(self, before: asyncio.Future[None] | None, mine: asyncio.Future[None]) -> None:
        self._before = before
        self._mine = mine

    async def reached(self) -> None:
        """Wait until all before have left or given up."""
        if self._before is not None and not self._before.done():
            # Others wait for it too: a cancellation here must not reach it.
            await asyncio.shield(self._before)

    def pass_on(self) -> None:
        """Let the next one go, as soon as all before have gone. May be called more than once."""
        if self._before is None or self._before.done():
            self._settle()
        else:
            self._before.add_done_callback(self._settle)

    def _settle(self, _: object = None) -> None:
        if not self._mine.done():
            self._mine.set_result(None)


class DeviceLines:
    """The lines of all devices, and the sequences that run."""

    def __init__(self) -> None:
        self._last: dict[str, asyncio.Future[None]] = {}
        self._in_sequence: set[str] = set()

    @contextmanager
    def place(self, device: str) -> Iterator[Turn]:
        """Take the next place in a device's line; it is given up on the way out."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        turn = Turn(self._last.get(device), mine)
        self._last[device] = mine
        mine.add_done_callback(lambda done: self._forget(device, done))
        try:
            yield turn
        finally:
            turn.pass_on()

    @contextmanager
    def sequence(self, device: str) -> Iterator[bool]:
        """Hold a device for a sequence; false when another one runs there."""
        if device in self._in_sequence:
            yield False
            return
        self._in_sequence.add(device)
        try:
            yield True
        finally:
            self._in_sequence.discard(device)

    def _forget(self, device: str, done: asyncio.Future[None]) -> None:
        if self._last.get(device) is done:
            del self._last[device]
