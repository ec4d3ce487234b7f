"""Device commands on odd configurations of ports; what is usual is in `tests/contract/cases.py`."""

from __future__ import annotations

import json
from functools import partial

import pytest

from bridge.devices import commands
from bridge.devices.models import ControlFields, DeviceProfile
from bridge.devices.ports import ports_of
from bridge.errors import BridgeError
from tests.contract.cases import on_port, pwm, servo, switch

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


led, relay = partial(switch, "led"), partial(switch, "relay")
BARE, NAMED = device(), device(PRODUCT_PORTS)

CONTROLS = [
    (NAMED, on_port("relay", 7), relay(7)),
    (NAMED, on_port("led", 0), led(0)),
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
    (NAMED, on_port("led", 3), "led 2 (LED2)"),
    (NAMED, on_port("relay", 3), "relay 7 (风扇)"),
    (NAMED, on_port("relay", 0), "relay 7 (风扇)"),
    (NAMED, {"port": "备用", "action": "on"}, "风扇"),
    (NAMED, {"port": "风扇", "action": "set", "value": 1}, "on / off"),
    (TWO_ALIKE, {"port": "灯", "action": "on"}, "led 2 (灯, LED2)"),
]


@pytest.mark.parametrize(("on", "fields", "mentions"), INVALID, ids=range(len(INVALID)))
def test_control_that_cannot_be_is_refused_with_what_can(on, fields, mentions):
    refusal = refused(on, **fields)
    assert (refusal.code, refusal.error) == (400, "invalid_control")
    assert mentions in refusal.detail("zh")


@pytest.mark.parametrize(
    "number", [2**53, 2**64, "9007199254740992", "9" * 20, "9" * 5000, -(2**53)]
)
def test_port_with_a_number_that_no_json_of_ours_could_repeat_is_none(number):
    huge = {"type": "led", "device_id": number, "name": "大"}
    ports = ports_of(device({**PRODUCT_PORTS, "huge": huge}))
    assert "大" not in {port.name for port in ports}
    assert len(ports) == 5


# ---- disabled is not absent ---------------------------------------------------------------------

RELAY = {"type": "RELAY", "device_id": 1}


@pytest.mark.parametrize("enabled", [False, 0, 0.0, "false", "False", "FALSE", "0", " 0 "])
def test_last_port_disabled_opens_no_others(enabled):
    none = device({"relay_1": {**RELAY, "enabled": enabled}})
    assert ports_of(none) == []
    for asked in (on_port("relay", 1), on_port("relay", 0), on_port("led", 1)):
        assert refused(none, **asked).error == "invalid_control"


@pytest.mark.parametrize("enabled", [True, 1, "true", "1", None, ""])
def test_port_is_enabled_unless_it_is_said_otherwise(enabled):
    assert len(ports_of(device({"relay_1": {**RELAY, "enabled": enabled}}))) == 1


@pytest.mark.parametrize("device_id", [1, 1.0, "1", " 1 ", "1.0"])
def test_number_of_a_port_is_read_however_it_is_written(device_id):
    one = device({"x": {"type": "led", "device_id": device_id}})
    assert [(port.port_type, port.port_id) for port in ports_of(one)] == [("led", 1)]


DISABLED = [
    (device(None, {"relay_1": {"enabled": False}}), 13),
    (device({"relay_1": RELAY}, {"relay_1": {"enabled": "false"}}), 0),
    (device({"RELAY_1": RELAY}, {"relay_1": {"enabled": 0}}), 0),
    (device({"relay_1": RELAY}, {"relay_1": False}), 0),
    (device({"a": RELAY, "b": {**RELAY, "enabled": False}}), 0),
    (device({"a": RELAY, "relay_1": {"enabled": False}}), 0),
]


@pytest.mark.parametrize(("on", "left"), DISABLED, ids=range(len(DISABLED)))
def test_disabled_port_is_not_there_however_it_was_disabled(on, left):
    assert len(ports_of(on)) == left
    for port_id in (1, 0):
        assert refused(on, **on_port("relay", port_id)).error == "invalid_control"


@pytest.mark.parametrize("known", [None, "", " ", "null", "{}"])
def test_device_of_which_nothing_is_known_has_the_default_ports(known):
    for columns in ((known, None), (None, known)):
        assert len(ports_of(DeviceProfile("uuid", "板", True, *columns, None))) == 14


UNREADABLE = [
    "[]", '["led_1"]', '"{}"', json.dumps(json.dumps({"relay_1": RELAY})), "5", "true", "{",
    '{"led_1":{"type":"LED","device_id":1},"x":1e999}', '{"mode":"auto"}',
    '{"x":{"custom_name":"x"}}',
    '{"a":' + "[" * 200 + "]" * 200 + "}", "\x00",
]  # fmt: skip


@pytest.mark.parametrize("stored", UNREADABLE)
def test_configuration_that_cannot_be_read_is_no_licence(stored):
    for columns in ((stored, None), (None, stored), (stored, '{"led_1":{"alias":"x"}}')):
        broken = DeviceProfile("uuid", "板", True, *columns, None)
        assert ports_of(broken) == []
        refusal = refused(broken, **on_port("led", 1))
        assert (refusal.code, refusal.error) == (400, "invalid_control")
        assert "control_ports" in refusal.detail("zh")


def test_product_without_a_port_of_ours_has_none():
    assert ports_of(device({"beep": {"type": "BUZZER", "device_id": 1}})) == []


def test_null_of_the_devices_own_configuration_hides_nothing_of_the_products():
    nulls = dict.fromkeys(("type", "device_id", "name", "enabled"))
    (port,) = ports_of(device({"fan": {**RELAY, "name": "风扇"}}, {"fan": {**nulls, "alias": " "}}))
    assert (port.name, port.alias) == ("风扇", None)


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["name", "alias", "custom_name"])
@pytest.mark.parametrize("asked", ["客厅灯", " 客厅 灯", "客\u200b厅灯\ufeff"])
def test_port_is_named_by_any_of_its_names(label, asked):
    for on in (
        device(PRODUCT_PORTS, {"led_1": {label: "客厅灯"}}),
        device(None, {"led_1": {label: "客厅灯"}}),
    ):
        assert command(on, port=asked, action="on") == led(1)


def test_alias_is_filled_from_the_name_that_a_person_gave():
    on = device(PRODUCT_PORTS, {"led_1": {"enabled": True, "custom_name": "客厅灯"}})
    assert ports_of(on)[0].alias == "客厅灯"


@pytest.mark.parametrize("blank", ["", " ", "\u3000", "\u200b", "\ufeff \u200d"])
def test_blank_name_matches_no_port(blank):
    on = device(PRODUCT_PORTS, {"led_1": {"alias": blank, "custom_name": blank}})
    assert refused(on, port="\u200b", action="on").code == 400
    assert refused(on, port=blank, action="on").code in (400, 422)


def test_control_without_any_port_is_told_both_ways_to_name_one():
    refusal = refused(BARE, action="on", port=" ")
    assert {fault.loc for fault in refusal.errors} == {("port_type",), ("port_id",)}
    assert "or by port" in refusal.detail("en")


@pytest.mark.parametrize(
    "fields",
    [
        {"port_type": " PWM ", "port_id": " 1 ", "action": " Set ", "value": " 5 ",
         "frequency": 0},
        {"port_type": "pwm", "port_id": 1, "action": "SET", "value": 5, "port": "",
         "frequency": ""},
        {"port_type": "pwm", "port_id": 1, "action": "set", "value": 5, "port": None,
         "frequency": "0"},
    ],
)  # fmt: skip
def test_white_space_is_trimmed_and_what_is_empty_was_not_sent(fields):
    assert command(BARE, **fields) == pwm(1, 5)
