"""The service that writes the tables, and the classroom that the tests find in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from tests.lab.mariadb import MariaDb

Json = Mapping[str, Any]

# Fixed, without daylight saving since 1991: no time zone database is needed.
BEIJING = timezone(timedelta(hours=8))

SECRET_PREFIX = "device-secret-"
"""Every device's secret begins so; it must never be seen outside the database."""

BOARD_A = "a0000000-0000-4000-8000-00000000000a"
"""Online; DHT11 and rain sensors; every kind of port; presets of every shape."""
BOARD_B = "b0000000-0000-4000-8000-00000000000b"
"""Online; only a DS18B20, which reports as `temperature`."""
BOARD_C = "c0000000-0000-4000-8000-00000000000c"
"""Offline, never seen, of no product; has a preset."""
BOARD_D = "d0000000-0000-4000-8000-00000000000d"
"""Online; ports named by people, under free keys; a sensor whose value is Chinese text."""
BOARD_E = "e0000000-0000-4000-8000-00000000000e"
"""Online; no sensors at all."""
BOARDS = (BOARD_A, BOARD_B, BOARD_C, BOARD_D, BOARD_E)
UNKNOWN_BOARD = "f0000000-0000-4000-8000-00000000000f"
"""In no table."""

NAMES = {
    BOARD_A: "一号教室主板",
    BOARD_B: "水温测量板",
    BOARD_C: "库房备用板",
    BOARD_D: "门禁控制板",
    BOARD_E: "新装开发板",
}

SEQUENCE = "class_begin"
"""Four steps as stored by the platform (`value`, `duty`), 0.4 s in all."""
SLOW_SEQUENCE = "evening_lights"
"""Two steps, 5 s after each."""
ENDLESS_SEQUENCE = "watering"
"""Longer than any PRESET_TIMEOUT."""
ORDINARY_PRESET = "blink_led_1"
"""As the platform's page saves it: no `command` key."""
READY_PRESET = "all_off"
"""Carries its `command`."""
MALFORMED_PRESET = "broken"
"""A sequence whose steps are not a list."""

ALIAS = "客厅灯"
"""What a person called led 1 of board A."""
NAMED_PORT_KEY, NAMED_PORT = "front_door", "前门"
"""The relay with device id 7 on board D."""
TEXT_SENSOR, TEXT_VALUE = "weather", "晴转多云"

DEVICE_COLUMNS = ("device_sensor_config", "device_control_config", "device_settings")
PRODUCT_COLUMNS = ("sensor_types", "control_ports")
"""The columns that hold configuration."""

PRESETS: Sequence[Json] = (
    {
        "preset_key": SEQUENCE,
        "name": "上课模式",
        "type": "sequence",
        "preset_type": "sequence",
        "steps": [
            {
                "command": {"cmd": "led", "device_id": 1, "device_type": "led", "value": 1},
                "delay": 0.2,
            },
            {
                "command": {"cmd": "relay", "device_id": 2, "device_type": "relay", "value": 0},
                "delay": 0.2,
            },
            {
                "command": {"cmd": "servo", "device_id": 1, "device_type": "servo", "angle": 90},
                "delay": 0,
            },
            {
                "command": {
                    "cmd": "pwm",
                    "device_id": 2,
                    "device_type": "pwm",
                    "frequency": 5000,
                    "duty": 50,
                },
                "delay": 0,
            },
        ],
    },
    {
        "preset_key": SLOW_SEQUENCE,
        "name": "傍晚灯光",
        "type": "sequence",
        "preset_type": "sequence",
        "steps": [
            {
                "command": {"cmd": "led", "device_id": 1, "device_type": "led", "value": 1},
                "delay": 5,
            },
            {
                "command": {"cmd": "led", "device_id": 2, "device_type": "led", "value": 1},
                "delay": 5,
            },
        ],
    },
    {
        "preset_key": ENDLESS_SEQUENCE,
        "name": "浇水",
        "type": "sequence",
        "preset_type": "sequence",
        "steps": [
            {
                "command": {"cmd": "relay", "device_id": 1, "device_type": "relay", "value": 1},
                "delay": 3600,
            },
            {
                "command": {"cmd": "relay", "device_id": 1, "device_type": "relay", "value": 0},
                "delay": 0,
            },
        ],
    },
    {
        "preset_key": ORDINARY_PRESET,
        "name": "一号灯闪烁",
        "device_type": "led",
        "device_id": 1,
        "preset_type": "blink",
        "parameters": {"count": 3, "on_time": 500, "off_time": 500},
    },
    {
        "preset_key": READY_PRESET,
        "name": "全部关灯",
        "command": {"cmd": "led", "device_id": 0, "action": "off"},
    },
    {
        "preset_key": MALFORMED_PRESET,
        "name": "坏掉的预设",
        "type": "sequence",
        "preset_type": "sequence",
        "steps": "开灯",
    },
)

CLASSROOM_SENSORS: Json = {
    "DHT11_temperature": {
        "name": "室内温度",
        "type": "DHT11",
        "unit": "°C",
        "data_field": "temperature",
        "enabled": True,
    },
    "DHT11_humidity": {
        "name": "室内湿度",
        "type": "DHT11",
        "unit": "%",
        "data_field": "humidity",
        "enabled": True,
    },
    "RAIN_SENSOR": {
        "name": "窗外雨水",
        "type": "RAIN_SENSOR",
        "unit": "",
        "data_field": "rain",
        "enabled": True,
    },
    "RAIN_SENSOR_level": {
        "name": "窗外雨量",
        "type": "RAIN_SENSOR",
        "unit": "",
        "data_field": "rain_level",
        "enabled": True,
    },
}

CLASSROOM_PORTS: Json = {
    f"{kind}_{number}": {
        "name": f"{kind.upper()}{number}",
        "type": kind.upper(),
        "device_id": number,
        "enabled": True,
    }
    for kind, count in {"led": 4, "relay": 2, "servo": 1, "pwm": 2}.items()
    for number in range(1, count + 1)
}


def beijing_now() -> datetime:
    """The time as the platform stores it: naive, of Beijing, in whole seconds."""
    return datetime.now(BEIJING).replace(tzinfo=None, microsecond=0)


class Platform:
    """Writes rows as the platform's main backend does."""

    def __init__(self, db: MariaDb) -> None:
        self._db = db

    def add_product(
        self,
        code: str,
        name: str,
        *,
        sensor_types: Json | None = None,
        control_ports: Json | None = None,
        capabilities: Json | None = None,
    ) -> int:
        """Add a product and return its id."""
        self._db.execute(
            "INSERT INTO device_products (product_code, name, sensor_types, control_ports,"
            " device_capabilities, manufacturer, version) VALUES (%s, %s, %s, %s, %s, %s, %s)",
            code,
            name,
            _json(sensor_types),
            _json(control_ports),
            _json(capabilities),
            "AIOT",
            "1.0",
        )
        (row,) = self._db.query("SELECT id FROM device_products WHERE product_code = %s", code)
        return int(row["id"])

    def add_device(
        self,
        uuid: str,
        name: str,
        *,
        product: int | None = None,
        online: bool = True,
        last_seen: datetime | None = None,
        active: bool = True,
        control_config: Json | None = None,
        sensor_config: Json | None = None,
        settings: Json | None = None,
        report_data: Json | None = None,
    ) -> None:
        """Add a device. One that is online was seen now unless ``last_seen`` says otherwise."""
        if online and last_seen is None:
            last_seen = beijing_now()
        self._db.execute(
            "INSERT INTO device_main (uuid, device_id, product_id, user_id, school_id, name,"
            " device_secret, device_status, is_online, is_active, last_seen, last_heartbeat,"
            " ip_address, firmware_version, hardware_version, location, group_name, room, floor,"
            " last_report_data, device_sensor_config, device_control_config, device_settings)"
            " VALUES (%s, %s, %s, 1, 1, %s, %s, %s, %s, %s, %s, %s, '192.168.1.20', '1.0.3',"
            " 'ESP32-S3', '教学楼', '一班', '101', '1', %s, %s, %s, %s)",
            uuid,
            f"AIOT-ESP32-{uuid}",
            product,
            name,
            f"{SECRET_PREFIX}{uuid}",
            "active" if online else "offline",
            online,
            active,
            last_seen,
            last_seen,
            _json(report_data),
            _json(sensor_config),
            _json(control_config),
            _json(settings),
        )

    def update_device(self, uuid: str, **columns: Any) -> None:
        """Set columns of a device's row; mappings and lists are stored as JSON."""
        assignments = ", ".join(f"`{column}` = %s" for column in columns)
        values = [_json(v) if isinstance(v, Mapping | list) else v for v in columns.values()]
        self._db.execute(f"UPDATE device_main SET {assignments} WHERE uuid = %s", *values, uuid)

    def set_stored(self, uuid: str, column: str, text: str | None) -> None:
        """Store a text in a column of a device or, if it is one of those, of its product.

        Nothing looks at the text: old installations have no check on their JSON columns.
        """
        if column in PRODUCT_COLUMNS:
            self._db.execute(
                f"UPDATE device_products p JOIN device_main d ON d.product_id = p.id"
                f" SET p.`{column}` = %s WHERE d.uuid = %s",
                text,
                uuid,
            )
        else:
            self._db.execute(f"UPDATE device_main SET `{column}` = %s WHERE uuid = %s", text, uuid)

    def drop_json_checks(self) -> None:
        """Turn the JSON columns into text, as an old dump that is read back leaves them."""
        for table, columns in (
            ("device_main", DEVICE_COLUMNS),
            ("device_products", PRODUCT_COLUMNS),
        ):
            for column in columns:
                self._db.execute(f"ALTER TABLE {table} MODIFY `{column}` LONGTEXT NULL")

    def set_presets(self, uuid: str, presets: Sequence[Any]) -> None:
        """Replace the presets of a device."""
        self.update_device(uuid, device_settings={"preset_commands": list(presets)})

    def report(
        self,
        uuid: str,
        sensor_name: str,
        value: str | None,
        *,
        unit: str | None = "",
        sensor_type: str | None = "DHT11",
        timestamp: datetime | None = None,
    ) -> None:
        """Store a sensor's latest value, measured now (naive Beijing) unless told otherwise.

        The device's own row (`last_seen`, `is_online`) is left as it is.
        """
        self._db.execute(
            "INSERT INTO device_sensors"
            " (device_uuid, sensor_name, sensor_value, sensor_unit, sensor_type, `timestamp`)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON DUPLICATE KEY UPDATE"
            " sensor_value = VALUES(sensor_value), sensor_unit = VALUES(sensor_unit),"
            " sensor_type = VALUES(sensor_type), `timestamp` = VALUES(`timestamp`)",
            uuid,
            sensor_name,
            value,
            unit,
            sensor_type,
            timestamp or beijing_now(),
        )

    def remove_device(self, uuid: str) -> None:
        """Delete a device and its sensors."""
        self._db.execute("DELETE FROM device_sensors WHERE device_uuid = %s", uuid)
        self._db.execute("DELETE FROM device_main WHERE uuid = %s", uuid)

    def clear(self) -> None:
        """Delete every row."""
        for table in ("device_sensors", "device_main", "device_products"):
            self._db.execute(f"DELETE FROM {table}")


def seed_classroom(db: MariaDb) -> Platform:
    """Leave exactly the five boards described above in the tables."""
    platform = Platform(db)
    platform.clear()
    _seed_board_a(platform)
    _seed_board_b(platform)
    platform.add_device(
        BOARD_C,
        NAMES[BOARD_C],
        online=False,
        settings={"preset_commands": [_preset(ORDINARY_PRESET), _preset(SEQUENCE)]},
    )
    _seed_board_d(platform)
    platform.add_device(BOARD_E, NAMES[BOARD_E])
    return platform


def _seed_board_a(platform: Platform) -> None:
    product = platform.add_product(
        "ESP32-CLASSROOM",
        "教室套件",
        sensor_types=CLASSROOM_SENSORS,
        control_ports=CLASSROOM_PORTS,
        capabilities={"sensors": ["DHT11", "RAIN_SENSOR"], "wifi": True},
    )
    platform.add_device(
        BOARD_A,
        NAMES[BOARD_A],
        product=product,
        control_config={"led_1": {"alias": ALIAS}},
        sensor_config={"DHT11_temperature": {"alias": "讲台温度"}},
        settings={"preset_commands": list(PRESETS)},
        report_data={"sensor": "DHT11", "temperature": 29.1, "humidity": 61},
    )
    platform.report(BOARD_A, "temperature", "29.1")
    platform.report(BOARD_A, "humidity", "61")
    platform.report(BOARD_A, "rain", "False", sensor_type="RAIN_SENSOR")
    platform.report(BOARD_A, "rain_level", "3", sensor_type="RAIN_SENSOR")


def _seed_board_b(platform: Platform) -> None:
    product = platform.add_product(
        "ESP32-WATER",
        "水温套件",
        sensor_types={
            "DS18B20": {
                "name": "水温",
                "type": "DS18B20",
                "unit": "°C",
                "data_field": "temperature",
                "enabled": True,
            }
        },
    )
    platform.add_device(
        BOARD_B,
        NAMES[BOARD_B],
        product=product,
        report_data={"sensor": "DS18B20", "temperature": 23.8},
    )
    platform.report(BOARD_B, "temperature", "23.8", sensor_type="DS18B20")


def _seed_board_d(platform: Platform) -> None:
    platform.add_device(
        BOARD_D,
        NAMES[BOARD_D],
        control_config={
            NAMED_PORT_KEY: {"name": NAMED_PORT, "type": "RELAY", "device_id": 7, "enabled": True}
        },
    )
    platform.report(BOARD_D, TEXT_SENSOR, TEXT_VALUE, sensor_type="TEXT")


def _preset(key: str) -> Json:
    return next(preset for preset in PRESETS if preset["preset_key"] == key)


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
