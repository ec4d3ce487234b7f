"""What a handler is called with, and what the core needs from the rooms above it."""

import asyncio
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ..devices.listing import DevicesFields, ListedDevice
from ..devices.models import DeviceProfile, DeviceReadings, Health, JsonObject
from ..errors import BridgeError, OutcomeUnknown, RequestTimeout
from ..settings import Settings
from .deadlines import Deadlines
from .ordering import DeviceQueues
from .request import Request

# What a drain keeps for the replies of what it cuts short, in seconds.
DRAIN_MARGIN = 1.0


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

    async def devices(
        self, fields: DevicesFields, only: Collection[str] | None
    ) -> list[ListedDevice]:
        """The active devices of one page, and one more if another page follows.

        Args:
            only: the keys of the devices that may be listed; None for all of them.
        """


class Acknowledgement(Protocol):
    """A command's PUBACK, to be awaited: its reason code."""

    def __await__(self) -> Generator[Any, None, int]: ...

    def cancel(self) -> object:
        """Nobody waits any more: a command that has not left never does."""


class Publisher(Protocol):
    """How commands leave."""

    def publish_command(
        self, topic: str, payload: bytes, expires: float, on_left: Callable[[], None]
    ) -> Acknowledgement:
        """Hand a command to the broker, at QoS 1.

        Args:
            expires: after which it neither leaves nor is delivered; on the monotonic clock.
            on_left: called when it leaves, which may be later if the broker is slow.

        Raises:
            MqttUnavailable: there is no connection, or it was lost before the command left (at
                once, or when awaited): nothing was sent.
            OutcomeUnknown: when awaited, if the connection was lost before the PUBACK.
        """


@dataclass(slots=True)
class Drain:
    """Whether we are stopping, and until when what is in flight may go on."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    until: float = float("inf")

    def begin(self, until: float) -> None:
        """Begin to drain; `until` is on the loop's clock."""
        self.until = until
        self.begun.set()


@dataclass(frozen=True, slots=True)
class Services:
    """What all requests share."""

    settings: Settings
    store: Store
    publisher: Publisher
    health: Callable[[], Health]
    queues: DeviceQueues
    drain: Drain
    deadlines: Deadlines


class Sender(Protocol):
    """How a handler sends commands; the dispatcher owns it."""

    @property
    def has_left(self) -> bool:
        """Whether a command has left, and may have reached the device."""

    @property
    def commands_left(self) -> int:
        """How many have."""

    async def send(self, device: DeviceProfile, command: JsonObject) -> int:
        """Send a command in its device's order; its PUBACK's reason code.

        Raises:
            RequestTimeout: the deadline has passed; nothing was sent.
            MqttUnavailable: there is no connection; nothing was sent.
            OutcomeUnknown: the connection was lost before the PUBACK.
            UncontrollableDevice: its UUID can't be part of a topic.
        """

    def check(self, reason: int, device: DeviceProfile) -> None:
        """Check that the PUBACK of the only command, or of the first, says that it was delivered.

        Raises:
            DeviceUnreachable: nobody is subscribed.
            PublishRefused: the broker did not accept it.
        """

    def begin_sequence(self) -> None:
        """Say that several commands follow: the request is begun with the first one."""


class Context(NamedTuple):
    """One request under way; `deadline` is on the loop's clock."""

    services: Services
    deadline: float
    # Who asks, and how; handlers get its fields validated.
    request: Request
    # Commands of operations that send none are nobody's to send.
    commands: Sender

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
            raise (OutcomeUnknown() if self.commands.has_left else RequestTimeout()) from None
