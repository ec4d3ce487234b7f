"""What all requests share, and what the core needs from the rooms above it."""

import asyncio
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..devices.listing import DevicesFields, ListedDevice
from ..devices.models import DeviceControls, DeviceProfile, DeviceReadings, Health
from ..errors import BridgeError
from ..settings import Settings
from .deadlines import Deadlines
from .ordering import DeviceQueues

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

    async def controls(self, device_uuid: str) -> DeviceControls | None:
        """A device with its ports; None when there is no such device."""

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
    settings: Settings
    store: Store
    publisher: Publisher
    health: Callable[[], Health]
    queues: DeviceQueues
    drain: Drain
    deadlines: Deadlines
