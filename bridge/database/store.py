"""What we read of the platform's tables: every SQL statement, rows to models, reads together.

Reads batch by what is waiting, never by a timer: the first goes at once, those that arrive while
it is under way go together in the next. A batch begins after its requests arrived, so that no
answer is older than its question.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from ..core.deadlines import Deadlines
from ..devices.listing import DevicesFields, ListedDevice
from ..devices.models import DeviceProfile, DeviceReadings, SensorRow
from ..devices.names import device_key
from ..errors import DatabaseTimeout
from ..observability.metrics import Metrics
from .device_list import DeviceListReader
from .pool import Database, Row

Key = TypeVar("Key", bound=Hashable)
Model = TypeVar("Model")
Load = Callable[[Sequence[Key], float], Awaitable[Mapping[Key, Model]]]

# A device's key, and a sensor's stored name.
SensorKey = tuple[str, str]

# The path of most requests: one sensor by its stored name, and no more.
SENSORS = """
SELECT d.uuid, d.name, d.is_online, d.last_seen,
       s.sensor_name, s.sensor_value, s.sensor_unit, s.sensor_type, s.timestamp
  FROM device_main d
  LEFT JOIN device_sensors s ON s.device_uuid = d.uuid AND s.sensor_name IN %s
 WHERE d.uuid IN %s
"""

# Devices first, then their sensors: each device's own columns are sent once, not once a sensor.
READINGS = """
SELECT d.uuid, d.name, d.is_online, d.last_seen, p.sensor_types, NULL, NULL, NULL, NULL, NULL
  FROM device_main d LEFT JOIN device_products p ON p.id = d.product_id
 WHERE d.uuid IN %s
 UNION ALL
SELECT s.device_uuid, NULL, NULL, NULL, NULL,
       s.sensor_name, s.sensor_value, s.sensor_unit, s.sensor_type, s.timestamp
  FROM device_sensors s
 WHERE s.device_uuid IN %s
"""

PROFILES = """
SELECT d.uuid, d.name, d.is_online, p.control_ports, d.device_control_config, d.device_settings
  FROM device_main d LEFT JOIN device_products p ON p.id = d.product_id
 WHERE d.uuid IN %s
"""

# Two statements under way keep the database busy while the rows of another are turned to models.
LANES = 2
# What is read by one statement, and handed out in one turn of the loop: batches of a hundred
# readings would else keep the loop from hearing, and refusing, anything new.
_KEYS_A_STATEMENT = 1024
_MODELS_A_TURN = 128
# What a batch whose oldest request has waited long may still take, in seconds.
_LEAST_TIME = 0.5


class MysqlStore:
    """The platform's tables in MySQL or MariaDB; needs nothing but SELECT."""

    def __init__(self, database: Database, timeout: float, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._sensors = Together(self._load_sensors, timeout, database.deadlines)
        self._readings = Together(self._load_readings, timeout, database.deadlines)
        self._profiles = Together(self._load_profiles, timeout, database.deadlines)
        self._device_list = DeviceListReader(database, timeout)

    async def sensors(self, wanted: Sequence[SensorKey]) -> list[DeviceReadings | None]:
        """Devices, each with the latest value of one sensor, by uuid and stored name.

        Raises:
            DatabaseTimeout, DatabaseUnavailable: see `Database.fetch`.
        """
        keys = [(device_key(device_uuid), name) for device_uuid, name in wanted]
        return await self._sensors.get_all(keys)

    async def readings(self, device_uuid: str) -> DeviceReadings | None:
        """A device with the latest value of each sensor; None when there is no such device.

        Raises:
            DatabaseTimeout, DatabaseUnavailable: see `Database.fetch`.
        """
        return await self._readings.get(device_key(device_uuid))

    async def profile(self, device_uuid: str) -> DeviceProfile | None:
        """A device with its ports and presets; None when there is no such device.

        Raises:
            DatabaseTimeout, DatabaseUnavailable: see `Database.fetch`.
        """
        return await self._profiles.get(device_key(device_uuid))

    async def devices(
        self, fields: DevicesFields, only: Collection[str] | None
    ) -> list[ListedDevice]:
        """See `DeviceListReader.read`."""
        return await self._device_list.read(fields, only)

    async def close(self) -> None:
        """End the reads that are under way."""
        await self._sensors.close()
        await self._readings.close()
        await self._profiles.close()

    async def _load_sensors(
        self, keys: Sequence[SensorKey], deadline: float
    ) -> dict[SensorKey, DeviceReadings]:
        self._metrics.batch_size.observe(len(keys))
        uuids = tuple({uuid for uuid, _ in keys})
        names = tuple({name for _, name in keys})
        return sensors_of(
            await self._database.fetch(SENSORS, (names, uuids), deadline=deadline), keys
        )

    async def _load_readings(
        self, uuids: Sequence[str], deadline: float
    ) -> dict[str, DeviceReadings]:
        self._metrics.batch_size.observe(len(uuids))
        return readings_of(await self._database.fetch(READINGS, (uuids, uuids), deadline=deadline))

    async def _load_profiles(
        self, uuids: Sequence[str], deadline: float
    ) -> dict[str, DeviceProfile]:
        self._metrics.batch_size.observe(len(uuids))
        return profiles_of(await self._database.fetch(PROFILES, (uuids,), deadline=deadline))


def sensors_of(rows: Iterable[Row], keys: Iterable[SensorKey]) -> dict[SensorKey, DeviceReadings]:
    """The rows of `SENSORS` by key; a device without that sensor is there without a row."""
    devices: dict[str, Row] = {}
    found: dict[SensorKey, SensorRow] = {}
    for row in rows:
        uuid = device_key(row[0])
        devices[uuid] = row
        if row[4] is not None:
            found[uuid, row[4].casefold()] = SensorRow(*row[4:])
    models: dict[SensorKey, DeviceReadings] = {}
    for key in keys:
        device = devices.get(key[0])
        if device is not None:
            sensor = found.get(key)
            uuid, name, online, last_seen = device[:4]
            models[key] = DeviceReadings(
                uuid, name, bool(online), last_seen, None, [] if sensor is None else [sensor]
            )
    return models


def readings_of(rows: Iterable[Row]) -> dict[str, DeviceReadings]:
    """The rows of `READINGS` by `device_key` their device."""
    devices: dict[str, DeviceReadings] = {}
    sensors: list[Row] = []
    for row in rows:
        if row[5] is None:
            uuid, name, online, last_seen, sensor_types = row[:5]
            devices[device_key(uuid)] = DeviceReadings(
                uuid, name, bool(online), last_seen, sensor_types
            )
        else:
            sensors.append(row)
    for row in sensors:
        device = devices.get(device_key(row[0]))
        if device is not None:
            device.rows.append(SensorRow(*row[5:]))
    return devices


def profiles_of(rows: Iterable[Row]) -> dict[str, DeviceProfile]:
    """The rows of `PROFILES` by `device_key` their device."""
    return {
        device_key(uuid): DeviceProfile(uuid, name, bool(online), *json_columns)
        for uuid, name, online, *json_columns in rows
    }


class _Asker(NamedTuple, Generic[Key, Model]):
    """Who waits for the models of which keys, and since when on the loop's clock."""

    keys: Sequence[Key]
    answer: "asyncio.Future[list[Model | None]]"
    arrived: float


class Together(Generic[Key, Model]):
    """Loads models by key, many keys in one statement.

    `load` gets the keys and a deadline on the loop's clock. Each request is answered, or fails,
    within `timeout` seconds of its arrival (half a second more behind a slow statement).
    """

    def __init__(self, load: Load[Key, Model], timeout: float, deadlines: Deadlines) -> None:
        self._load = load
        self._deadlines = deadlines
        self._timeout = timeout
        # Those who wait for a statement to come, in the order of their arrival.
        self._waiting: list[_Asker[Key, Model]] = []
        self._overdue: int | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    async def get(self, key: Key) -> Model | None:
        """The model of `key`, read after this call; None when there is none."""
        (model,) = await self.get_all((key,))
        return model

    def get_all(self, keys: Sequence[Key]) -> "asyncio.Future[list[Model | None]]":
        """The models of `keys`, in their order, read by one statement after this call."""
        loop = asyncio.get_running_loop()
        asker: _Asker[Key, Model] = _Asker(keys, loop.create_future(), loop.time())
        self._waiting.append(asker)
        if len(self._waiting) == 1:
            if len(self._under_way) < LANES:
                self._begin()
            else:
                self._watch_the_first()
        return asker.answer

    async def close(self) -> None:
        """Give up those who wait, cancel what is under way, and wait until it has ended."""
        for asker in self._take(len(self._waiting)):
            asker.answer.cancel()
        under_way = list(self._under_way)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    def _begin(self) -> None:
        # It begins in the next turn of the loop: what arrived in the same turn goes along.
        task = asyncio.get_running_loop().create_task(self._fill(), name="read together")
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    async def _fill(self) -> None:
        askers = self._next_askers()
        if self._waiting and len(self._under_way) < LANES:
            self._begin()
        if not askers:
            # They were given up in this very turn of the loop.
            return
        now = asyncio.get_running_loop().time()
        oldest = askers[0].arrived
        deadline = max(oldest + self._timeout, now + min(_LEAST_TIME, self._timeout))
        wanted = dict.fromkeys(key for asker in askers for key in asker.keys)
        try:
            await _hand_out(await self._load(tuple(wanted), deadline), askers)
        except BaseException as error:
            _fail(askers, error)
            if not isinstance(error, Exception):
                raise

    def _next_askers(self) -> "list[_Asker[Key, Model]]":
        """Who goes along in the next statement: all who wait, or as many as it shall hold."""
        keys = count = 0
        while count < len(self._waiting) and keys < _KEYS_A_STATEMENT:
            keys += len(self._waiting[count].keys)
            count += 1
        return self._take(count)

    def _take(self, count: int) -> "list[_Asker[Key, Model]]":
        """The first so many of those who wait, who wait no more."""
        askers, self._waiting = self._waiting[:count], self._waiting[count:]
        self._watch_the_first()
        return askers

    def _watch_the_first(self) -> None:
        """See to it that whoever has waited longest is given up in time."""
        if self._overdue is not None:
            self._deadlines.cancel(self._overdue)
            self._overdue = None
        if self._waiting:
            overdue = self._waiting[0].arrived + self._timeout
            self._overdue = self._deadlines.call_at(overdue, self._give_up)

    def _give_up(self) -> None:
        """Fail those who have waited too long, and nobody else."""
        count = sum(
            self._deadlines.has_passed(asker.arrived + self._timeout) for asker in self._waiting
        )
        _fail(self._take(count), DatabaseTimeout())

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if self._waiting:
            self._begin()


async def _hand_out(models: Mapping[Key, Model], askers: "Iterable[_Asker[Key, Model]]") -> None:
    handed_out = 0
    for keys, answer, _ in askers:
        if not answer.done():
            answer.set_result([models.get(key) for key in keys])
        handed_out += len(keys)
        if handed_out > _MODELS_A_TURN:
            # Whoever got them works on them in the next turn, in which nobody else is heard.
            handed_out = 0
            await asyncio.sleep(0)


def _fail(askers: "Iterable[_Asker[Key, Model]]", error: BaseException) -> None:
    for _, answer, _ in askers:
        if answer.done():
            continue
        if isinstance(error, Exception):
            answer.set_exception(error)
        else:
            answer.cancel()
