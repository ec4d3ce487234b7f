"""What we read of the platform's tables: rows to models, reads batched."""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from ..devices.listing import DevicesFields, ListedDevice
from ..devices.models import DeviceControls, DeviceProfile, DeviceReadings, SensorRow
from ..devices.names import device_key
from ..errors import BridgeError
from ..observability.metrics import Metrics
from .batch_loader import BatchLoader
from .columns import flag, text, time
from .device_list import DeviceListReader
from .pool import Database, Row, StatementRefused
from .statements import COLUMNS_THERE, INDEXES_THERE, Statements, fitted, unfitted

_Device = TypeVar("_Device", bound=DeviceControls)
# A device's key, and sensors' stored names.
SensorKey = tuple[str, tuple[str, ...]]

# ER_BAD_FIELD_ERROR, ER_KEY_DOES_NOT_EXITS: the tables are not those that we fitted to.
_TABLES_CHANGED = frozenset({1054, 1176})


class _Loaders(NamedTuple):
    sensors: BatchLoader[SensorKey, DeviceReadings]
    readings: BatchLoader[str, DeviceReadings]
    profiles: BatchLoader[str, DeviceProfile]
    controls: BatchLoader[str, DeviceControls]


class MysqlStore:
    """The platform's tables in MySQL or MariaDB; needs nothing but SELECT."""

    def __init__(self, database: Database, timeout: float, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._timeout = timeout
        self._statements: Statements | None = None
        self._loaders = self._new_loaders()
        # Of what a column in an older character set may not compare with: such a key makes its
        # statement fail, and those who ask for what there is are not to wait for the next.
        self._odd_loaders = self._new_loaders()
        self._device_list = DeviceListReader(database, timeout)

    def _new_loaders(self) -> _Loaders:
        deadlines = self._database.deadlines
        return _Loaders(
            BatchLoader(self._load_sensors, self._timeout, deadlines),
            BatchLoader(self._load_readings, self._timeout, deadlines),
            BatchLoader(self._load_profiles, self._timeout, deadlines),
            BatchLoader(self._load_controls, self._timeout, deadlines),
        )

    async def sensors(
        self, wanted: Sequence[SensorKey]
    ) -> Sequence[DeviceReadings | BridgeError | None]:
        """See `Store.sensors`; raises DatabaseTimeout or DatabaseUnavailable."""
        keys = [(device_key(device_uuid), names) for device_uuid, names in wanted]
        plain = all(device_uuid.isascii() for device_uuid, _ in keys)
        return await (self._loaders if plain else self._odd_loaders).sensors.get_all(keys)

    async def readings(self, device_uuid: str) -> DeviceReadings | None:
        """See `Store.readings`; raises DatabaseTimeout or DatabaseUnavailable."""
        key = device_key(device_uuid)
        return await (self._loaders if key.isascii() else self._odd_loaders).readings.get(key)

    async def profile(self, device_uuid: str) -> DeviceProfile | None:
        """See `Store.profile`; raises DatabaseTimeout or DatabaseUnavailable."""
        key = device_key(device_uuid)
        return await (self._loaders if key.isascii() else self._odd_loaders).profiles.get(key)

    async def controls(self, device_uuid: str) -> DeviceControls | None:
        """See `Store.controls`; raises DatabaseTimeout or DatabaseUnavailable."""
        key = device_key(device_uuid)
        return await (self._loaders if key.isascii() else self._odd_loaders).controls.get(key)

    async def devices(
        self, fields: DevicesFields, only: Collection[str] | None
    ) -> list[ListedDevice]:
        """See `Store.devices`; raises DatabaseTimeout or DatabaseUnavailable."""
        return await self._device_list.read(fields, only)

    async def close(self) -> None:
        """Cancel the reads that run; the database itself stays open."""
        for loader in (*self._loaders, *self._odd_loaders):
            await loader.close()

    async def _load_sensors(
        self, keys: Sequence[SensorKey], deadline: float
    ) -> dict[SensorKey, DeviceReadings]:
        uuids = tuple({uuid for uuid, _ in keys})
        names = tuple({name for _, wanted in keys for name in wanted})

        def statement(these: Statements) -> tuple[str, Sequence[Any]]:
            return these.sensors, (uuids, uuids, names) if these.apart else (names, uuids)

        devices = readings_of(await self._rows(statement, uuids, len(keys), deadline))
        return {key: devices[key[0]] for key in keys if key[0] in devices}

    async def _load_readings(
        self, uuids: Sequence[str], deadline: float
    ) -> dict[str, DeviceReadings]:
        return readings_of(
            await self._rows(lambda these: (these.readings, (uuids, uuids)), uuids, 0, deadline)
        )

    async def _load_profiles(
        self, uuids: Sequence[str], deadline: float
    ) -> dict[str, DeviceProfile]:
        return profiles_of(
            await self._rows(lambda these: (these.profiles, (uuids,)), uuids, 0, deadline)
        )

    async def _load_controls(
        self, uuids: Sequence[str], deadline: float
    ) -> dict[str, DeviceControls]:
        return controls_of(
            await self._rows(lambda these: (these.controls, (uuids,)), uuids, 0, deadline)
        )

    async def _rows(
        self,
        statement: Callable[[Statements], tuple[str, Sequence[Any]]],
        uuids: Sequence[str],
        keys: int,
        deadline: float,
    ) -> list[Row]:
        """The rows of a statement; none where its only uuid is no value of the column."""
        self._metrics.batch_size.observe(keys or len(uuids))
        try:
            return await self._fetch(statement, deadline)
        except StatementRefused as refused:
            if refused.over_content and len(uuids) == 1 and not uuids[0].isascii():
                return []
            raise

    async def _fetch(
        self, statement: Callable[[Statements], tuple[str, Sequence[Any]]], deadline: float
    ) -> list[Row]:
        statements = self._statements or await self._fit(deadline)
        sql, args = statement(statements)
        try:
            return await self._database.fetch(sql, args, deadline=deadline)
        except StatementRefused as refused:
            if refused.errno not in _TABLES_CHANGED or self._statements is not statements:
                raise
        sql, args = statement(await self._fit(deadline))
        return await self._database.fetch(sql, args, deadline=deadline)

    async def _fit(self, deadline: float) -> Statements:
        try:
            columns = await self._database.fetch(COLUMNS_THERE, deadline=deadline)
            indexes = await self._database.fetch(INDEXES_THERE, deadline=deadline)
        except StatementRefused:
            self._statements = unfitted()
        else:
            self._statements = fitted(columns, indexes)
        return self._statements


# What makes of a row's values what they are to be, whatever types an installation's columns have.
_READING = (flag, text, text, flag, time, text, text, text, text, text, text, time)
_PLAIN_TYPES = {text: (str, type(None)), time: (datetime, type(None)), flag: (int,)}


@lru_cache(maxsize=64)
def _is_plain(types: tuple[type, ...]) -> bool:
    """Whether values of these types need no converting, as on nearly every installation."""
    return all(kind in _PLAIN_TYPES[convert] for convert, kind in zip(_READING, types, strict=True))


def readings_of(rows: Iterable[Row]) -> dict[str, DeviceReadings]:
    """The rows of `SENSORS` or `READINGS` by `device_key` of their device."""
    devices: dict[str, DeviceReadings] = {}
    sensors: list[tuple[str, SensorRow]] = []
    for row in rows:
        if not _is_plain(tuple(map(type, row))):
            row = tuple(convert(value) for convert, value in zip(_READING, row, strict=True))  # noqa: PLW2901
        is_device, uuid, name, online, seen, types, config, *sensor = row
        uuid = uuid or ""
        key = device_key(uuid)
        if is_device and key not in devices:
            devices[key] = DeviceReadings(uuid, name or "", bool(online), seen, types, config)
        if sensor[0] is not None:
            sensors.append((key, SensorRow(*sensor)))
    for key, latest in sensors:
        if key in devices:
            devices[key].rows.append(latest)
    return devices


def profiles_of(rows: Iterable[Row]) -> dict[str, DeviceProfile]:
    """The rows of `PROFILES` by `device_key` of their device."""
    return _devices_of(DeviceProfile, rows)


def controls_of(rows: Iterable[Row]) -> dict[str, DeviceControls]:
    """The rows of `CONTROLS` by `device_key` of their device."""
    return _devices_of(DeviceControls, rows)


def _devices_of(model: type[_Device], rows: Iterable[Row]) -> dict[str, _Device]:
    devices = {}
    for uuid, name, online, *columns in rows:
        stored = text(uuid) or ""
        devices[device_key(stored)] = model(
            stored, text(name) or "", flag(online), *map(text, columns)
        )
    return devices
