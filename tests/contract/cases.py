"""What is asked and what the contract says is answered, for every transport alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.lab.platform import (
    ALIAS,
    BOARD_A,
    BOARD_B,
    BOARD_C,
    BOARD_D,
    BOARD_E,
    ENDLESS_SEQUENCE,
    MALFORMED_PRESET,
    NAMED_PORT,
    ORDINARY_PRESET,
    SEQUENCE,
    TEXT_SENSOR,
    TEXT_VALUE,
    UNKNOWN_BOARD,
)

Fields = dict[str, Any]


# ---- sensor-data --------------------------------------------------------------------------------


@dataclass(frozen=True)
class SensorCase:
    """A sensor's name, and the row that it must find."""

    device_uuid: str
    sensor: str
    row: str
    value: object
    unit: str


def _sensors() -> list[SensorCase]:
    temperature = ("temperature", 29.1, "°C")
    humidity = ("humidity", 61, "%")
    rain = ("rain", 0, "")
    rain_level = ("rain_level", 3, "级")
    water = ("temperature", 23.8, "°C")
    meant = [
        (BOARD_A, temperature, "温度 temperature TEMPERATURE DHT11_temperature 室内温度"),
        (BOARD_A, humidity, "湿度 humidity Humidity DHT11_humidity 室内湿度"),
        (BOARD_A, rain, "雨水 雨滴 雨水传感器 是否下雨 rain RAIN_SENSOR rain_sensor 窗外雨水"),
        (BOARD_A, rain_level, "雨水级别 rain_level RAIN_SENSOR_level 窗外雨量"),
        (BOARD_B, water, "DS18B20 ds18b20 DS18B20温度 DS18B20_temperature 温度 temperature 水温"),
        (BOARD_D, (TEXT_SENSOR, TEXT_VALUE, ""), TEXT_SENSOR),
    ]
    return [
        SensorCase(board, name, *told) for board, told, names in meant for name in names.split()
    ]


SENSORS = _sensors()


# ---- control ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ControlCase:
    """A control's fields, and exactly what the board must be sent."""

    name: str
    fields: Fields
    command: Fields
    device_uuid: str = BOARD_A

    @property
    def request(self) -> Fields:
        return {"device_uuid": self.device_uuid, **self.fields}


def on_port(port_type: str, port_id: object, action: str = "on", **more: object) -> Fields:
    return {"port_type": port_type, "port_id": port_id, "action": action, **more}


def switch(cmd: str, device_id: int, action: str = "on") -> Fields:
    return {"cmd": cmd, "device_id": device_id, "action": action}


def servo(device_id: int, angle: int) -> Fields:
    return {"cmd": "servo", "device_id": device_id, "angle": angle}


def pwm(channel: int, duty_cycle: int, frequency: int = 5000) -> Fields:
    return {
        "cmd": "pwm",
        "channel": channel,
        "device_id": channel,
        "frequency": frequency,
        "duty_cycle": duty_cycle,
    }


CONTROLS = [
    ControlCase("led on", on_port("led", 1), switch("led", 1)),
    ControlCase("led off", on_port("led", 4, "off"), switch("led", 4, "off")),
    ControlCase("all leds", on_port("led", 0, "off"), switch("led", 0, "off")),
    ControlCase("relay on", on_port("relay", 2), switch("relay", 2)),
    ControlCase("all relays", on_port("relay", 0), switch("relay", 0)),
    ControlCase("port type in any case", on_port("Led", 1), switch("led", 1)),
    ControlCase("servo least", on_port("servo", 1, "set", value=0), servo(1, 0)),
    ControlCase("servo most", on_port("SERVO", 1, "set", value=180), servo(1, 180)),
    ControlCase("pwm", on_port("pwm", 2, "set", value=50), pwm(2, 50)),
    ControlCase("pwm least", on_port("pwm", 1, "set", value=0), pwm(1, 0)),
    ControlCase(
        "pwm with frequency", on_port("pwm", 1, "set", value=100, frequency=1000), pwm(1, 100, 1000)
    ),
    ControlCase("numbers as text", on_port("servo", "1", "set", value="90"), servo(1, 90)),
    ControlCase(
        "frequency as text",
        on_port("pwm", "2", "set", value="5", frequency="800"),
        pwm(2, 5, 800),
    ),
    ControlCase("value null", on_port("led", 1, value=None), switch("led", 1)),
    ControlCase("value empty", on_port("led", 1, value="", port=""), switch("led", 1)),
    ControlCase(
        "frequency 0", on_port("pwm", 2, "set", value=5, frequency=0, port=None), pwm(2, 5)
    ),
    ControlCase("white space", on_port(" led ", " 1 ", "\tON "), switch("led", 1)),
    ControlCase("white space alone", on_port("led", 1, value=" ", port="\u3000"), switch("led", 1)),
    ControlCase(
        "port by zero-width name", {"port": f"{ALIAS}\u200b", "action": "ON"}, switch("led", 1)
    ),
    ControlCase("unknown fields", on_port("led", 1, user="kim", deep={"a": [1]}), switch("led", 1)),
    ControlCase("port by alias", {"port": ALIAS, "action": "off"}, switch("led", 1, "off")),
    ControlCase("port by name", {"port": "LED2", "action": "on"}, switch("led", 2)),
    ControlCase("port by name, loosely", {"port": " ｌｅｄ 3", "action": "on"}, switch("led", 3)),
    ControlCase("servo by name", {"port": "servo1", "action": "set", "value": 7}, servo(1, 7)),
    ControlCase(
        "named port under a free key",
        {"port": NAMED_PORT, "action": "on"},
        switch("relay", 7),
        BOARD_D,
    ),
    ControlCase("device's own port by id", on_port("relay", 7), switch("relay", 7), BOARD_D),
    ControlCase("default ports", on_port("relay", 4), switch("relay", 4), BOARD_E),
]


# ---- refusals -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A request that is refused: with what, and what its `detail` must mention."""

    name: str
    operation: str
    fields: Fields
    code: int
    error: str
    mentions: tuple[str, ...] = ()
    # The property at fault (`__propName`, and the first part of 422's `loc`).
    at_fault: str | None = None
    # It has a type that a query string or a path can't carry.
    json_only: bool = False


def _of(board: str, **fields: object) -> Fields:
    return {"device_uuid": board, **fields}


def _control(**fields: object) -> Fields:
    return _of(BOARD_A, **fields)


NOT_FOUND = [
    Refusal("no such device", "sensor-data", _of(UNKNOWN_BOARD, sensor="温度"), 404,
            "device_not_found", at_fault="device_uuid"),
    Refusal("no such device", "control", _of(UNKNOWN_BOARD, **on_port("led", 1)), 404,
            "device_not_found", at_fault="device_uuid"),
    Refusal("no such device", "preset", _of(UNKNOWN_BOARD, preset_key="x"), 404,
            "device_not_found", at_fault="device_uuid"),
    Refusal("no such device", "device", _of(UNKNOWN_BOARD), 404,
            "device_not_found", at_fault="device_uuid"),
    Refusal("no such sensor", "sensor-data", _of(BOARD_A, sensor="气压"), 404, "sensor_not_found",
            ("气压", "temperature", "humidity", "rain", "rain_level"), "sensor"),
    Refusal("DS18B20 of a DHT11 board", "sensor-data", _of(BOARD_A, sensor="DS18B20"), 404,
            "sensor_not_found", ("temperature",), "sensor"),
    Refusal("no sensors", "sensor-data", _of(BOARD_E, sensor="温度"), 404, "sensor_not_found",
            at_fault="sensor"),
    Refusal("no such preset", "preset", _of(BOARD_A, preset_key="nope"), 404, "preset_not_found",
            (SEQUENCE, ORDINARY_PRESET), "preset_key"),
    Refusal("no presets", "preset", _of(BOARD_E, preset_key="nope"), 404, "preset_not_found",
            at_fault="preset_key"),
    Refusal("no such operation", "no-such", {}, 404, "operation_not_found", ("control",)),
]  # fmt: skip

INVALID = [
    Refusal("port type", "control", _control(**on_port("laser", 1)), 400, "invalid_control",
            ("led", "relay", "servo", "pwm"), "port_type"),
    Refusal("action", "control", _control(**on_port("led", 1, "explode")), 400, "invalid_control",
            ("on", "off"), "action"),
    Refusal("set of a led", "control", _control(**on_port("led", 1, "set", value=1)), 400,
            "invalid_control", ("on", "off"), "action"),
    Refusal("on of a servo", "control", _control(**on_port("servo", 1, "on")), 400,
            "invalid_control", ("set",), "action"),
    Refusal("servo without value", "control", _control(**on_port("servo", 1, "set")), 400,
            "invalid_control", ("180",), "value"),
    Refusal("pwm with value null", "control", _control(**on_port("pwm", 1, "set", value=None)),
            400, "invalid_control", ("100",), "value"),
    Refusal("port 999", "control", _control(**on_port("led", 999)), 400, "invalid_control",
            ("led 1", "led 4", ALIAS), "port_id"),
    Refusal("port -1", "control", _control(**on_port("relay", -1)), 400, "invalid_control",
            at_fault="port_id"),
    Refusal("all servos", "control", _control(**on_port("servo", 0, "set", value=1)), 400,
            "invalid_control", at_fault="port_id"),
    Refusal("pwm 3", "control", _of(BOARD_E, **on_port("pwm", 3, "set", value=1)), 400,
            "invalid_control", ("pwm 2",), "port_id"),
    Refusal("port 5 of default ports", "control", _of(BOARD_E, **on_port("led", 5)), 400,
            "invalid_control", ("led 4",), "port_id"),
    Refusal("named ports decide instead", "control", _of(BOARD_D, **on_port("led", 1)), 400,
            "invalid_control", (NAMED_PORT,), "port_id"),
    Refusal("unknown port name", "control", _control(port="卧室灯", action="on"), 400,
            "invalid_control", ("卧室灯", ALIAS, "RELAY2"), "port"),
    Refusal("steps are not a list", "preset", _of(BOARD_A, preset_key=MALFORMED_PRESET), 400,
            "invalid_preset", at_fault="preset_key"),
    Refusal("longer than PRESET_TIMEOUT", "preset", _of(BOARD_A, preset_key=ENDLESS_SEQUENCE),
            400, "invalid_preset", ("3600", "110"), "preset_key"),
    Refusal("unknown parameter", "preset",
            _of(BOARD_A, preset_key=ORDINARY_PRESET, parameters={"volume": 3}), 400,
            "invalid_preset", ("volume", "count", "on_time", "off_time"), "parameters"),
    Refusal("offline device, ordinary", "preset", _of(BOARD_C, preset_key=ORDINARY_PRESET), 400,
            "device_offline"),
    Refusal("offline device, sequence", "preset", _of(BOARD_C, preset_key=SEQUENCE), 400,
            "device_offline"),
]  # fmt: skip

WRONG_FIELDS = [
    Refusal("no device_uuid", "sensor-data", {"sensor": "温度"}, 422, "validation_error",
            at_fault="device_uuid"),
    Refusal("empty device_uuid", "sensor-data", _of("", sensor="温度"), 422, "validation_error",
            at_fault="device_uuid"),
    Refusal("device_uuid of 37", "sensor-data", _of("u" * 37, sensor="温度"), 422,
            "validation_error", at_fault="device_uuid"),
    Refusal("device_uuid of 37", "device", _of("u" * 37), 422, "validation_error",
            at_fault="device_uuid"),
    Refusal("device_uuid a number", "sensor-data", _of(5, sensor="温度"), 422,  # type: ignore[arg-type]
            "validation_error", at_fault="device_uuid", json_only=True),
    Refusal("no sensor", "sensor-data", _of(BOARD_A), 422, "validation_error", at_fault="sensor"),
    Refusal("no fields", "control", {}, 422, "validation_error", at_fault="device_uuid"),
    Refusal("no port at all", "control", _control(action="on", port=" "), 422,
            "validation_error", ("port_type", "或用 port"), "port_type"),
    Refusal("blank sensor", "sensor-data", _of(BOARD_A, sensor=" "), 422,
            "validation_error", at_fault="sensor"),
    Refusal("blank preset_key", "preset", _of(BOARD_A, preset_key=" "), 422,
            "validation_error", at_fault="preset_key"),
    Refusal("no port_type", "control", _control(port_id=1, action="on"), 422, "validation_error",
            at_fault="port_type"),
    Refusal("no port_id", "control", _control(port_type="led", action="on"), 422,
            "validation_error", at_fault="port_id"),
    Refusal("no action", "control", _control(port_type="led", port_id=1), 422,
            "validation_error", at_fault="action"),
    Refusal("port_id no number", "control", _control(**on_port("led", "one")), 422,
            "validation_error", at_fault="port_id"),
    Refusal("port_id a boolean", "control", _control(**on_port("led", True)), 422,
            "validation_error", at_fault="port_id"),
    Refusal("servo past 180", "control", _control(**on_port("servo", 1, "set", value=181)), 422,
            "validation_error", at_fault="value"),
    Refusal("servo below 0", "control", _control(**on_port("servo", 1, "set", value=-1)), 422,
            "validation_error", at_fault="value"),
    Refusal("pwm past 100", "control", _control(**on_port("pwm", 1, "set", value="101")), 422,
            "validation_error", at_fault="value"),
    Refusal("value a list", "control", _control(**on_port("pwm", 1, "set", value=[1])), 422,
            "validation_error", at_fault="value"),
    Refusal("frequency -1", "control", _control(**on_port("pwm", 1, "set", value=1, frequency=-1)),
            422, "validation_error", at_fault="frequency"),
    Refusal("no preset_key", "preset", _of(BOARD_A), 422, "validation_error",
            at_fault="preset_key"),
    Refusal("parameters a list", "preset",
            _of(BOARD_A, preset_key=ORDINARY_PRESET, parameters=[1]), 422, "validation_error",
            at_fault="parameters"),
    Refusal("parameter of another type", "preset",
            _of(BOARD_A, preset_key=ORDINARY_PRESET, parameters={"count": "many"}), 422,
            "validation_error", at_fault="parameters"),
    Refusal("no requests", "batch", {}, 422, "validation_error", at_fault="requests"),
    Refusal("empty requests", "batch", {"requests": []}, 422, "validation_error",
            at_fault="requests"),
    Refusal("101 requests", "batch", {"requests": [{"operation": "health"}] * 101}, 422,
            "validation_error", at_fault="requests"),
    Refusal("requests of no objects", "batch", {"requests": ["health"]}, 422,
            "validation_error", at_fault="requests"),
]  # fmt: skip

PASSED = [
    Refusal("expires_at passed", "control", _control(**on_port("led", 1), expires_at=1.5), 408,
            "expired", at_fault="expires_at"),
    Refusal("expires_at passed", "sensor-data", _of(BOARD_A, sensor="温度", expires_at="1"), 408,
            "expired", at_fault="expires_at"),
    Refusal("expires_at passed", "preset", _of(BOARD_A, preset_key=SEQUENCE, expires_at=0), 408,
            "expired", at_fault="expires_at"),
    Refusal("expires_at in milliseconds", "control",
            _control(**on_port("led", 1), expires_at=4102444800000), 400, "malformed_request",
            ("expires_at",), "expires_at"),
    Refusal("expires_at no number", "control", _control(**on_port("led", 1), expires_at="soon"),
            422, "validation_error", at_fault="expires_at"),
]  # fmt: skip

BAD_IDS = [
    Refusal(f"request_id {bad!r:.20}", "control", _control(**on_port("led", 1), request_id=bad),
            400, "malformed_request", ("request_id",), "request_id")
    for bad in ("", "a b", "a/b", "编号", "x" * 129, 5, True, {"a": 1})
]  # fmt: skip

REFUSALS = [*NOT_FOUND, *INVALID, *WRONG_FIELDS, *PASSED, *BAD_IDS]

MALFORMED_PAYLOADS = {
    "a BOM": b'\xef\xbb\xbf{"device_uuid":"x"}',
    "empty": b"",
    "no JSON": b"turn it on",
    "cut off": b'{"device_uuid":',
    "a list": b"[]",
    "a text": b'"on"',
    "a number": b"7",
    "null": b"null",
    "NaN": b'{"device_uuid":NaN}',
    "Infinity": b'{"device_uuid":-Infinity}',
    "a number past all floats": b'{"value":1e400}',
    "bad UTF-8": b'{"device_uuid":"\xff\xfe"}',
    "encoded surrogate": b'{"device_uuid":"\xed\xa0\x80"}',
    "lone surrogate": b'{"device_uuid":"\\ud800"}',
    "two objects": b"{}{}",
    "too deep": b'{"a":' + b"[" * 20000 + b"]" * 20000 + b"}",
}
