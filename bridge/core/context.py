"""What a handler is given: the request under way, and the few things that it may ask for."""

import asyncio
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from ..devices.models import DeviceProfile, DeviceReadings, Health, JsonObject
from ..errors import (
    BridgeError,
    DeviceUnreachable,
    OutcomeUnknown,
    PublishRefused,
    RequestTimeout,
    UncontrollableDevice,
)
from ..settings import Settings
from .deadlines import Deadlines
from .ordering import DeviceLines, Turn
from .replies import Reply

# PUBACK reason codes (MQTT 5.0, table 3-4)
NO_MATCHING_SUBSCRIBERS = 0x10
REFUSED_FROM = 0x80

_NOT_IN_A_TOPIC = frozenset("+#/\x00")


class Store(Protocol):
    """What we ask of the platform's tables. All raise the `Database…` errors."""

    async def sensors(
        self, wanted: Sequence[tuple[str, tuple[str, ...]]]
    ) -> Sequence[DeviceReadings | BridgeError | None]:
        """Devices, each with at least some sensors, if it has them: by uuid and stored names.

        In the order of `wanted`; None where there is no such device, an error where one alone
        could not be read.
        """

    async def readings(self, device_uuid: str) -> DeviceReadings | None:
        """A device with the latest value of each sensor; None when there is no such device."""

    async def profile(self, device_uuid: str) -> DeviceProfile | None:
        """A device with its ports and presets; None when there is no such device."""


class Acknowledgement(Protocol):
    """A command's PUBACK, to be awaited: its reason code."""

    def __await__(self) -> Generator[Any, None, int]: ...

    def cancel(self) -> object:
        """Nobody waits any more: a command that has not left never does."""


class Publisher(Protocol):
    """How commands leave."""

    def hand_over(
        self, topic: str, payload: bytes, expires: float, on_left: Callable[[], None]
    ) -> Acknowledgement:
        """Hand a command to the broker, at QoS 1.

        Args:
            expires: after which it neither leaves nor is delivered; on the monotonic clock.
            on_left: called when it leaves, which may be later, where the broker is slow.

        Raises:
            MqttUnavailable: there is no connection, or there was none any more before it left
                (at once, or when awaited): nothing was sent.
            OutcomeUnknown: when awaited, if the connection was lost before the PUBACK.
        """


@dataclass(slots=True)
class Drain:
    """Whether we are stopping, and until when what is in hand may go on."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    until: float = float("inf")

    def begin(self, until: float) -> None:
        """Begin to drain; `until` is on the loop's clock."""
        self.until = until
        self.begun.set()


@dataclass(slots=True)
class Services:
    """What all calls share."""

    settings: Settings
    store: Store
    publisher: Publisher
    health: Callable[[], Health]
    lines: DeviceLines = field(default_factory=DeviceLines)
    drain: Drain = field(default_factory=Drain)
    deadlines: Deadlines = field(default_factory=Deadlines)


@dataclass(slots=True)
class Item:
    """One request of a batch; with a `reply` from the start if it was refused."""

    operation: str
    fields: Any
    request_id: str | None
    reply: Reply | None
    # The dispatcher's own, for running it alone; None where it is answered with its like.
    origin: Any = None

    def body(self) -> JsonObject:
        """The reply's body."""
        if self.reply is None:
            raise RuntimeError("the item was not answered")
        return self.reply.body(self.request_id)


class Items(Protocol):
    """What a batch needs of the dispatcher."""

    def open_item(self, batch: "Call", raw: JsonObject, number: int) -> Item:
        """Check one item as a request would be."""

    async def run_item(self, item: Item) -> Reply:
        """Run one as a request would be, within the batch's capacity and deadline."""


@dataclass(slots=True)
class Call:
    """One request under way; `deadline` is on the loop's clock."""

    services: Services
    deadline: float
    items: Items
    # The dispatcher's own: the request that this call came from.
    origin: Any
    # Called when a sequence's first step has left: from then on it is never begun again.
    on_begun: Callable[[], None] | None = None
    is_sequence: bool = False
    # The place in its device's line, for operations that send commands.
    turn: Turn | None = None
    # Something may have reached a device: the outcome is kept.
    sent: bool = False
    commands_left: int = 0
    # It was answered with the outcome of an earlier request with the same id.
    repeated: bool = False
    # Its `expires_at` has passed: it begins nothing, and may only be told what a first one did.
    too_late: bool = False
    # Whether the deadline is farther away than any read can take.
    unhurried: bool = False

    def seconds_left(self) -> float:
        """How long until the deadline; not below zero."""
        # Not the loop's clock, which stands still during a turn: it would tell too much.
        return max(0.0, self.deadline - time.monotonic())

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Wait in the body until the deadline and no longer.

        Raises:
            RequestTimeout: it has come, and nothing was sent.
            OutcomeUnknown: it has come, and something was sent.
        """
        try:
            with self.services.deadlines.until(self.deadline):
                yield
        except TimeoutError:
            raise (OutcomeUnknown() if self.sent else RequestTimeout()) from None

    async def send(
        self, device: DeviceProfile, command: JsonObject, turn: Turn | None
    ) -> Acknowledgement:
        """Hand a command to the broker in its turn.

        Raises:
            RequestTimeout: the deadline has passed; nothing was sent.
            MqttUnavailable: there is no connection; nothing was sent.
            UncontrollableDevice: its UUID can't be part of a topic.
        """
        if turn is None:
            return self._hand_over(device, command)
        handed: list[Acknowledgement] = []
        try:
            return await turn.leave(lambda: self._hand_over(device, command, handed))
        except asyncio.CancelledError:
            # Cancelled as its turn came: it may still wait for the broker to take more.
            for acknowledgement in handed:
                acknowledgement.cancel()
            raise

    def _hand_over(
        self,
        device: DeviceProfile,
        command: JsonObject,
        handed: list[Acknowledgement] | None = None,
    ) -> Acknowledgement:
        left = self.seconds_left()
        if left <= 0:
            raise RequestTimeout()
        acknowledgement = self.services.publisher.hand_over(
            control_topic(device),
            orjson.dumps(command),
            time.monotonic() + min(left, self.services.settings.control_expiry),
            self._note_that_one_left,
        )
        if handed is not None:
            handed.append(acknowledgement)
        return acknowledgement

    def _note_that_one_left(self) -> None:
        self.sent = True
        self.commands_left += 1
        if self.is_sequence and self.on_begun is not None:
            self.on_begun()

    def check_acknowledgement(self, reason: int, device: DeviceProfile) -> None:
        """Whether the PUBACK of the only command, or the first, says that it reached someone.

        Raises:
            DeviceUnreachable: nobody is subscribed.
            PublishRefused: the broker did not take it: nothing is known to have been sent.
        """
        if reason == NO_MATCHING_SUBSCRIBERS:
            raise DeviceUnreachable(device=device.name)
        if reason >= REFUSED_FROM:
            self.sent = False
            raise PublishRefused(reason=reason, topic=control_topic(device))


def control_topic(device: DeviceProfile) -> str:
    """Where a device listens for commands.

    Raises:
        UncontrollableDevice: the UUID that the platform stored can't be part of a topic.
    """
    if (
        not device.uuid
        or _NOT_IN_A_TOPIC.intersection(device.uuid)
        or not device.uuid.isprintable()
    ):
        raise UncontrollableDevice()
    return f"devices/{device.uuid}/control"
