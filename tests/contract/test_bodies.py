"""Bodies: what a good request is answered, over every transport."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import pytest

from tests.contract.cases import CONTROLS, SENSORS, on_port, pwm, servo, switch
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
    NAMES,
    ORDINARY_PRESET,
    PRESETS,
    READY_PRESET,
    SECRET_PREFIX,
    SEQUENCE,
    SLOW_SEQUENCE,
    UNKNOWN_BOARD,
    beijing_now,
)

READING_FIELDS = {
    "value", "unit", "sensor_name", "sensor_type", "timestamp", "device_name", "last_seen",
    "raw_value", "online", "age_seconds",
}  # fmt: skip


def data_of(body):
    """The data of a good reply, whose envelope holds nothing else."""
    assert set(body) == {"code", "msg", "data"}, body
    assert (body["code"], body["msg"]) == (200, "成功")
    return body["data"]


# ---- sensor-data --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SENSORS, ids=lambda case: f"{case.device_uuid[0]}-{case.sensor}")
async def test_every_sensor_name_finds_its_row(call, case):
    asked = {"device_uuid": case.device_uuid, "sensor": case.sensor}
    data = data_of(await call.ask("sensor-data", asked))
    assert set(data) == READING_FIELDS
    assert (data["sensor_name"], data["value"], data["unit"]) == (case.row, case.value, case.unit)
    assert type(data["value"]) is type(case.value)
    assert data["device_name"] == NAMES[case.device_uuid]


async def test_reading_tells_all_that_is_stored(call, platform):
    measured = beijing_now() - timedelta(seconds=90)
    platform.report(BOARD_A, "rain", "True", sensor_type="RAIN_SENSOR", timestamp=measured)
    platform.update_device(BOARD_A, last_seen=measured, is_online=False)
    data = data_of(await call.ask("sensor-data", {"device_uuid": BOARD_A, "sensor": "是否下雨"}))
    age = data.pop("age_seconds")
    assert data == {
        "value": 1,
        "unit": "",
        "sensor_name": "rain",
        "sensor_type": "RAIN_SENSOR",
        "timestamp": measured.isoformat(),
        "device_name": NAMES[BOARD_A],
        "last_seen": measured.isoformat(),
        "raw_value": "True",
        "online": False,
    }
    assert 90 <= age < 100


async def test_stored_unit_goes_before_the_usual_one(call, platform):
    platform.report(BOARD_A, "temperature", "84.2", unit="°F")
    data = data_of(await call.ask("sensor-data", {"device_uuid": BOARD_A, "sensor": "温度"}))
    assert (data["value"], data["unit"], data["raw_value"]) == (84.2, "°F", "84.2")


async def test_reading_is_never_older_than_its_question(call, platform):
    asked = {"device_uuid": BOARD_B, "sensor": "DS18B20"}
    for value in ("24.0", "24.5", "25.0"):
        platform.report(BOARD_B, "temperature", value, sensor_type="DS18B20")
        assert data_of(await call.ask("sensor-data", asked))["raw_value"] == value


async def test_unknown_fields_of_a_reading_are_ignored(call):
    asked = {"device_uuid": BOARD_A, "sensor": "温度", "user": "kim"}
    assert data_of(await call.ask("sensor-data", asked))["value"] == 29.1


# ---- control ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CONTROLS, ids=lambda case: case.name)
async def test_control_sends_exactly_the_firmwares_command(call, board, case):
    device = await board(case.device_uuid)
    data = data_of(await call.ask("control", case.request))
    assert data == {
        "result": "success",
        "topic": f"devices/{case.device_uuid}/control",
        "command": case.command,
        "device_name": NAMES[case.device_uuid],
        "online": True,
    }
    sent = await device.next_command()
    assert (sent.topic, sent.json) == (device.control_topic, case.command)
    assert (sent.qos, sent.retain) == (1, False)
    assert sent.expiry is not None
    assert 1 <= sent.expiry <= 30


async def test_control_tells_that_the_device_was_last_known_offline(call, board):
    await board(BOARD_C)
    data = data_of(await call.ask("control", {"device_uuid": BOARD_C, **on_port("led", 1)}))
    assert data["online"] is False


async def test_command_expires_with_the_requests_own_time(call, board):
    device = await board(BOARD_A)
    expires = {"expires_at": time.time() + 2.5}
    data_of(await call.ask("control", {"device_uuid": BOARD_A, **on_port("led", 1), **expires}))
    assert (await device.next_command()).expiry in (2, 3)


# ---- preset -------------------------------------------------------------------------------------


def blink(**parameters):
    return {
        "cmd": "preset",
        "preset_type": "blink",
        "device_type": "led",
        "device_id": 1,
        "parameters": {"count": 3, "on_time": 500, "off_time": 500} | parameters,
    }


ORDINARY = [
    ("as the page saves it", {"preset_key": ORDINARY_PRESET}, blink(), "一号灯闪烁"),
    ("by its name", {"preset_key": "一号灯闪烁"}, blink(), "一号灯闪烁"),
    (
        "with parameters",
        {"preset_key": ORDINARY_PRESET, "parameters": {"count": 9}},
        blink(count=9),
        "一号灯闪烁",
    ),
    (
        "with parameters null",
        {"preset_key": ORDINARY_PRESET, "parameters": None},
        blink(),
        "一号灯闪烁",
    ),
    ("with a ready command", {"preset_key": READY_PRESET}, switch("led", 0, "off"), "全部关灯"),
]


@pytest.mark.parametrize(
    ("fields", "command", "name"),
    [case[1:] for case in ORDINARY],
    ids=[case[0] for case in ORDINARY],
)
async def test_ordinary_preset_is_one_command(call, board, fields, command, name):
    device = await board(BOARD_A)
    data = data_of(await call.ask("preset", {"device_uuid": BOARD_A, **fields}))
    assert set(data) == {"success", "message", "preset_name"}
    assert (data["success"], data["preset_name"]) == (True, name)
    assert name in data["message"]
    sent = await device.next_command()
    assert (sent.json, sent.qos, sent.retain) == (command, 1, False)


SEQUENCE_COMMANDS = [switch("led", 1), switch("relay", 2, "off"), servo(1, 90), pwm(2, 50)]


async def test_sequence_sends_its_steps_with_their_pauses(call, board):
    device = await board(BOARD_A)
    data = data_of(await call.ask("preset", {"device_uuid": BOARD_A, "preset_key": SEQUENCE}))
    message = data.pop("message")
    assert "上课模式" in message
    assert data == {
        "success": True,
        "preset_name": "上课模式",
        "total_steps": 4,
        "executed_steps": [
            {"step": number, "command": command, "delay": delay, "status": "success"}
            for number, (command, delay) in enumerate(
                zip(SEQUENCE_COMMANDS, (0.2, 0.2, 0, 0), strict=True), start=1
            )
        ],
        "errors": [],
    }
    assert await device.next_commands(4) == SEQUENCE_COMMANDS
    first, second, third, last = (sent.at for sent in device.commands)
    assert second - first == pytest.approx(0.2, abs=0.1)
    assert third - second == pytest.approx(0.2, abs=0.1)
    assert last - third < 0.1
    assert all((sent.qos, sent.retain) == (1, False) for sent in device.commands)
    assert all(sent.expiry is not None and sent.expiry <= 30 for sent in device.commands)


# ---- device -------------------------------------------------------------------------------------


async def test_device_tells_what_it_says_and_what_it_can_do(call):
    data = data_of(await call.ask("device", {"device_uuid": BOARD_A}))
    assert set(data) == {
        "device_uuid", "name", "online", "last_seen", "sensors", "ports", "presets",
    }  # fmt: skip
    assert (data["device_uuid"], data["name"], data["online"]) == (BOARD_A, NAMES[BOARD_A], True)
    assert datetime.fromisoformat(data["last_seen"]).tzinfo is None
    assert all(set(one) == READING_FIELDS for one in data["sensors"])
    assert {one["sensor_name"]: one["value"] for one in data["sensors"]} == {
        "temperature": 29.1,
        "humidity": 61,
        "rain": 0,
        "rain_level": 3,
    }
    assert {(one["port_type"], one["port_id"]) for one in data["ports"]} == {
        *(("led", n) for n in range(1, 5)),
        ("relay", 1), ("relay", 2), ("servo", 1), ("pwm", 1), ("pwm", 2),
    }  # fmt: skip
    assert {"port_type": "led", "port_id": 1, "name": "LED1", "alias": ALIAS} in data["ports"]
    assert {"port_type": "pwm", "port_id": 2, "name": "PWM2", "alias": None} in data["ports"]
    assert [one["preset_key"] for one in data["presets"]] == [one["preset_key"] for one in PRESETS]
    told = {one.pop("preset_key"): one for one in data["presets"]}
    assert told[SEQUENCE] == {"name": "上课模式", "type": "sequence", "total_seconds": 0.4}
    assert told[SLOW_SEQUENCE]["total_seconds"] == 10
    assert told[ENDLESS_SEQUENCE]["total_seconds"] == 3600
    assert told[ORDINARY_PRESET] == {"name": "一号灯闪烁", "type": "blink", "total_seconds": 0}
    assert told[READY_PRESET]["name"] == "全部关灯"
    assert told[MALFORMED_PRESET]["name"] == "坏掉的预设"


async def test_device_with_ports_of_its_own_has_those_and_no_others(call):
    data = data_of(await call.ask("device", {"device_uuid": BOARD_D}))
    assert data["ports"] == [
        {"port_type": "relay", "port_id": 7, "name": NAMED_PORT, "alias": None}
    ]


async def test_device_that_was_never_seen_is_told_as_it_is(call):
    data = data_of(await call.ask("device", {"device_uuid": BOARD_C}))
    assert (data["online"], data["last_seen"], data["sensors"]) == (False, None, [])
    assert [one["preset_key"] for one in data["presets"]] == [ORDINARY_PRESET, SEQUENCE]


async def test_device_secret_is_never_told(call):
    for operation in ("device", "sensor-data"):
        body = await call.ask(operation, {"device_uuid": BOARD_A, "sensor": "温度"})
        assert SECRET_PREFIX not in str(body)
        assert "device_secret" not in str(body)


# ---- batch --------------------------------------------------------------------------------------


async def test_batch_answers_each_item_in_its_place(call, board):
    await board(BOARD_A)
    light = {"operation": "control", "device_uuid": BOARD_A, **on_port("led", 1)}
    reading = {"operation": "sensor-data", "device_uuid": BOARD_A, "sensor": "温度"}
    items = [
        {**reading, "request_id": "first"},
        {**reading, "sensor": "气压"},
        light,
        {"operation": "device", "device_uuid": BOARD_B},
        {**light, "port_type": "laser"},
        {**reading, "device_uuid": UNKNOWN_BOARD},
        {"operation": "sensor-data"},
        {"operation": "preset", "device_uuid": BOARD_A, "preset_key": SEQUENCE},
        {"operation": "batch", "requests": []},
        {"operation": "no-such"},
        {"device_uuid": BOARD_A},
        {**light, "expires_at": 1},
        {**light, "request_id": "bad id"},
    ]
    data = data_of(await call.ask("batch", {"requests": items}))
    assert set(data) == {"results"}
    assert [(one["code"], one.get("error")) for one in data["results"]] == [
        (200, None),
        (404, "sensor_not_found"),
        (200, None),
        (200, None),
        (400, "invalid_control"),
        (404, "device_not_found"),
        (422, "validation_error"),
        (404, "operation_not_found"),
        (404, "operation_not_found"),
        (404, "operation_not_found"),
        (422, "validation_error"),
        (408, "expired"),
        (400, "malformed_request"),
    ]
    first, missing, lit, described = data["results"][:4]
    assert first["request_id"] == "first"
    assert first["data"]["value"] == 29.1
    assert set(missing) == {"code", "msg", "data", "detail", "error"}
    assert lit["data"]["command"] == switch("led", 1)
    assert described["data"]["device_uuid"] == BOARD_B


async def test_controls_of_a_batch_leave_in_list_order(call, board):
    device = await board(BOARD_A)
    angles = [(7 * n) % 181 for n in range(100)]
    items = [
        {"operation": "control", "device_uuid": BOARD_A, **on_port("servo", 1, "set", value=angle)}
        for angle in angles
    ]
    data = data_of(await call.ask("batch", {"requests": items}))
    assert [one["code"] for one in data["results"]] == [200] * 100
    assert [one["angle"] for one in await device.next_commands(100)] == angles


# ---- operations ---------------------------------------------------------------------------------


async def test_operations_are_listed_each_with_the_schema_of_its_fields(call):
    (listed,) = data_of(await call.ask("operations")).values()
    fields = {one["operation"]: one["fields"] for one in listed}
    assert set(fields) == {
        "sensor-data", "control", "preset", "device", "devices", "batch", "health", "operations",
    }  # fmt: skip
    assert fields["sensor-data"]["required"] == ["device_uuid", "sensor"]
    assert set(fields["control"]["properties"]) == {
        "device_uuid", "port_type", "port_id", "port", "action", "value", "frequency",
    }  # fmt: skip
    assert fields["device"]["properties"]["device_uuid"]["maxLength"] == 36
    assert fields["batch"]["properties"]["requests"]["maxItems"] == 100


# ---- request_id ---------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", ["r1", "A.b_c:d-9", "x" * 128])
async def test_request_id_comes_back_with_answer_and_refusal(call, request_id):
    sent = {"device_uuid": BOARD_A, "sensor": "温度", "request_id": request_id}
    good = await call.ask("sensor-data", sent)
    assert set(good) == {"code", "msg", "data", "request_id"}
    refused = await call.ask("sensor-data", {**sent, "device_uuid": UNKNOWN_BOARD})
    assert set(refused) == {"code", "msg", "data", "detail", "error", "request_id"}
    assert good["request_id"] == refused["request_id"] == request_id


async def test_device_is_found_whatever_the_case_of_its_uuid(call, board):
    device = await board(BOARD_E)
    asked = {"device_uuid": BOARD_E.upper(), **on_port("led", 1)}
    assert data_of(await call.ask("control", asked))["topic"] == device.control_topic
    await device.next_command()
