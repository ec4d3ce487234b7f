"""Sensor names, units and values: which row a caller means, and what its text says."""

import re
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from .errors import SensorNotFound
from .models import DeviceReadings, Reading, SensorRow, json_object
from .names import plain_name

_NUMBER = re.compile(r"[+-]?(\d+)(\.\d*)?([eE][+-]?\d+)?|[+-]?\.\d+([eE][+-]?\d+)?")
_STORED_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_WHOLE = re.compile(r"[+-]?\d{1,18}")


@dataclass(frozen=True, slots=True)
class _Meaning:
    """The rows that a common name may stand for: stored names first, then by sensor type."""

    stored: tuple[str, ...]
    # Where boards of these types write the value under a general name.
    of_types: tuple[str, ...] = ()
    general: tuple[str, ...] = ()


_TEMPERATURE = _Meaning(("temperature", "dht11_temperature", "ds18b20_temperature", "ds18b20"))
_HUMIDITY = _Meaning(("humidity", "dht11_humidity"))
_RAIN = _Meaning(("rain", "rain_sensor", "is_raining"), ("rain_sensor",), ("value", "raining"))
_RAIN_LEVEL = _Meaning(("rain_level", "rain_sensor_level"), ("rain_sensor",), ("level",))
_DS18B20 = _Meaning(("ds18b20", "ds18b20_temperature"), ("ds18b20",), ("temperature",))
_DHT11_TEMPERATURE = _Meaning(("dht11_temperature",), ("dht11", "dht22", ""), ("temperature",))
_DHT11_HUMIDITY = _Meaning(("dht11_humidity",), ("dht11", "dht22", ""), ("humidity",))

# The names that the platform offers to people and to language models.
COMMON_NAMES: dict[str, _Meaning] = {
    "温度": _TEMPERATURE,
    "temperature": _TEMPERATURE,
    "湿度": _HUMIDITY,
    "humidity": _HUMIDITY,
    "雨水": _RAIN,
    "雨滴": _RAIN,
    "雨水传感器": _RAIN,
    "是否下雨": _RAIN,
    "rain": _RAIN,
    "rain_sensor": _RAIN,
    "雨水级别": _RAIN_LEVEL,
    "rain_level": _RAIN_LEVEL,
    "rain_sensor_level": _RAIN_LEVEL,
    "ds18b20": _DS18B20,
    "ds18b20温度": _DS18B20,
    "ds18b20_temperature": _DS18B20,
    "dht11_temperature": _DHT11_TEMPERATURE,
    "dht11_humidity": _DHT11_HUMIDITY,
}

_USUAL_UNITS = (("temperature", "°C"), ("ds18b20", "°C"), ("humidity", "%"))


@dataclass(frozen=True, slots=True)
class _Kind:
    """An entry of a product's `sensor_types`, its names made comparable."""

    shown: str
    name: str
    key: str
    data_field: str
    sensor_type: str

    def describes(self, row: SensorRow) -> bool:
        """Whether the entry tells of this row."""
        stored = row.sensor_name.casefold()
        if self.key == stored:
            return True
        if self.data_field != stored:
            return False
        of_row = (row.sensor_type or "").casefold()
        return not self.sensor_type or not of_row or self.sensor_type == of_row


@lru_cache(maxsize=2048)
def _kinds(sensor_types_json: str | None) -> tuple[_Kind, ...]:
    return tuple(
        _Kind(
            shown=str(kind["name"]),
            name=plain_name(str(kind["name"])),
            key=plain_name(key),
            data_field=plain_name(str(kind.get("data_field") or "")),
            sensor_type=plain_name(str(kind.get("type") or "")),
        )
        for key, kind in json_object(sensor_types_json).items()
        if isinstance(kind, dict) and kind.get("name") and kind.get("enabled") is not False
    )


def stored_name(sensor: str) -> str | None:
    """The name under which a sensor would be stored, if `sensor` can be one at all."""
    folded = sensor.casefold()
    return folded if _STORED_NAME.fullmatch(folded) else None


def stored(device: DeviceReadings, name: str) -> SensorRow | None:
    """The row with that stored name and a value, if the device has it."""
    for row in device.rows:
        if row.sensor_value is not None and row.sensor_name.casefold() == name:
            return row
    return None


def find(device: DeviceReadings, sensor: str) -> SensorRow:
    """The row that `sensor` means: a stored name, a display name of the product, a common name.

    Raises:
        SensorNotFound: none, or more than one display name, fits; it lists the sensors there are.
    """
    wanted = plain_name(sensor)
    row = stored(device, wanted)
    if row is not None:
        return row
    rows = [row for row in device.rows if row.sensor_value is not None]
    kinds = _kinds(device.sensor_types_json)
    displayed = {
        row for kind in kinds if kind.name == wanted for row in rows if kind.describes(row)
    }
    if len(displayed) == 1:
        return displayed.pop()
    meant = _by_common_name(rows, wanted)
    if meant is None:
        raise SensorNotFound(sensor=sensor, sensors=_listed(rows, kinds))
    return meant


def reading(device: DeviceReadings, row: SensorRow, now: datetime) -> Reading:
    """What a row says; `now` is naive and in the database's zone, as the row's time is."""
    raw = row.sensor_value or ""
    return Reading(
        value=value_of(raw),
        unit=row.sensor_unit or usual_unit(row.sensor_name),
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
    """Every sensor of a device that has a value."""
    return [reading(device, row, now) for row in device.rows if row.sensor_value is not None]


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


@lru_cache(maxsize=1024)
def usual_unit(sensor_name: str) -> str:
    """The unit that such a sensor has when none is stored; empty when there is none."""
    name = sensor_name.casefold()
    return next((unit for part, unit in _USUAL_UNITS if part in name), "")


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


def _listed(rows: list[SensorRow], kinds: tuple[_Kind, ...]) -> str:
    shown = []
    for row in rows:
        names = [kind.shown for kind in kinds if kind.describes(row)]
        shown.append(f"{row.sensor_name} ({', '.join(names)})" if names else row.sensor_name)
    return ", ".join(shown) or "-"


def _age(timestamp: datetime | None, now: datetime) -> float | None:
    if timestamp is None:
        return None
    # A board's clock may run ahead of the database's; no reading comes from the future.
    return round(max(0.0, (now - timestamp).total_seconds()), 3)
