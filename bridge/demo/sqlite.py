"""The platform's tables in SQLite: every column that we read, and what writes them here."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

import aiosqlite
import orjson

from ..database import device_list
from ..database.statements import PROFILES, READINGS
from ..database.store import profiles_of, readings_of
from ..devices.listing import DevicesFields, ListedDevice
from ..devices.models import DeviceControls, DeviceProfile, DeviceReadings
from ..devices.names import device_key
from .devices import Device

# NOCASE, for the platform's collation ignores case.
_TABLES = """
CREATE TABLE device_products (
    id            INTEGER PRIMARY KEY,
    name          TEXT NOT NULL,
    sensor_types  TEXT,
    control_ports TEXT
);
CREATE TABLE device_main (
    id                    INTEGER PRIMARY KEY,
    uuid                  TEXT NOT NULL UNIQUE COLLATE NOCASE,
    product_id            INTEGER REFERENCES device_products (id),
    name                  TEXT NOT NULL COLLATE NOCASE,
    is_online             INTEGER NOT NULL DEFAULT 0,
    is_active             INTEGER NOT NULL,
    last_seen             TEXT,
    room                  TEXT COLLATE NOCASE,
    group_name            TEXT COLLATE NOCASE,
    floor                 TEXT,
    device_sensor_config  TEXT,
    device_control_config TEXT,
    device_settings       TEXT
);
CREATE TABLE device_sensors (
    device_uuid  TEXT COLLATE NOCASE REFERENCES device_main (uuid),
    sensor_name  TEXT COLLATE NOCASE,
    sensor_value TEXT,
    sensor_unit  TEXT,
    sensor_type  TEXT,
    timestamp    TEXT,
    PRIMARY KEY (device_uuid, sensor_name)
);
"""
_ADD_PRODUCT = "INSERT INTO device_products VALUES (?, ?, ?, ?)"
_ADD_DEVICE = """
INSERT INTO device_main (uuid, product_id, name, is_active, last_seen, room, group_name, floor,
                         device_control_config, device_settings)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_MARK_SEEN = "UPDATE device_main SET is_online = 1, last_seen = ? WHERE uuid = ?"
_STORE_READING = "INSERT OR REPLACE INTO device_sensors VALUES (?, ?, ?, '', ?, ?)"

# The bridge's own statements; a list of keys comes as one JSON parameter.
_KEYS = "(SELECT value FROM json_each(?))"
_READINGS = READINGS.replace("%s", _KEYS)
_PROFILES = PROFILES.replace("%s", _KEYS)


class SqliteBackend:
    """Store and backend in one; whoever opened the connection closes it."""

    available = True

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    @property
    def store(self) -> "SqliteBackend":
        return self

    async def watch(self) -> None:
        """Nothing can happen to it."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Leave it open: the platform goes on writing when the bridge has ended."""

    async def sensors(
        self, wanted: Sequence[tuple[str, tuple[str, ...]]]
    ) -> list[DeviceReadings | None]:
        """See `Store.sensors`; all that a device has, which is as good and simpler."""
        return [await self.readings(device_uuid) for device_uuid, _ in wanted]

    async def readings(self, device_uuid: str) -> DeviceReadings | None:
        key = device_key(device_uuid)
        keys = _json([key])
        rows = await self._connection.execute_fetchall(_READINGS, (keys, keys))
        return readings_of(tuple(row) for row in rows).get(key)

    async def controls(self, device_uuid: str) -> DeviceControls | None:
        return await self.profile(device_uuid)

    async def profile(self, device_uuid: str) -> DeviceProfile | None:
        key = device_key(device_uuid)
        rows = await self._connection.execute_fetchall(_PROFILES, (_json([key]),))
        return profiles_of(tuple(row) for row in rows).get(key)

    async def devices(
        self, fields: DevicesFields, only: Collection[str] | None
    ) -> list[ListedDevice]:
        sql, arguments = device_list.statement(fields, only, column="{}")
        sql = sql.replace("IN %s", f"IN {_KEYS}").replace("%s", "?")
        parameters = [_json(each) if isinstance(each, tuple) else each for each in arguments]
        return device_list.devices_of(
            tuple(row) for row in await self._connection.execute_fetchall(sql, parameters)
        )

    async def mark_seen(self, device_uuid: str, now: datetime) -> None:
        """Record a device as online; `now` is naive, in `DB_TIMEZONE`."""
        await self._connection.execute(_MARK_SEEN, (now.isoformat(" "), device_uuid))

    async def store_readings(
        self, device_uuid: str, sensor_type: str, values: Mapping[str, str], now: datetime
    ) -> None:
        """Store the latest values of a device's sensors, by name; `now` as in `mark_seen`."""
        await self._connection.executemany(
            _STORE_READING,
            [
                (device_uuid, name, value, sensor_type, now.isoformat(" "))
                for name, value in values.items()
            ],
        )


@asynccontextmanager
async def open_database(
    devices: Sequence[Device], last_seen: datetime
) -> AsyncIterator[SqliteBackend]:
    """A database in memory that knows these devices, none of them online yet.

    `last_seen` is when those whose board is not there were seen last; naive, in `DB_TIMEZONE`.
    """
    async with aiosqlite.connect(":memory:", isolation_level=None) as connection:
        await connection.executescript(_TABLES)
        for number, device in enumerate(devices, start=1):
            types, ports = device.sensor_types(), device.control_ports()
            product = (number, device.product, _json(types), _json(ports))
            await connection.execute(_ADD_PRODUCT, product)
            config, settings = device.control_config, {"preset_commands": device.presets}
            seen = None if device.online else last_seen.isoformat(" ")
            row = (device.uuid, number, device.name, device.active, seen, device.room, None, "1")
            await connection.execute(_ADD_DEVICE, (*row, _json(config), _json(settings)))
        backend = SqliteBackend(connection)
        for device in devices:
            for sensor in () if device.online else device.sensors:
                values = {name: str(value) for name, value in sensor.report().items()}
                await backend.store_readings(device.uuid, sensor.type, values, last_seen)
        yield backend


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
