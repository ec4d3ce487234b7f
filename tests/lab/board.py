"""A simulated board: it listens on its control topic and remembers what it was told."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from tests.lab.mqtt import Broker, Connection, Message


class Board(Connection):
    """The device with this uuid; ``commands`` holds all it received, in order.

    Takes the options of `Connection`.
    """

    def __init__(self, broker: Broker, uuid: str, **options: Any) -> None:
        super().__init__(broker, **options)
        self.uuid = uuid
        self.control_topic = f"devices/{uuid}/control"
        self.commands: list[Message] = []
        self._unread: asyncio.Queue[Message] = asyncio.Queue()

    async def connect(self, timeout: float = 10.0) -> Self:
        """Connect and listen: when this returns, a published command arrives here."""
        await super().connect(timeout)
        await self.subscribe(self.control_topic, qos=1, retain_as_published=True)
        return self

    async def next_command(self, timeout: float = 5.0) -> Message:
        """The oldest command not returned before; `TimeoutError` when none comes."""
        return await asyncio.wait_for(self._unread.get(), timeout)

    async def next_commands(self, count: int, timeout: float = 10.0) -> list[Any]:
        """The payloads of the next ``count`` commands, parsed."""
        async with asyncio.timeout(timeout):
            return [(await self._unread.get()).json for _ in range(count)]

    def received(self, message: Message) -> None:
        self.commands.append(message)
        self._unread.put_nowait(message)
