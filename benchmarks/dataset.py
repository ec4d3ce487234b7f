"""The devices that are asked: tables, rows, and the answer that each device must give.

Everything about device ``n`` follows from ``n``, so that the load generators (``load/common.h``
and ``load/http.lua`` repeat the two formulas below) know the right answer without a lookup.

The products of devices with an even number define the sensor name 温度; those of odd ones do not.
"""

DEVICES = 10_000
GROWN_DEVICES = 1_000_000
SENSORS = 5

SCHEMA = """
CREATE TABLE device_products (
  id INT PRIMARY KEY AUTO_INCREMENT,
  product_code VARCHAR(50) NOT NULL UNIQUE,
  name VARCHAR(100) NOT NULL,
  sensor_types JSON,
  control_ports JSON,
  device_capabilities JSON
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_ci;

CREATE TABLE device_main (
  id INT PRIMARY KEY AUTO_INCREMENT,
  uuid VARCHAR(36) NOT NULL UNIQUE,
  device_id VARCHAR(50) NOT NULL UNIQUE,
  product_id INT NULL,
  name VARCHAR(100) NOT NULL,
  device_secret VARCHAR(255) NOT NULL,
  device_status VARCHAR(20) NOT NULL DEFAULT 'pending',
  is_online TINYINT(1) NOT NULL DEFAULT 0,
  is_active TINYINT(1) NOT NULL DEFAULT 1,
  last_seen DATETIME NULL,
  last_heartbeat DATETIME NULL,
  location VARCHAR(255) NULL,
  group_name VARCHAR(100) NULL,
  room VARCHAR(100) NULL,
  floor VARCHAR(50) NULL,
  last_report_data JSON,
  device_sensor_config JSON,
  device_control_config JSON,
  device_settings JSON
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_ci;

CREATE TABLE device_sensors (
  id INT PRIMARY KEY AUTO_INCREMENT,
  device_uuid VARCHAR(36) NOT NULL,
  sensor_name VARCHAR(50) NOT NULL,
  sensor_value VARCHAR(255) NOT NULL,
  sensor_unit VARCHAR(20) NOT NULL DEFAULT '',
  sensor_type VARCHAR(50) NULL,
  timestamp DATETIME NOT NULL,
  created_at DATETIME NOT NULL,
  updated_at DATETIME NOT NULL,
  UNIQUE KEY device_sensor (device_uuid, sensor_name)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_unicode_ci;
"""

_PRODUCTS = """
INSERT INTO device_products (product_code, name, sensor_types, control_ports, device_capabilities)
SELECT CONCAT('ESP32-', seq), CONCAT('教学板 ', seq),
  CONCAT('{"DHT11_temperature": {"name": "', IF(seq % 2, '温度', '室内气温'), '", "type": "DHT11",
     "unit": "°C", "data_field": "temperature", "enabled": true},
    "DHT11_humidity": {"name": "', IF(seq % 2, '湿度', '室内湿度'), '", "type": "DHT11",
     "unit": "%", "data_field": "humidity", "enabled": true},
    "RAIN_SENSOR": {"name": "雨水", "type": "RAIN_SENSOR", "unit": "",
     "data_field": "rain", "enabled": true}}'),
  '{"led_1": {"name": "LED 1", "type": "LED", "device_id": 1, "enabled": true},
    "led_2": {"name": "LED 2", "type": "LED", "device_id": 2, "enabled": true},
    "relay_1": {"name": "继电器 1", "type": "RELAY", "device_id": 1, "enabled": true},
    "servo_1": {"name": "舵机 1", "type": "SERVO", "device_id": 1, "enabled": true},
    "pwm_2": {"name": "PWM 2", "type": "PWM", "device_id": 2, "enabled": true}}',
  '{"sensors": true, "control": true}'
FROM seq_1_to_4;
"""

# A random-looking first part keeps the index from being one long run of neighbours, as real
# UUIDs do; one device in ten has presets, which is where the long rows are.
_UUID = (
    "CONCAT(LPAD(LOWER(HEX({n} * 2654435761 % 4294967296)), 8, '0'),"
    " '-0000-4000-8000-', LPAD(LOWER(HEX({n})), 12, '0'))"
)
_TEMPERATURE = "CONCAT(10 + {n} % 25, '.', 1 + {n} % 9)"
_BEIJING_NOW = "UTC_TIMESTAMP() + INTERVAL 8 HOUR"

_DEVICES = """
INSERT INTO device_main (uuid, device_id, product_id, name, device_secret, device_status,
  is_online, is_active, last_seen, last_heartbeat, location, group_name, room, floor,
  last_report_data, device_sensor_config, device_control_config, device_settings)
SELECT {uuid}, CONCAT('BOARD-', seq), 1 + seq % 4, CONCAT('bench-', seq), MD5(seq), 'online',
  1, 1, {now}, {now}, '实验楼', '物联网一班', CONCAT('A', seq % 400), '3',
  CONCAT('{{"sensor": "DHT11", "temperature": ', {temperature}, ', "humidity": 51.5}}'), '{{}}',
  '{{"led_1": {{"alias": "客厅灯"}}}}',
  IF(seq % 10 = 0, '{{"preset_commands": [
    {{"preset_key": "welcome", "name": "欢迎", "type": "sequence", "preset_type": "sequence",
      "steps": [{{"command": {{"cmd": "led", "device_id": 1, "device_type": "led", "value": 1}},
                  "delay": 1}},
                {{"command": {{"cmd": "led", "device_id": 1, "device_type": "led", "value": 0}},
                  "delay": 0}}]}},
    {{"preset_key": "blink", "name": "闪烁", "device_type": "led", "device_id": 1,
      "preset_type": "blink",
      "parameters": {{"count": 3, "on_time": 500, "off_time": 500}}}}]}}', '{{}}')
FROM seq_0_to_{last};
"""

_SENSORS = """
INSERT INTO device_sensors (device_uuid, sensor_name, sensor_value, sensor_unit, sensor_type,
  timestamp, created_at, updated_at)
SELECT {uuid},
  ELT(sensor.seq, 'temperature', 'humidity', 'rain', 'rain_level', 'soil'),
  ELT(sensor.seq, {temperature}, '51.5', IF(device.seq % 4 = 0, 'True', 'False'), '1843', '37'),
  ELT(sensor.seq, '°C', '%', '', '', '%'),
  ELT(sensor.seq, 'DHT11', 'DHT11', 'RAIN_SENSOR', 'RAIN_SENSOR', 'SOIL_MOISTURE'),
  {now}, {now}, {now}
FROM seq_0_to_{last} AS device JOIN seq_1_to_{sensors} AS sensor;
"""


# As old installations have it: statistics that call a full table empty, so that the optimiser
# would rather scan it than use an index. A table reads them again when it is renamed.
_NO_STATISTICS = """
ALTER TABLE device_main STATS_AUTO_RECALC=0;
ALTER TABLE device_sensors STATS_AUTO_RECALC=0;
UPDATE mysql.innodb_table_stats SET n_rows = 0, clustered_index_size = 1,
  sum_of_other_index_sizes = 1 WHERE database_name = DATABASE();
RENAME TABLE device_main TO renamed, renamed TO device_main,
  device_sensors TO renamed, renamed TO device_sensors;
"""


def device_uuid(number: int) -> str:
    """The UUID of device ``number``."""
    return f"{number * 2654435761 % 2**32:08x}-0000-4000-8000-{number:012x}"


def temperature(number: int) -> str:
    """What device ``number`` reports; never a whole number, so every JSON writer agrees on it."""
    return f"{10 + number % 25}.{1 + number % 9}"


def statements(database: str, devices: int, *, statistics: bool = True) -> str:
    """SQL that creates ``database`` and fills it with ``devices`` devices and their sensors.

    Without ``statistics`` the server's own call the tables empty.
    """
    last = devices - 1
    fill_devices = _DEVICES.format(
        uuid=_UUID.format(n="seq"),
        temperature=_TEMPERATURE.format(n="seq"),
        now=_BEIJING_NOW,
        last=last,
    )
    fill_sensors = _SENSORS.format(
        uuid=_UUID.format(n="device.seq"),
        temperature=_TEMPERATURE.format(n="device.seq"),
        now=_BEIJING_NOW,
        last=last,
        sensors=SENSORS,
    )
    return "\n".join(
        (
            f"CREATE DATABASE {database} CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci;",
            f"USE {database};",
            SCHEMA,
            # MariaDB fills an empty table in bulk when it need not check each row on the way.
            "SET unique_checks = 0, foreign_key_checks = 0;",
            _PRODUCTS,
            fill_devices,
            fill_sensors,
            "ANALYZE TABLE device_products, device_main, device_sensors;",
            "" if statistics else _NO_STATISTICS,
        )
    )
