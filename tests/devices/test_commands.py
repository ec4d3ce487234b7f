"""Device commands: what the firmware is sent for a control, and what is refused."""

from __future__ import annotations

import json

import pytest

from bridge.devices import commands
from bridge.devices.models import ControlFields, DeviceProfile
from bridge.errors import BridgeError

PRODUCT_PORTS = {
    "led_1": {"name": "LED1", "type": "LED", "device_id": 1, "enabled": True},
    "led_2": {"name": "LED2", "type": "LED", "device_id": 2, "enabled": True},
    "fan": {"name": "风扇", "type": "relay", "device_id": "7"},
    "valve": {"name": "阀门", "type": "SERVO", "device_id": 1},
    "dimmer": {"name": "调光", "type": "PWM", "device_id": 2},
    "spare": {"name": "备用", "type": "RELAY", "device_id": 3, "enabled": False},
    "note": "no port at all",
}


def device(ports=None, config=None):
    def column(value):
        return None if value is None else json.dumps(value, ensure_ascii=False)

    return DeviceProfile("uuid", "板", True, column(ports), column(config), None)


def command(on, **fields):
    asked = ControlFields.model_validate({"device_uuid": "uuid", **fields})
    commands.check_control(asked)
    return commands.control_command(asked, on)


def refused(on, **fields):
    with pytest.raises(BridgeError) as refusal:
        command(on, **fields)
    return refusal.value


def led(port_id, action="on"):
    return {"cmd": "led", "device_id": port_id, "action": action}


def relay(port_id, action="on"):
    return {"cmd": "relay", "device_id": port_id, "action": action}


def servo(port_id, angle):
    return {"cmd": "servo", "device_id": port_id, "angle": angle}


def pwm(channel, duty_cycle, frequency=5000):
    return {
        "cmd": "pwm",
        "channel": channel,
        "device_id": channel,
        "frequency": frequency,
        "duty_cycle": duty_cycle,
    }


def on_port(port_type, port_id, action="on", **more):
    return {"port_type": port_type, "port_id": port_id, "action": action, **more}


BARE, NAMED = device(), device(PRODUCT_PORTS)

CONTROLS = [
    (BARE, on_port("led", 1), led(1)),
    (BARE, on_port("led", 4, "off"), led(4, "off")),
    (BARE, on_port("LED", "2", "ON"), led(2)),
    (BARE, on_port("led", 0, "off"), led(0, "off")),
    (BARE, on_port("relay", 0), relay(0)),
    (BARE, on_port("Relay", 4), relay(4)),
    (BARE, on_port("servo", 4, "set", value=0), servo(4, 0)),
    (BARE, on_port("servo", 1, "set", value="180"), servo(1, 180)),
    (BARE, on_port("pwm", 2, "set", value=100), pwm(2, 100)),
    (BARE, on_port("pwm", 1, "set", value=0, frequency="1000"), pwm(1, 0, 1000)),
    (BARE, on_port("led", 1, value=None, frequency=None), led(1)),
    (NAMED, on_port("relay", 7), relay(7)),
    (NAMED, on_port("relay", 0), relay(0)),
    (NAMED, {"port": "LED1", "action": "on"}, led(1)),
    (NAMED, {"port": " ｌｅｄ 1 ", "action": "off"}, led(1, "off")),
    (NAMED, {"port": "风扇", "action": "on"}, relay(7)),
    (NAMED, {"port": "阀门", "action": "set", "value": 90}, servo(1, 90)),
    (NAMED, {"port": "调光", "action": "set", "value": 50}, pwm(2, 50)),
    (
        device(PRODUCT_PORTS, {"led_1": {"alias": "客厅灯"}}),
        {"port": "客厅灯", "action": "on"},
        led(1),
    ),
    (device(None, {"led_3": {"alias": "走廊灯"}}), {"port": "走廊灯", "action": "on"}, led(3)),
    (device(PRODUCT_PORTS, {"led_1": {"device_id": 4}}), on_port("led", 4), led(4)),
    (
        device(PRODUCT_PORTS, {"led_1": {"alias": "灯"}, "led_2": {"alias": "灯"}, "fan": {}}),
        {"port": "风扇", "action": "on"},
        relay(7),
    ),
]


@pytest.mark.parametrize(("on", "fields", "payload"), CONTROLS, ids=range(len(CONTROLS)))
def test_control_becomes_the_firmwares_command(on, fields, payload):
    assert command(on, **fields) == payload


TWO_ALIKE = device(PRODUCT_PORTS, {"led_1": {"alias": "灯"}, "led_2": {"alias": "灯"}})

INVALID = [
    (BARE, on_port("laser", 1), "led、relay、servo、pwm"),
    (BARE, on_port("led", 1, "explode"), "on / off"),
    (BARE, on_port("led", 1, "set"), "on / off"),
    (BARE, on_port("servo", 1, "on"), "set"),
    (BARE, on_port("servo", 1, "set"), "0–180"),
    (BARE, on_port("pwm", 1, "set", value=None), "0–100"),
    (BARE, on_port("led", 5), "led 4"),
    (BARE, on_port("led", -1), "led 4"),
    (BARE, on_port("led", 999), "led 4"),
    (BARE, on_port("pwm", 3, "set", value=1), "pwm 2"),
    (BARE, on_port("servo", 0, "set", value=1), "servo 4"),
    (BARE, on_port("pwm", 0, "set", value=1), "pwm 2"),
    (BARE, {"port": "客厅灯", "action": "on"}, "led 1"),
    (NAMED, on_port("led", 3), "led 2 (LED2)"),
    (NAMED, on_port("relay", 3), "relay 7 (风扇)"),
    (NAMED, {"port": "备用", "action": "on"}, "风扇"),
    (NAMED, {"port": "风扇", "action": "set", "value": 1}, "on / off"),
    (TWO_ALIKE, {"port": "灯", "action": "on"}, "led 2 (灯, LED2)"),
]


@pytest.mark.parametrize(("on", "fields", "mentions"), INVALID, ids=range(len(INVALID)))
def test_control_that_cannot_be_is_refused_with_what_can(on, fields, mentions):
    refusal = refused(on, **fields)
    assert (refusal.code, refusal.error) == (400, "invalid_control")
    assert mentions in refusal.detail("zh")


OUT_OF_RANGE = [
    (on_port("servo", 1, "set", value=181), "value"),
    (on_port("servo", 1, "set", value=-1), "value"),
    (on_port("pwm", 1, "set", value=101), "value"),
    ({"port_id": 1, "action": "on"}, "port_type"),
    ({"port_type": "led", "action": "on"}, "port_id"),
    ({"port_type": None, "port_id": 1, "action": "on"}, "port_type"),
]


@pytest.mark.parametrize(("fields", "at_fault"), OUT_OF_RANGE, ids=range(len(OUT_OF_RANGE)))
def test_missing_field_or_value_out_of_range_is_a_fault_of_that_field(fields, at_fault):
    refusal = refused(BARE, **fields)
    assert (refusal.code, refusal.property_name) == (422, at_fault)


@pytest.mark.parametrize(
    "number", [2**53, 2**64, "9007199254740992", "9" * 20, "9" * 5000, -(2**53)]
)
def test_port_with_a_number_that_no_json_of_ours_could_repeat_is_none(number):
    huge = {"type": "led", "device_id": number, "name": "大"}
    ports = commands.ports_of(device({**PRODUCT_PORTS, "huge": huge}))
    assert "大" not in {port.name for port in ports}
    assert len(ports) == 5
