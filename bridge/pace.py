"""Long work, a little at a time: what it may take of one turn of the event loop is bounded.

In a turn of the loop all is done that is ready, and until it ends nothing new is heard. A hundred
batches of a hundred readings that are ready together would make a turn of a tenth of a second.
"""

import asyncio
from collections import deque


class Pace:
    """Lets so many through in one turn of the loop; the others in the next ones, in their order."""

    def __init__(self, a_turn: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._a_turn = a_turn
        self._left = a_turn
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._counting = False

    async def keep(self) -> None:
        """Wait until there is room in a turn; at once if there is in this one."""
        if self._left and not self._waiting:
            self._left -= 1
        else:
            let_through: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(let_through)
            self._count()
            await let_through
        self._count()

    def _count(self) -> None:
        if not self._counting:
            self._counting = True
            self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._left = self._a_turn
        while self._left and self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                self._left -= 1
        self._counting = self._left < self._a_turn
        if self._counting:
            self._loop.call_soon(self._next_turn)
