"""Requests that work as they stand in the demo, and elsewhere with a device of one's own."""

from typing import NamedTuple

from ..devices.models import JsonObject

EXAMPLE_DEVICE = "demo-board-1"


class Example(NamedTuple):
    summary: str
    fields: JsonObject


_READING: JsonObject = {"device_uuid": EXAMPLE_DEVICE, "sensor": "温度"}
_LED_ON: JsonObject = {
    "device_uuid": EXAMPLE_DEVICE,
    "port_type": "led",
    "port_id": 1,
    "action": "on",
}

EXAMPLES: dict[str, list[Example]] = {
    "sensor-data": [Example("读温度 / read the temperature", _READING)],
    "control": [
        Example("打开 1 号 LED / switch LED 1 on", _LED_ON),
        Example(
            "舵机转到 90 度 / turn a servo to 90 degrees",
            {
                "device_uuid": EXAMPLE_DEVICE,
                "port_type": "servo",
                "port_id": 1,
                "action": "set",
                "value": 90,
            },
        ),
        Example(
            "按名称控制 / control a port by its name",
            {"device_uuid": EXAMPLE_DEVICE, "port": "LED1", "action": "off"},
        ),
    ],
    "preset": [
        Example(
            "执行预设 / run a preset",
            {"device_uuid": EXAMPLE_DEVICE, "preset_key": "blink_led_1"},
        ),
        Example(
            "覆盖预设参数 / run a preset with a parameter of your own",
            {
                "device_uuid": EXAMPLE_DEVICE,
                "preset_key": "blink_led_1",
                "parameters": {"count": 5},
            },
        ),
    ],
    "device": [Example("查看设备 / describe a device", {"device_uuid": EXAMPLE_DEVICE})],
    "config": [Example("读取配置 / read its config", {"device_uuid": EXAMPLE_DEVICE})],
    "batch": [
        Example(
            "读温度并开灯 / read a temperature and switch an LED on",
            {
                "requests": [
                    {"operation": "sensor-data", **_READING},
                    {"operation": "control", **_LED_ON},
                ]
            },
        )
    ],
}
