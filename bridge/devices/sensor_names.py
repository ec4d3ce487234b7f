"""What sensors are called: the common names, and those that a product and people give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from .models import SensorRow
from .names import plain_name
from .stored import first_text, is_blank, is_disabled, json_object, text_of, texts_of


@dataclass(frozen=True, slots=True)
class Meaning:
    """The rows that a common name may stand for: stored names first, then by sensor type."""

    stored: tuple[str, ...]
    # Where boards of these types write the value under a general name.
    of_types: tuple[str, ...] = ()
    general: tuple[str, ...] = ()


_TEMPERATURE = Meaning(("temperature", "dht11_temperature", "ds18b20_temperature", "ds18b20"))
_HUMIDITY = Meaning(("humidity", "dht11_humidity"))
_RAIN = Meaning(("rain", "rain_sensor", "is_raining"), ("rain_sensor",), ("value", "raining"))
_RAIN_LEVEL = Meaning(("rain_level", "rain_sensor_level"), ("rain_sensor",), ("level",))
_DS18B20 = Meaning(("ds18b20", "ds18b20_temperature"), ("ds18b20",), ("temperature",))
_DHT11_TEMPERATURE = Meaning(("dht11_temperature",), ("dht11", "dht22", ""), ("temperature",))
_DHT11_HUMIDITY = Meaning(("dht11_humidity",), ("dht11", "dht22", ""), ("humidity",))

# The names that the platform offers to people and to language models.
COMMON_NAMES: dict[str, Meaning] = {
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

# The product page offers `is_raining` for every rain sensor; boards' rows have other names.
_RAIN_FIELDS = {
    "is_raining": ("rain", "is_raining"),
    "rain": ("rain", "is_raining"),
    "level": ("rain_level", "level"),
    "rain_level": ("rain_level", "level"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A sensor that the product or the device's configuration tells of; names comparable."""

    # Its name in sentences; None if the entry is disabled.
    shown: str | None
    # Names that people gave, the product's display name, the entry's key: the strongest first.
    tiers: tuple[frozenset[str], frozenset[str], frozenset[str]]
    key: str
    # The stored names of the row that it may describe.
    stored: frozenset[str]
    # Of which types its row is; empty for any.
    types: frozenset[str]
    unit: str

    def describes(self, row: SensorRow) -> bool:
        """Whether the entry tells of this row."""
        name = row.sensor_name.casefold()
        if name == self.key:
            return True
        if name not in self.stored:
            return False
        of_row = plain_name(row.sensor_type or "")
        return not self.types or not of_row or of_row in self.types


class Kinds(NamedTuple):
    """All that the product or the device's configuration tells of; those enabled stand first."""

    all: tuple[Kind, ...]
    # Who bears a name, in groups: those whose strongest such name it is first.
    by_name: Mapping[str, Sequence[Sequence[Kind]]]


@lru_cache(maxsize=2048)
def kinds_of(sensor_types_json: str | None, sensor_config_json: str | None) -> Kinds:
    """The product's sensors, overlaid key by key by the device's own configuration.

    A pure function of the two texts, so that a cached result is never stale. What can't be read
    lends no name.
    """
    entries: dict[str, _Entry] = {}
    keys_of_product: dict[str, str] = {}
    for key, value in json_object(sensor_types_json).items():
        entries[key] = _Entry(_object(value), {}, of_product=True)
        keys_of_product.setdefault(plain_name(key), key)
    for key, value in json_object(sensor_config_json).items():
        known = key if key in entries else keys_of_product.get(plain_name(key), key)
        product = entries.get(known, _Entry({}, {}, of_product=False))
        entries[known] = product._replace(own={**product.own, **_object(value)})
    kinds = [_kind(plain_name(key), key, entry) for key, entry in entries.items()]
    kinds.sort(key=lambda kind: kind.shown is None)
    by_name: dict[str, list[list[Kind]]] = {}
    for tier in zip(*(kind.tiers for kind in kinds), strict=True):
        for name in frozenset().union(*tier):
            bearers = [kind for kind, names in zip(kinds, tier, strict=True) if name in names]
            by_name.setdefault(name, []).append(bearers)
    return Kinds(tuple(kinds), by_name)


class _Entry(NamedTuple):
    product: Mapping[str, Any]
    own: Mapping[str, Any]
    of_product: bool


def _object(value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    # An entry that is no object counts as disabled.
    return value if isinstance(value, Mapping) else {"enabled": False}


def _kind(key: str, shown_key: str, entry: _Entry) -> Kind:
    own = {name: value for name, value in entry.own.items() if not is_blank(value)}
    both = {**entry.product, **own}
    lends = not is_disabled(both)
    personal = texts_of(own, "custom_name", "alias") if lends else ()
    displayed = texts_of(both, "name") if lends else ()
    shown = (*personal, *displayed, shown_key) if lends else (None,)
    stored, types = _rows_of(key, both)
    return Kind(
        shown=shown[0],
        tiers=(
            frozenset(map(plain_name, personal)),
            frozenset(map(plain_name, displayed)),
            frozenset((key,) if lends and entry.of_product and key else ()),
        ),
        key=key,
        stored=stored,
        types=types,
        unit=text_of(both.get("unit")) or "",
    )


def _rows_of(key: str, entry: Mapping[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """Under which stored names an entry's row may be found, and of which sensor types it is."""
    sensor_type = plain_name(first_text(entry, "type") or "")
    types = frozenset((sensor_type,) if sensor_type else ())
    data_field = plain_name(first_text(entry, "data_field") or "")
    if sensor_type == "rain_sensor" and data_field in _RAIN_FIELDS:
        return frozenset((key, *_RAIN_FIELDS[data_field])), types
    if data_field:
        return frozenset((key, data_field)), types
    meaning = COMMON_NAMES.get(key)
    if meaning is None:
        return frozenset((key,)), types
    return frozenset((key, *meaning.stored, *meaning.general)), types or frozenset(meaning.of_types)
