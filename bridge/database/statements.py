"""Every statement that reads the platform's tables, fitted to the tables that there are.

Old installations have tables in several character sets and collations, lack columns, and have
statistics that call a full table empty. The statements below are right on any of them; `fitted`
names the index that a statement is to use, and works around what the tables lack.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

# The path of most requests: one sensor by its stored names, and no more. Not where the two columns
# joined have different collations, which a server refuses to compare.
SENSORS = """
SELECT 1, d.uuid, d.name, d.is_online, d.last_seen, p.sensor_types, d.device_sensor_config,
       s.sensor_name, s.sensor_value, s.sensor_unit, s.sensor_type, s.timestamp
  FROM device_main d
  LEFT JOIN device_products p ON p.id = d.product_id
  LEFT JOIN device_sensors s ON s.device_uuid = d.uuid AND s.sensor_name IN %s
 WHERE d.uuid IN %s
"""

# Devices first, then their sensors: each device's own columns are sent once, not once a sensor.
READINGS = """
SELECT 1, d.uuid, d.name, d.is_online, d.last_seen, p.sensor_types, d.device_sensor_config,
       NULL, NULL, NULL, NULL, NULL
  FROM device_main d
  LEFT JOIN device_products p ON p.id = d.product_id
 WHERE d.uuid IN %s
 UNION ALL
SELECT 0, s.device_uuid, NULL, NULL, NULL, NULL, NULL,
       s.sensor_name, s.sensor_value, s.sensor_unit, s.sensor_type, s.timestamp
  FROM device_sensors s
 WHERE s.device_uuid IN %s
"""
_SENSORS_APART = f"{READINGS.rstrip()} AND s.sensor_name IN %s\n"

PROFILES = """
SELECT d.uuid, d.name, d.is_online, p.control_ports, d.device_control_config, d.device_settings
  FROM device_main d
  LEFT JOIN device_products p ON p.id = d.product_id
 WHERE d.uuid IN %s
"""

# All that a single command needs: presets, in `device_settings`, may be long.
CONTROLS = PROFILES.replace(", d.device_settings", "")

_TABLES = "('device_main', 'device_products', 'device_sensors')"
COLUMNS_THERE = f"""
SELECT table_name, column_name, collation_name FROM information_schema.columns
 WHERE table_schema = DATABASE() AND table_name IN {_TABLES}
"""  # noqa: S608  the names are our own constants
INDEXES_THERE = f"""
SELECT table_name, index_name, column_name, seq_in_index FROM information_schema.statistics
 WHERE table_schema = DATABASE() AND table_name IN {_TABLES}
"""  # noqa: S608

# Without one of these a device has fewer names, ports or presets, and is served all the same.
_OPTIONAL = {
    "device_main": ("device_sensor_config", "device_control_config", "device_settings"),
    "device_products": ("sensor_types", "control_ports"),
}
_ALIASES = {"device_main": "d", "device_products": "p", "device_sensors": "s"}


class Statements(NamedTuple):
    """The statements as they are sent; `%s` each stand for a list."""

    sensors: str
    readings: str
    profiles: str
    controls: str
    # Whether `sensors` wants the uuids twice and the names last.
    apart: bool


def unfitted() -> Statements:
    return Statements(_alike(_SENSORS_APART), _alike(READINGS), PROFILES, CONTROLS, apart=True)


def fitted(columns: Iterable[tuple[Any, ...]], indexes: Iterable[tuple[Any, ...]]) -> Statements:
    """Statements for tables with these columns and indexes (rows of the statements above)."""
    collations = {(str(row[0]).lower(), str(row[1]).lower()): row[2] for row in columns}
    if not collations:
        return unfitted()
    devices = collations.get(("device_main", "uuid"))
    apart = devices is None or devices != collations.get(("device_sensors", "device_uuid"))
    changes = {
        f"{_ALIASES[table]}.{column}": "NULL"
        for table, names in _OPTIONAL.items()
        for column in names
        if (table, column) not in collations
    }
    for table, wanted in (
        ("device_main", ("uuid",)),
        ("device_products", ("id",)),
        ("device_sensors", ("device_uuid", "sensor_name")),
    ):
        index = _index_on(table, wanted, indexes)
        if index is not None:
            named = f"{table} {_ALIASES[table]}"
            changes[named] = f"{named} FORCE INDEX (`{index}`)"
    sensors, readings = (_SENSORS_APART, READINGS) if apart else (SENSORS, READINGS)
    if apart:
        sensors, readings = _alike(sensors), _alike(readings)
    sensors, readings, profiles, controls = (
        _changed(sql, changes) for sql in (sensors, readings, PROFILES, CONTROLS)
    )
    return Statements(sensors, readings, profiles, controls, apart)


def _index_on(table: str, wanted: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str | None:
    """The index that begins with the most of the `wanted` columns; None without the first."""
    parts: dict[str, dict[int, str]] = {}
    for of_table, index, column, place in rows:
        if str(of_table).lower() == table and column is not None:
            parts.setdefault(str(index), {})[int(place)] = str(column).lower()
    fits = {index: _fit(places, wanted) for index, places in sorted(parts.items())}
    best = max(fits, key=lambda index: fits[index], default=None)
    if best is None or not fits[best]:
        return None
    return best.replace("`", "``").replace("%", "%%")


def _fit(places: dict[int, str], wanted: tuple[str, ...]) -> int:
    count = 0
    while count < len(wanted) and places.get(count + 1) == wanted[count]:
        count += 1
    return count


def _alike(sql: str) -> str:
    """The columns that a UNION puts in one, converted to one collation."""
    for column in ("d.uuid", "s.device_uuid"):
        alike = f"CONVERT({column} USING utf8mb4) COLLATE utf8mb4_bin"
        sql = sql.replace(f", {column},", f", {alike},")
    return sql


def _changed(sql: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        sql = sql.replace(old, new)
    return sql
