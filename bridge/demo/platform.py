"""A stand-in for the platform's own service: what boards report goes into the tables."""

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

import orjson

from ..link import Link, packets
from .connection import stay_connected
from .devices import Device
from .sqlite import SqliteBackend

_SENSOR_NAME = re.compile(r"[a-z_][a-z0-9_]*")


class Platform:
    """Writes device rows and sensor rows as the real one does: values are always text."""

    def __init__(
        self, database: SqliteBackend, devices: Sequence[Device], timezone: ZoneInfo
    ) -> None:
        self._database = database
        self._timezone = timezone
        self._heard: asyncio.Queue[packets.Message] = asyncio.Queue()
        self._unheard = {
            (device.uuid, sensor.type)
            for device in devices
            if device.online
            for sensor in device.sensors
        }
        self._known = frozenset(device.uuid for device in devices if device.online)
        self.listening = asyncio.Event()
        # Set when every sensor of every device has a value.
        self.heard_all = asyncio.Event()

    async def run(self, port: int) -> None:
        """Store what boards report on the broker at that port, until cancelled."""
        filters = ["devices/+/data", "devices/+/heartbeat"]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                stay_connected(
                    port,
                    "demo-platform",
                    filters,
                    on_message=lambda _, message: self._heard.put_nowait(message),
                    live=self._listen,
                ),
                name="platform listens",
            )
            tasks.create_task(self._write(), name="platform writes")

    async def _listen(self, link: Link) -> None:
        self.listening.set()
        await asyncio.wait((link.lost,))

    async def _write(self) -> None:
        while True:
            message = await self._heard.get()
            _, uuid, kind = message.topic.split("/")
            if uuid not in self._known:
                continue
            await self._database.mark_seen(uuid, self._now())
            if kind == "data":
                await self._store(uuid, message.payload)

    async def _store(self, uuid: str, payload: bytes) -> None:
        try:
            report = orjson.loads(payload)
        except orjson.JSONDecodeError:
            return
        if not isinstance(report, dict):
            return
        sensor_type = str(report.pop("sensor", ""))
        # Booleans are stored as `True` and `False`, as in the real tables.
        values = {
            name: str(value) for name, value in report.items() if _SENSOR_NAME.fullmatch(name)
        }
        await self._database.store_readings(uuid, sensor_type, values, self._now())
        self._unheard.discard((uuid, sensor_type))
        if not self._unheard:
            self.heard_all.set()

    def _now(self) -> datetime:
        """The time as the tables hold it: naive, in the platform's zone, in whole seconds."""
        return datetime.now(self._timezone).replace(tzinfo=None, microsecond=0)
