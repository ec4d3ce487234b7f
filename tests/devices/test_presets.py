"""Presets: the commands that running one means, what is refused, and what they add up to."""

from __future__ import annotations

import json
import time
from functools import partial

import orjson
import pytest

from bridge.devices.models import DeviceProfile
from bridge.devices.presets import preset_plan, preset_summaries
from bridge.errors import BridgeError
from tests.contract.cases import pwm, servo, switch


def device(presets, ports=None):
    settings = json.dumps({"preset_commands": presets}, ensure_ascii=False)
    return DeviceProfile("uuid", "板", True, ports and json.dumps(ports), None, settings)


led, relay = partial(switch, "led"), partial(switch, "relay")


def sequence(*steps, **more):
    return {
        "preset_key": "s",
        "name": "序列",
        "type": "sequence",
        "preset_type": "sequence",
        "steps": list(steps),
        **more,
    }


def step(delay=0, **stored):
    return {"command": stored, "delay": delay}


BLINK = {
    "preset_key": "blink",
    "name": "闪烁",
    "device_type": "led",
    "device_id": 1,
    "preset_type": "blink",
    "parameters": {"count": 3, "on_time": 500},
}
READY = {
    "preset_key": "off",
    "name": "关灯",
    "command": {"cmd": "led", "device_id": 0, "action": "off"},
}


def plan(*presets, wanted=None, parameters=None, limit=110.0):
    stored = device(list(presets))
    return preset_plan(stored, wanted or presets[0]["preset_key"], parameters, limit)


STORED_STEPS = [
    ({"cmd": "led", "device_id": 1, "device_type": "led", "value": 1}, led(1)),
    ({"cmd": "led", "device_id": 1, "device_type": "led", "value": 0}, led(1, "off")),
    ({"cmd": "relay", "device_id": 2, "value": 1}, relay(2)),
    ({"cmd": "relay", "device_id": 2, "action": "off"}, relay(2, "off")),
    ({"cmd": "servo", "device_id": 1, "device_type": "servo", "angle": 90}, servo(1, 90)),
    ({"cmd": "pwm", "device_id": 2, "frequency": 1000, "duty": 50}, pwm(2, 50, 1000)),
    ({"cmd": "pwm", "channel": 1, "duty_cycle": 5}, pwm(1, 5)),
]


@pytest.mark.parametrize(("stored", "payload"), STORED_STEPS)
def test_stored_step_becomes_the_firmwares_command(stored, payload):
    (only,) = plan(sequence(step(**stored))).steps
    assert only.command == payload


def test_sequence_keeps_its_order_and_pauses():
    steps = [
        step(5, cmd="led", device_id=1, value=1),
        step("0.5", cmd="led", device_id=2, value=0),
        {"command": {"cmd": "servo", "device_id": 1, "angle": 9}},
    ]
    found = plan(sequence(*steps))
    assert found.sequence
    assert [(one.command, one.delay) for one in found.steps] == [
        (led(1), 5.0),
        (led(2, "off"), 0.5),
        (servo(1, 9), 0.0),
    ]


def blink(parameters):
    return {
        "cmd": "preset",
        "preset_type": "blink",
        "device_type": "led",
        "device_id": 1,
        "parameters": parameters,
    }


@pytest.mark.parametrize(
    ("preset", "parameters", "payload"),
    [
        (BLINK, None, blink({"count": 3, "on_time": 500})),
        (BLINK, {}, blink({"count": 3, "on_time": 500})),
        (BLINK, {"count": 9}, blink({"count": 9, "on_time": 500})),
        (BLINK, {"count": "9"}, blink({"count": 9, "on_time": 500})),
        (READY, None, led(0, "off")),
        (
            {"preset_key": "r", "name": "r", "command": blink({"count": 1})},
            {"count": 2},
            blink({"count": 2}),
        ),
    ],
)
def test_ordinary_preset_becomes_one_command(preset, parameters, payload):
    found = plan(preset, parameters=parameters)
    assert not found.sequence
    assert [one.command for one in found.steps] == [payload]


@pytest.mark.parametrize("wanted", ["blink", "BLINK", "闪烁", " 闪 烁 "])
def test_preset_is_found_by_key_or_name(wanted):
    assert plan(READY, BLINK, wanted=wanted).name == "闪烁"


NOT_RUN = [
    ((BLINK,), {"wanted": "nope"}, 404, "preset_not_found", "blink"),
    ((BLINK, {**READY, "name": "闪烁"}), {"wanted": "闪烁"}, 400, "invalid_preset", "off"),
    ((BLINK,), {"parameters": {"volume": 1}}, 400, "invalid_preset", "on_time"),
    ((BLINK,), {"parameters": {"count": "many"}}, 422, "validation_error", "count"),
    ((sequence(),), {}, 400, "invalid_preset", "序列"),
    ((sequence(steps="开灯"),), {}, 400, "invalid_preset", "序列"),
    ((sequence({"delay": 1}),), {}, 400, "invalid_preset", "序列"),
    ((sequence(step(cmd="led", device_id=1, value=7)),), {}, 400, "invalid_preset", "序列"),
    ((sequence(step(-1, cmd="led", device_id=1, value=1)),), {}, 400, "invalid_preset", "delay"),
    ((sequence(step("x", cmd="led", device_id=1, value=1)),), {}, 400, "invalid_preset", "delay"),
    ((sequence(step(60, cmd="led", value=1), step(60, cmd="led", value=1)),), {}, 400,
     "invalid_preset", "110"),
    (({"preset_key": "e", "name": "空"},), {}, 400, "invalid_preset", "空"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("presets", "asked", "code", "error", "mentions"), NOT_RUN, ids=range(len(NOT_RUN))
)
def test_preset_that_cannot_be_run_is_refused(presets, asked, code, error, mentions):
    with pytest.raises(BridgeError) as refusal:
        plan(*presets, **asked)
    assert (refusal.value.code, refusal.value.error) == (code, error)
    assert mentions in refusal.value.detail("zh")


def test_presets_are_told_with_what_their_pauses_add_up_to():
    stored = device([BLINK, sequence(step(5, cmd="led", value=1), step(2, cmd="led", value=0))])
    told = preset_summaries(stored)
    assert [(one.preset_key, one.name, one.type, one.total_seconds) for one in told] == [
        ("blink", "闪烁", "blink", 0.0),
        ("s", "序列", "sequence", 7.0),
    ]


@pytest.mark.parametrize("stored", [None, {}, [], "x", {"preset_commands": None}])
def test_device_whose_settings_hold_no_presets_has_none(stored):
    profile = DeviceProfile("uuid", "板", True, None, None, json.dumps(stored))
    assert preset_summaries(profile) == []


# ---- numbers ------------------------------------------------------------------------------------

LARGEST = 2**53 - 1
TOO_LARGE = ["1e20", "1e30", "1e300", "1e999", "-1e20", str(2**53), "9" * 5000, "nan", "inf",
             2**53, 2**64, 10**30, -(2**53), 1e300, float("inf"), float("nan")]  # fmt: skip


@pytest.mark.parametrize("number", TOO_LARGE, ids=lambda number: f"{number!r:.12}")
def test_parameter_too_large_for_json_is_a_fault_of_that_parameter(number):
    with pytest.raises(BridgeError) as refusal:
        plan(BLINK, parameters={"count": number})
    assert (refusal.value.code, refusal.value.error) == (422, "validation_error")
    assert refusal.value.property_name == "parameters.count"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (LARGEST, LARGEST),
        (str(LARGEST), LARGEST),
        (f"-{LARGEST}", -LARGEST),
        ("1e3", 1000),
        ("0.5", 0.5),
        (2.5, 2.5),
    ],
)
def test_parameter_that_json_can_hold_is_sent(given, sent):
    (only,) = plan(BLINK, parameters={"count": given}).steps
    assert only.command["parameters"]["count"] == sent
    assert orjson.dumps(only.command)


@pytest.mark.parametrize("delay", [10**30, 2**53, "1e300", "1e20", 1e300])
def test_sequence_with_a_pause_without_end_is_refused_and_told_as_none(delay):
    endless = sequence(*[step(delay, cmd="led", device_id=1, value=1)] * 2)
    with pytest.raises(BridgeError) as refusal:
        plan(endless)
    assert (refusal.value.code, refusal.value.error) == (400, "invalid_preset")
    (told,) = preset_summaries(device([endless]))
    assert told.total_seconds == 0.0


# ---- what is told of them -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "told"), [(1, "1"), ("loud", "loud"), ([1, "二"], '[1, "二"]'), (True, "true")]
)
def test_unknown_parameter_is_named_with_its_value(value, told):
    with pytest.raises(BridgeError) as refusal:
        plan(BLINK, parameters={"volume": value})
    assert (refusal.value.property_name, refusal.value.property_value) == (
        "parameters.volume",
        told,
    )


def test_many_presets_are_told_again_and_again_at_no_cost():
    """A batch may ask a hundred times, and the loop has nothing else to do meanwhile."""
    steps = [step(1, cmd="led", device_id=1, value=1)] * 30
    stored = device([{**sequence(*steps), "preset_key": f"s{number}"} for number in range(10)])

    def seconds_to_tell(times):
        started = time.process_time()
        for _ in range(times):
            assert [told.total_seconds for told in preset_summaries(stored)] == [30.0] * 10
        return time.process_time() - started

    first = seconds_to_tell(1)
    assert seconds_to_tell(100) < 20 * first


# ---- what is stored -----------------------------------------------------------------------------

ALTERNATIVES = [
    ({"cmd": "pwm", "channel": None, "device_id": 2, "duty": 40}, pwm(2, 40)),
    ({"cmd": "pwm", "channel": 2, "duty_cycle": None, "duty": 40, "frequency": None}, pwm(2, 40)),
    ({"cmd": "servo", "device_id": 1, "angle": None, "value": 90}, servo(1, 90)),
    ({"cmd": "servo", "device_id": None, "angle": "", "value": "90"}, servo(1, 90)),
    ({"cmd": "led", "device_id": 1, "action": None, "value": 1}, led(1)),
    ({"cmd": "LED", "device_id": 1.0, "action": " OFF "}, led(1, "off")),
    ({"cmd": "x", "a": None, "b": 1}, {"cmd": "x", "b": 1}),
]


@pytest.mark.parametrize(("stored", "payload"), ALTERNATIVES)
def test_null_hides_nothing_and_the_first_usable_value_counts(stored, payload):
    (only,) = plan(sequence(step(**stored))).steps
    assert only.command == payload


@pytest.mark.parametrize("preset", [READY, sequence(step(cmd="led", device_id=1, value=1)),
                                    {**BLINK, "parameters": {}}])  # fmt: skip
def test_parameters_of_a_preset_that_has_none_are_ignored(preset):
    assert plan(preset, parameters={"speed": 3}).steps == plan(preset).steps


PORTS = {
    "led_1": {"type": "LED", "device_id": 1},
    "relay_1": {"type": "RELAY", "device_id": 1, "enabled": "False"},
    "relay_2": {"type": "RELAY", "device_id": 2},
}
COMMANDS_IT = [
    {"preset_key": "p", "command": {"cmd": "relay", "device_id": 1, "action": "on"}},
    {"preset_key": "p", "command": {"cmd": "relay", "action": "on"}},
    {"preset_key": "p", "command": {"cmd": "relay", "device_id": 0, "action": "off"}},
    {"preset_key": "p", "command": {"cmd": "other", "device_type": "RELAY", "device_id": "1"}},
    {"preset_key": "p", "command": {"cmd": "all", "of": [{"cmd": "relay", "device_id": [2, 1]}]}},
    {"preset_key": "p", "preset_type": "blink", "device_type": "Relay", "device_id": 1},
    {"preset_key": "p", "preset_type": "blink", "device_type": "relay", "device_id": None},
    {**sequence(step(cmd="led", device_id=1, value=1), step(cmd="relay", device_id=1, value=1)),
     "preset_key": "p"},
]  # fmt: skip


@pytest.mark.parametrize("preset", COMMANDS_IT, ids=range(len(COMMANDS_IT)))
def test_preset_that_would_command_a_disabled_port_is_refused_whole(preset):
    with pytest.raises(BridgeError) as refusal:
        preset_plan(device([preset], PORTS), "p", None, 110.0)
    assert refusal.value.error == "invalid_preset"
    assert "relay" in refusal.value.detail("zh")


def test_preset_that_commands_other_ports_is_run():
    preset = {"preset_key": "p", "command": {"cmd": "relay", "device_id": 2, "action": "on"}}
    (only,) = preset_plan(device([preset], PORTS), "p", None, 110.0).steps
    assert only.command == relay(2)


@pytest.mark.parametrize("column", [1, 2])
def test_preset_is_not_run_where_disabled_ports_are_not_known(column):
    columns = [None, None]
    columns[column - 1] = "[]"
    settings = json.dumps({"preset_commands": [READY]})
    with pytest.raises(BridgeError) as refusal:
        preset_plan(DeviceProfile("uuid", "板", True, *columns, settings), "off", None, 110.0)
    assert refusal.value.error == "invalid_preset"


@pytest.mark.parametrize("settings", ["[]", '"{}"', '{"x":1e999}', '{"preset_commands":"[]"}', "{"])
def test_presets_that_cannot_be_read_are_refused_with_a_reason(settings):
    broken = DeviceProfile("uuid", "板", True, None, None, settings)
    assert preset_summaries(broken) == []
    with pytest.raises(BridgeError) as refusal:
        preset_plan(broken, "off", None, 110.0)
    assert refusal.value.error == "invalid_preset"
    assert "device_settings" in refusal.value.detail("zh")


NAMELESS = {"preset_key": None, "name": "闪", "command": {"cmd": "led", "action": "on"}}


@pytest.mark.parametrize("wanted", [" ", "", "\u3000", "\u200b"])
def test_blank_key_matches_no_preset(wanted):
    blank = {"preset_key": " ", "name": "", "alias": "\u200b", "command": {"cmd": "led"}}
    with pytest.raises(BridgeError) as refusal:
        preset_plan(device([blank, {"command": {"cmd": "led"}}]), wanted, None, 110.0)
    assert refusal.value.error == "preset_not_found"


def test_preset_without_a_key_is_listed_by_its_name():
    listed = preset_summaries(device([NAMELESS]))
    assert [(one.preset_key, one.name) for one in listed] == [("闪", "闪")]
    with pytest.raises(BridgeError) as refusal:
        preset_plan(device([NAMELESS]), "nope", None, 110.0)
    assert "闪" in refusal.value.detail("zh")
    assert "None" not in refusal.value.detail("zh")
    assert preset_plan(device([NAMELESS]), "闪\u200b", None, 110.0).name == "闪"
