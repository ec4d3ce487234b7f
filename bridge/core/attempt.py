"""One request under way: its immutable context, and the attempt that sends its commands."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import orjson

from ..devices.errors import DeviceUnreachable, PublishRefused, UncontrollableDevice
from ..devices.models import DeviceControls, JsonObject
from ..devices.names import device_key
from ..errors import OutcomeUnknown, RequestTimeout
from .admission import Place
from .context import Acknowledgement, Services
from .ordering import Ticket
from .replies import Reply
from .request import Request

# PUBACK reason codes (MQTT 5.0, table 3-4)
NO_MATCHING_SUBSCRIBERS = 0x10
REFUSED_FROM = 0x80

_NOT_IN_A_TOPIC = frozenset("+#/\x00")


class CommandAttempt:
    """What changes while a request is under way: its place, its ticket, and whether anything left.

    Args:
        deadline: on the loop's clock.
        place: what it holds of the capacity, if anything.
        on_begun: called when a sequence's first step has left: it is never begun again.
        share: whose it is; empty for requesters without a name.
    """

    def __init__(
        self,
        services: Services,
        deadline: float,
        place: Place | None = None,
        on_begun: Callable[[], None] | None = None,
        share: str = "",
    ) -> None:
        self._services = services
        self._place = place
        self._share = share
        self._on_begun = on_begun
        self._is_sequence = False
        # The place in its device's queue, for the first command.
        self._ticket: Ticket | None = None
        self._execute: Callable[[CommandAttempt], Awaitable[Reply]] | None = None
        self.deadline = deadline
        # Whether a command has left, and may have reached the device; and how many have.
        self.has_left = False
        self.commands_left = 0

    def prepare(
        self, ticket: Ticket, execute: Callable[["CommandAttempt"], Awaitable[Reply]]
    ) -> None:
        """Say in which place of its device's queue it is, and how it is executed.

        `execute` is called with the attempt and must not refer to it: a reference cycle would keep
        the whole request in memory until the garbage collector runs.
        """
        self._ticket = ticket
        self._execute = execute

    async def run(self) -> Reply:
        """Execute it; whatever goes wrong becomes a reply, except a cancellation."""
        assert self._execute is not None
        return await self._execute(self)

    def seconds_left(self) -> float:
        """Seconds until the deadline; never negative."""
        # Not the loop's clock, which stands still during a turn of the loop.
        return max(0.0, self.deadline - time.monotonic())

    def step_aside(self) -> None:
        """Leave the queue and the place to others while another attempt runs.

        Raises Busy if too many attempts wait already.
        """
        if self._ticket is not None:
            self._ticket.give_up()
        if self._place is not None:
            self._place.step_aside(self._share)

    def begin_sequence(self) -> None:
        """Say that several commands follow: the request is begun with the first one."""
        self._is_sequence = True

    async def send(self, device: DeviceControls, command: JsonObject) -> int:
        """Send a command in its device's order; its PUBACK's reason code.

        Raises:
            RequestTimeout, MqttUnavailable, UncontrollableDevice: nothing was sent.
            OutcomeUnknown: the connection was lost before the PUBACK.
        """
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            return await self._send(device, command, ticket)
        with self._services.queues.place(device_key(device.uuid)) as later:
            return await self._send(device, command, later)

    def check(self, reason: int, device: DeviceControls) -> None:
        """Raise DeviceUnreachable or PublishRefused if the first command's PUBACK says so.

        `reason` is the PUBACK's reason code; the outcome of such a command is not kept.
        """
        if reason == NO_MATCHING_SUBSCRIBERS:
            # Nothing was received, so that there is no outcome to keep.
            self.has_left = False
            raise DeviceUnreachable(device=device.name)
        if reason >= REFUSED_FROM:
            self.has_left = False
            raise PublishRefused(reason=reason, topic=control_topic(device))

    async def _send(self, device: DeviceControls, command: JsonObject, ticket: Ticket) -> int:
        handed: list[Acknowledgement] = []
        try:
            acknowledgement = await ticket.leave(lambda: self._hand_over(device, command, handed))
        except asyncio.CancelledError:
            # Cancelled as its turn came: the command may still be in the outbox.
            for acknowledgement in handed:
                acknowledgement.cancel()
            raise
        return await acknowledgement

    def _hand_over(
        self, device: DeviceControls, command: JsonObject, handed: list[Acknowledgement]
    ) -> Acknowledgement:
        left = self.seconds_left()
        if left <= 0:
            raise RequestTimeout()
        acknowledgement = self._services.publisher.publish_command(
            control_topic(device),
            orjson.dumps(command),
            time.monotonic() + min(left, self._services.settings.control_expiry),
            self._left,
        )
        handed.append(acknowledgement)
        return acknowledgement

    def _left(self) -> None:
        self.has_left = True
        self.commands_left += 1
        if self._is_sequence and self._on_begun is not None:
            self._on_begun()


class Context(NamedTuple):
    """One request under way; `deadline` is on the loop's clock."""

    services: Services
    deadline: float
    # Who asks, and how; handlers get its fields validated.
    request: Request
    commands: CommandAttempt

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Bound the body by the deadline: RequestTimeout, or OutcomeUnknown once a command left."""
        try:
            with self.services.deadlines.until(self.deadline):
                yield
        except TimeoutError:
            raise (OutcomeUnknown() if self.commands.has_left else RequestTimeout()) from None


def control_topic(device: DeviceControls) -> str:
    """Where a device listens for commands; UncontrollableDevice if its UUID can't be in a topic."""
    if (
        not device.uuid
        or _NOT_IN_A_TOPIC.intersection(device.uuid)
        or not device.uuid.isprintable()
    ):
        raise UncontrollableDevice()
    return f"devices/{device.uuid}/control"
