"""Sensor names, units and values: which row a caller means, and what its text says."""

import re
from datetime import datetime
from functools import lru_cache

from .errors import AmbiguousSensor, SensorNotFound
from .models import DeviceReadings, Reading, SensorRow
from .names import plain_name
from .sensor_names import COMMON_NAMES, Kinds, kinds_of

_NUMBER = re.compile(r"[+-]?(\d+)(\.\d*)?([eE][+-]?\d+)?|[+-]?\.\d+([eE][+-]?\d+)?")
_STORED_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_WHOLE = re.compile(r"[+-]?\d{1,18}")


_USUAL_UNITS = {
    "temperature": "°C",
    "ds18b20": "°C",
    "humidity": "%",
    "soil_moisture": "%",
    "rain_level": "级",
    "rain_sensor_level": "级",
    "light": "lx",
    "pressure": "Pa",
    "altitude": "m",
    "distance": "cm",
    "gas": "ppm",
    "voltage": "V",
    "current": "A",
    "power": "W",
}
_NUMBERED = re.compile(r"_?\d+$")


@lru_cache(maxsize=4096)
def candidates(sensor: str) -> tuple[str, ...]:
    """The stored names that a name may stand for by itself; none for names that people gave."""
    wanted = plain_name(sensor)
    meaning = COMMON_NAMES.get(wanted)
    if meaning is not None:
        names = dict.fromkeys((wanted, *meaning.stored, *meaning.general))
        # No row is stored as 温度, and a column in latin1 could not compare with it.
        return tuple(name for name in names if name.isascii())
    return (wanted,) if _STORED_NAME.fullmatch(wanted) else ()


def find_among(device: DeviceReadings, sensor: str) -> SensorRow | None:
    """The row that `sensor` means, if the rows of its `candidates` are enough to tell."""
    try:
        return _meant(device, plain_name(sensor), candidates(sensor))
    except AmbiguousSensor:
        # The error lists names, for which all rows are needed.
        return None


def find(device: DeviceReadings, sensor: str) -> SensorRow:
    """The row that `sensor` means, of a device with all its rows.

    A stored name goes first; then the names that people gave, the product's display names, its
    keys, and the common names.

    Raises:
        SensorNotFound: none has that name; it lists the sensors there are.
        AmbiguousSensor: several have that name; it lists them.
    """
    row = _meant(device, plain_name(sensor), None)
    if row is None:
        raise SensorNotFound(sensor=sensor, sensors=_listed(_valued(device), _kinds_of(device)))
    return row


def _meant(
    device: DeviceReadings, wanted: str, fetched: tuple[str, ...] | None
) -> SensorRow | None:
    """The row meant, or None; `fetched`: the stored names that were read, None for all."""
    if not wanted:
        return None
    rows = _valued(device)
    for row in rows:
        if plain_name(row.sensor_name) == wanted:
            return row
    kinds = _kinds_of(device)
    for named in kinds.by_name.get(wanted, ()):
        if fetched is not None and not all(kind.stored.issubset(fetched) for kind in named):
            return None
        found = {row for kind in named for row in rows if kind.describes(row)}
        if len(found) > 1:
            raise AmbiguousSensor(
                sensor=wanted, sensors=_listed([row for row in rows if row in found], kinds)
            )
        if found:
            return found.pop()
    return _by_common_name(rows, wanted)


def _valued(device: DeviceReadings) -> list[SensorRow]:
    return [row for row in device.rows if row.sensor_value is not None]


def _kinds_of(device: DeviceReadings) -> Kinds:
    return kinds_of(device.sensor_types_json, device.sensor_config_json)


def reading(device: DeviceReadings, row: SensorRow, now: datetime) -> Reading:
    """What a row says; `now` has the database's zone, in which the row's naive time is meant."""
    raw = row.sensor_value or ""
    return Reading(
        value=value_of(raw),
        unit=_unit(device, row),
        sensor_name=row.sensor_name,
        sensor_type=row.sensor_type,
        timestamp=row.timestamp,
        device_name=device.name,
        last_seen=device.last_seen,
        raw_value=raw,
        online=device.online,
        age_seconds=_age(row.timestamp, now),
    )


def all_readings(device: DeviceReadings, now: datetime) -> list[Reading]:
    """Every sensor of a device that has a value; `now` is what ages count from."""
    return [reading(device, row, now) for row in device.rows if row.sensor_value is not None]


def shown_names(device: DeviceReadings) -> dict[str, str]:
    """What people call the sensors, by stored name: as named on this device, else in its product.

    A key of the configuration is no name that people use.
    """
    return {
        row.sensor_name: kind.shown
        for row in _valued(device)
        for kind in reversed(_kinds_of(device).all)
        if kind.shown and plain_name(kind.shown) != kind.key and kind.describes(row)
    }


@lru_cache(maxsize=8192)
def value_of(raw: str) -> float | int | str:
    """A stored text as a number; booleans are 1 and 0; the text itself if it is neither."""
    text = raw.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        number = float(text)
        return number if abs(number) != float("inf") else raw
    match text.casefold():
        case "true":
            return 1
        case "false":
            return 0
    return raw


def _unit(device: DeviceReadings, row: SensorRow) -> str:
    """The stored unit, else the product's, else the usual one."""
    if row.sensor_unit and not row.sensor_unit.isspace():
        return row.sensor_unit
    for kind in _kinds_of(device).all:
        if kind.unit and kind.describes(row):
            return kind.unit
    return usual_unit(row.sensor_name)


@lru_cache(maxsize=1024)
def usual_unit(sensor_name: str) -> str:
    """The unit that such a sensor has when none is stored; empty when there is none.

    `dht11_temperature` and `temperature_2` are temperatures too.
    """
    name = sensor_name.casefold()
    for one in (name, _NUMBERED.sub("", name)):
        for usual, unit in _USUAL_UNITS.items():
            if one == usual or one.endswith(f"_{usual}"):
                return unit
    return ""


def _by_common_name(rows: list[SensorRow], wanted: str) -> SensorRow | None:
    meaning = COMMON_NAMES.get(wanted)
    if meaning is None:
        return None
    by_name = {row.sensor_name.casefold(): row for row in rows}
    for stored in meaning.stored:
        if stored in by_name:
            return by_name[stored]
    for general in meaning.general:
        row = by_name.get(general)
        if row is not None and (row.sensor_type or "").casefold() in meaning.of_types:
            return row
    return None


def _listed(rows: list[SensorRow], kinds: Kinds) -> str:
    shown = []
    for row in rows:
        bearers = (kind for kind in kinds.all if kind.shown and kind.describes(row))
        names = dict.fromkeys(str(kind.shown) for kind in bearers)
        shown.append(f"{row.sensor_name} ({', '.join(names)})" if names else row.sensor_name)
    return ", ".join(shown) or "-"


def _age(timestamp: datetime | None, now: datetime) -> float | None:
    if timestamp is None:
        return None
    # Of the two moments that one time means at the end of summer time, the later that has passed.
    for fold in (1, 0):
        age = now.timestamp() - timestamp.replace(tzinfo=now.tzinfo, fold=fold).timestamp()
        if age >= 0:
            return round(age, 3)
    # A board's clock may run ahead of the database's; no reading comes from the future.
    return 0.0
