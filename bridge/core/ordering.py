"""Order per device: commands leave in the order in which they were accepted.

A command takes its place in its device's line when it is accepted, does its reading meanwhile, and
leaves when all before it have left or given up. No device waits for another. Of a line, all whose
turn has come leave in one turn of the event loop, however many they are.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Turn:
    """A place in a device's line."""

    __slots__ = ("_given_up", "_leave", "_line", "in_line")

    def __init__(self, line: "_Line") -> None:
        self._line = line
        self._leave: Callable[[], None] | None = None
        self._given_up = False
        self.in_line = False

    async def leave(self, send: Callable[[], T]) -> T:
        """What `send` returns or raises; it is called once all before have left or given up.

        One that has given its place up gets the last one.
        """
        left: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def leave() -> None:
            if left.done():
                # Cancelled while it waited.
                return
            try:
                left.set_result(send())
            except Exception as error:
                left.set_exception(error)
                # Raised where it is awaited; cancelled just now, nobody awaits it any more.
                left.exception()

        self._leave, self._given_up = leave, False
        self._line.join(self)
        self._line.advance()
        return await left

    def give_up(self) -> None:
        """Let the next one go, as soon as all before have gone; no matter if it has left."""
        self._leave, self._given_up = None, True
        self._line.advance()

    @property
    def is_ready(self) -> bool:
        """Whether nobody need wait for it any more, once all before have gone."""
        return self._given_up or self._leave is not None

    def go(self) -> None:
        """Leave, if it is to."""
        if self._leave is not None:
            self._leave()


class _Line:
    """The places of one device, the next one first."""

    __slots__ = ("_advancing", "_turns", "users")

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque()
        self._advancing = False
        # How many hold a turn, be it in line or not.
        self.users = 0

    def join(self, turn: Turn) -> None:
        """Give a turn the last place, unless it has one."""
        if not turn.in_line:
            turn.in_line = True
            self._turns.append(turn)

    def advance(self) -> None:
        """Let all leave whose turn it is."""
        if self._advancing:
            # One that is leaving gives its place up: whoever let it leave goes on with the others.
            return
        self._advancing = True
        while self._turns and self._turns[0].is_ready:
            turn = self._turns.popleft()
            turn.in_line = False
            turn.go()
        self._advancing = False


class DeviceLines:
    """The lines of all devices, and the sequences that run."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._in_sequence: set[str] = set()

    @contextmanager
    def place(self, device: str) -> Iterator[Turn]:
        """Take the next place in a device's line; it is given up on the way out."""
        line = self._lines.setdefault(device, _Line())
        turn = Turn(line)
        line.users += 1
        line.join(turn)
        try:
            yield turn
        finally:
            turn.give_up()
            line.users -= 1
            if not line.users:
                del self._lines[device]

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
