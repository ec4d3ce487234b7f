"""Order per device: commands leave in the order in which they were accepted.

A command takes its place in its device's queue when it is accepted, does its reading meanwhile, and
leaves when all before it have left or given up. No device waits for another. Of a queue, all whose
turn has come leave in one turn of the event loop, however many they are.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Ticket:
    """A place in a device's queue."""

    __slots__ = ("_given_up", "_leave", "_queue", "in_queue")

    def __init__(self, queue: "_Queue") -> None:
        self._queue = queue
        self._leave: Callable[[], None] | None = None
        self._given_up = False
        self.in_queue = False

    async def leave(self, send: Callable[[], T]) -> T:
        """What `send` returns or raises; it is called once all before have left or given up.

        A ticket that was given up gets the last place.
        """
        left: asyncio.Future[T] = self._queue.loop.create_future()

        def leave() -> None:
            if left.done():
                # Cancelled while it waited for its turn.
                return
            try:
                left.set_result(send())
            except Exception as error:
                left.set_exception(error)
                # Marked as retrieved: if cancelled just now, nobody awaits it.
                left.exception()

        self._leave, self._given_up = leave, False
        self._queue.join(self)
        self._queue.advance()
        return await left

    def give_up(self) -> None:
        """Let the next one go, as soon as all before have gone; no matter if it has left."""
        self._leave, self._given_up = None, True
        self._queue.advance()

    @property
    def is_ready(self) -> bool:
        """Whether nobody need wait for it any more, once all before have gone."""
        return self._given_up or self._leave is not None

    def go(self) -> None:
        """Call `send` if `leave` has set one; called once all tickets before it have gone."""
        if self._leave is not None:
            self._leave()


class _Queue:
    __slots__ = ("_advancing", "_tickets", "loop", "users")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._tickets: deque[Ticket] = deque()
        self._advancing = False
        # How many hold a ticket, be it in queue or not.
        self.users = 0

    def join(self, ticket: Ticket) -> None:
        if not ticket.in_queue:
            ticket.in_queue = True
            self._tickets.append(ticket)

    def advance(self) -> None:
        if self._advancing:
            # Re-entered from a ticket that leaves: the outer call goes on with the queue.
            return
        self._advancing = True
        while self._tickets and self._tickets[0].is_ready:
            ticket = self._tickets.popleft()
            ticket.in_queue = False
            ticket.go()
        self._advancing = False


class DeviceQueues:
    """The queues of all devices of this process, by device key, and the sequences that run."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queues: dict[str, _Queue] = {}
        self._in_sequence: set[str] = set()

    @contextmanager
    def place(self, device: str) -> Iterator[Ticket]:
        """Take the next place in a device's queue; the ticket is given up on the way out."""
        queue = self._queues.get(device)
        if queue is None:
            queue = self._queues[device] = _Queue(self._loop)
        ticket = Ticket(queue)
        queue.users += 1
        queue.join(ticket)
        try:
            yield ticket
        finally:
            ticket.give_up()
            queue.users -= 1
            if not queue.users:
                del self._queues[device]

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
