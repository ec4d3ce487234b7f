"""What leaves at QoS 1: no more at a time than the broker takes, the rest in order after it."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from . import packets
from .paho_adapter import OUR_PACKET_IDS, RECEIVE_MAXIMUM

# Of what leaves, one in so many may be a reply while commands wait; and where more than so many
# replies wait, one in so many a command.
_ONE_REPLY_IN = 4
_CROWD, _ONE_COMMAND_IN = 2000, 8
# More than so many bytes should not wait, with what each message takes beside its own (measured).
_MOST_BYTES = 64 * 1024 * 1024
_EACH_BYTES = 1024


class LinkError(Exception):
    """No connection, or no more; `reason` is the MQTT reason code if there is one."""

    def __init__(self, words: str, reason: int | None = None) -> None:
        super().__init__(words)
        self.reason = reason


class NotSentError(LinkError):
    """A message never left: the connection was lost before, or it was cancelled."""


class ExpiredBeforeSentError(NotSentError):
    """A message never left: its time was over before."""


@dataclass(slots=True, eq=False)
class Outgoing:
    """A message at QoS 1 that is to leave, and is kept until its PUBACK."""

    topic: bytes
    payload: bytes
    retain: bool
    # Without the correlation and the expiry, which are added as it leaves; None for 3.1.1.
    properties: bytes | None
    correlation: bytes | None
    expires: float | None
    never_late: bool
    on_left: Callable[[], None] | None
    acknowledged: asyncio.Future[int]

    @property
    def size(self) -> int:
        """What it takes while it waits, in bytes."""
        own = len(self.topic) + len(self.payload) + len(self.correlation or b"")
        return own + _EACH_BYTES

    def settle(self, reason: int) -> None:
        """Its PUBACK has come, with this reason code."""
        if not self.acknowledged.done():
            self.acknowledged.set_result(reason)

    def fail(self, error: LinkError) -> None:
        """No PUBACK will come."""
        if not self.acknowledged.done():
            self.acknowledged.set_exception(error)
            # Marked as retrieved: nobody may await it any more.
            self.acknowledged.exception()


class Outbox:
    """Keeps what is to leave until the connection writes, and hears of each PUBACK.

    Commands go before replies, so that they do not wait for the replies to a flood of requests.
    But one in four is a reply, since requests are acknowledged in order, and one reply that stays
    behind holds up all acknowledgements after it. Where very many replies wait, the broker takes
    few messages at a time: then one in eight is a command.

    Args:
        write: takes a packet that goes to the socket immediately after `send`.
        wake: has `send` called in the next turn of the event loop.
    """

    def __init__(self, write: Callable[[bytes], None], wake: Callable[[], None]) -> None:
        self._write = write
        self._wake = wake
        # How many the broker takes unacknowledged (its Receive Maximum).
        self.quota = RECEIVE_MAXIMUM
        self.last_packet_id = 0
        self._pending: dict[int, Outgoing] = {}
        # Messages that must not leave late, and all others.
        self._urgent: deque[Outgoing] = deque()
        self._waiting: deque[Outgoing] = deque()
        self._waiting_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether so much waits for the broker that no more should."""
        return self._waiting_bytes > _MOST_BYTES

    @property
    def oldest(self) -> Outgoing | None:
        """What has waited longest for its PUBACK: they come in order."""
        return next(iter(self._pending.values()), None)

    def put(self, outgoing: Outgoing) -> None:
        """Send it with the next bytes if the broker takes it, else keep it.

        A command is kept until `send` in any case, since it must not leave late.
        """
        if outgoing.never_late:
            self._urgent.append(outgoing)
        elif len(self._pending) + len(self._urgent) < self.quota and not self._waiting:
            self._send(outgoing)
        else:
            # A copy: what orjson returns keeps a buffer of several kilobytes alive.
            outgoing.payload = bytes(memoryview(outgoing.payload))
            self._waiting.append(outgoing)
            self._waiting_bytes += outgoing.size
        self._wake()

    def acknowledged(self, packet_id: int, reason: int) -> None:
        """Take a PUBACK, which makes room for what waits; an unknown packet id is ignored."""
        outgoing = self._pending.pop(packet_id, None)
        if outgoing is not None:
            outgoing.settle(reason)
        if self._urgent or self._waiting:
            self._wake()

    def send(self) -> None:
        """Write what the broker takes; called immediately before bytes go to the socket.

        A deadline is checked here and no earlier: a turn of the event loop may take 100 ms when
        thousands of requests arrive.
        """
        while (waiting := self._next_to_go()) and len(self._pending) < self.quota:
            outgoing = waiting.popleft()
            if waiting is self._waiting:
                self._waiting_bytes -= outgoing.size
            self._send_unless_expired(outgoing)

    def fail(self) -> None:
        """The connection was lost: fail all that wait, with NotSentError what has not left."""
        pending, waiting = list(self._pending.values()), [*self._urgent, *self._waiting]
        self._pending.clear()
        self._urgent.clear()
        self._waiting.clear()
        self._waiting_bytes = 0
        for outgoing in pending:
            outgoing.fail(LinkError("the connection was lost"))
        for outgoing in waiting:
            outgoing.fail(NotSentError("the connection was lost before"))

    def _next_to_go(self) -> deque[Outgoing]:
        if not (self._urgent and self._waiting):
            return self._urgent or self._waiting
        if len(self._waiting) > _CROWD:
            urgent_first = self.last_packet_id % _ONE_COMMAND_IN == 0
        else:
            urgent_first = self.last_packet_id % _ONE_REPLY_IN != 0
        return self._urgent if urgent_first else self._waiting

    def _send_unless_expired(self, outgoing: Outgoing) -> None:
        if outgoing.acknowledged.done():
            # Cancelled while it waited.
            outgoing.fail(NotSentError("cancelled before it left"))
            return
        expires = outgoing.expires
        if outgoing.never_late and expires is not None and expires <= time.monotonic():
            outgoing.fail(ExpiredBeforeSentError("its time was over before it left"))
        else:
            self._send(outgoing)

    def _send(self, outgoing: Outgoing) -> None:
        packet_id = self.last_packet_id
        while True:
            packet_id = packet_id % OUR_PACKET_IDS + 1
            if packet_id not in self._pending:
                break
        self.last_packet_id = packet_id
        self._pending[packet_id] = outgoing
        self._write(
            packets.publish(
                outgoing.topic,
                outgoing.payload,
                qos=1,
                retain=outgoing.retain,
                packet_id=packet_id,
                properties=all_properties(
                    outgoing.properties, outgoing.correlation, outgoing.expires
                ),
            )
        )
        # Thousands may wait for their PUBACKs; what they hold is not needed any more.
        outgoing.payload, outgoing.properties, outgoing.correlation = b"", None, None
        if outgoing.on_left is not None:
            outgoing.on_left()


def all_properties(
    properties: bytes | None, correlation: bytes | None, expires: float | None
) -> bytes | None:
    """Properties with the correlation and, as Message Expiry, what is left until `expires`.

    `expires` is on the monotonic clock.
    """
    if properties is None or (correlation is None and expires is None):
        return properties
    seconds = None
    if expires is not None:
        # An expiry of 0 would be delivered as none. The subtrahend removes rounding errors.
        seconds = max(1, math.ceil(expires - time.monotonic() - 1e-6))
    return packets.properties(expiry=seconds, correlation=correlation) + properties
