"""What real platforms hold: disabled ports, unreadable configuration, given names, odd rows.

Each test runs once a transport, on a database whose JSON columns nobody checks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.contract.callers import TRANSPORTS, Caller
from tests.contract.cases import on_port, pwm, servo, switch
from tests.contract.conftest import ConnectCaller, Place
from tests.contract.test_bodies import data_of
from tests.contract.test_refusals import check_refusal
from tests.lab.platform import (
    BOARD_A,
    BOARD_B,
    BOARD_D,
    BOARD_E,
    NAMES,
    ORDINARY_PRESET,
    SEQUENCE,
    Platform,
    seed_classroom,
)


@pytest.fixture
def platform(place: Place) -> Iterator[Platform]:
    """Writes to that database; the classroom is back as it was when the test ends."""
    yield place.platform
    seed_classroom(place.database)


@pytest.fixture(params=TRANSPORTS)
async def call(
    request: pytest.FixtureRequest, connect_caller: ConnectCaller, place: Place
) -> Caller:
    return await connect_caller(request.param, of=place.bridge, broker=place.broker)


@pytest.fixture
async def device(board: Callable, place: Place):
    """Board A, which hears whatever it is sent."""
    return await board(BOARD_A, broker=place.broker)


async def check_nothing_was_sent(call: Caller, platform: Platform, device) -> None:
    """The next command, of ours, is the board's first."""
    platform.set_stored(BOARD_A, "control_ports", None)
    platform.set_stored(BOARD_A, "device_control_config", None)
    data_of(
        await call.ask("control", {"device_uuid": BOARD_A, **on_port("servo", 1, "set", value=77)})
    )
    assert (await device.next_command()).json == servo(1, 77)
    assert len(device.commands) == 1


# ---- disabled is not absent ---------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [False, 0, "false", "False", "0"])
async def test_disabled_port_is_never_switched(call, platform, device, enabled):
    last = {"relay_1": {"type": "RELAY", "device_id": 1, "enabled": enabled}}
    platform.set_stored(BOARD_A, "control_ports", json.dumps(last))
    platform.set_stored(BOARD_A, "device_control_config", None)
    platform.set_presets(
        BOARD_A,
        [
            {"preset_key": "one", "command": {"cmd": "relay", "device_id": 1, "value": 1}},
            {"preset_key": "all", "command": {"cmd": "relay", "device_id": 0, "action": "on"}},
            {"preset_key": "page", "preset_type": "blink", "device_type": "relay", "device_id": 1},
        ],
    )
    for port_id in (1, 0, 2):
        body = await call.ask("control", {"device_uuid": BOARD_A, **on_port("relay", port_id)})
        check_refusal(body, 400, "invalid_control")
    for key in ("one", "all", "page"):
        body = await call.ask("preset", {"device_uuid": BOARD_A, "preset_key": key})
        check_refusal(body, 400, "invalid_preset")
        assert "relay" in body["detail"]
    assert data_of(await call.ask("device", {"device_uuid": BOARD_A}))["ports"] == []
    await check_nothing_was_sent(call, platform, device)


async def test_all_of_a_type_are_not_switched_where_one_is_disabled(call, platform, device):
    platform.update_device(BOARD_A, device_control_config={"led_3": {"enabled": False}})
    for fields in (on_port("led", 0), on_port("led", 3), {"port": "LED3", "action": "on"}):
        check_refusal(
            await call.ask("control", {"device_uuid": BOARD_A, **fields}), 400, "invalid_control"
        )
    check_refusal(
        await call.ask("preset", {"device_uuid": BOARD_A, "preset_key": "all_off"}),
        400,
        "invalid_preset",
    )
    await check_nothing_was_sent(call, platform, device)


UNREADABLE = ["[]", '"{}"', json.dumps(json.dumps({"led_1": {"type": "LED", "device_id": 1}})),
              '{"led_1":{"type":"LED","device_id":1},"x":1e999}', "{", "5"]  # fmt: skip


@pytest.mark.parametrize("column", ["control_ports", "device_control_config"])
async def test_unreadable_configuration_is_told_and_opens_nothing(call, platform, device, column):
    for stored in UNREADABLE:
        platform.set_stored(BOARD_A, column, stored)
        body = await call.ask("control", {"device_uuid": BOARD_A, **on_port("led", 1)})
        check_refusal(body, 400, "invalid_control")
        assert column in body["detail"]
        for key in (ORDINARY_PRESET, SEQUENCE):
            body = await call.ask("preset", {"device_uuid": BOARD_A, "preset_key": key})
            check_refusal(body, 400, "invalid_preset")
        described = data_of(await call.ask("device", {"device_uuid": BOARD_A}))
        assert described["ports"] == []
        assert len(described["sensors"]) == 4
    await check_nothing_was_sent(call, platform, device)


async def test_default_ports_are_for_devices_of_which_nothing_is_known(call, platform):
    for stored in (None, "null", "{}"):
        platform.set_stored(BOARD_E, "device_control_config", stored)
        described = data_of(await call.ask("device", {"device_uuid": BOARD_E}))
        assert len(described["ports"]) == 14


async def test_disabled_sensor_lends_no_name_and_stays_readable(call, platform):
    for enabled in (False, 0, "False", "0"):
        entry = {"DHT11_temperature": {"enabled": enabled, "custom_name": "讲台"}}
        platform.update_device(BOARD_A, device_sensor_config=entry)
        for sensor in ("讲台", "室内温度"):
            body = await call.ask("sensor-data", {"device_uuid": BOARD_A, "sensor": sensor})
            check_refusal(body, 404, "sensor_not_found")
        for sensor in ("temperature", "温度", "DHT11_temperature"):
            body = await call.ask("sensor-data", {"device_uuid": BOARD_A, "sensor": sensor})
            assert data_of(body)["value"] == 29.1


# ---- one offender fails alone -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["0000-00-00 00:00:00", "2026-02-30 10:00:00", "0000-01-01 00:00:00"]
)
async def test_time_that_is_none_is_null_and_harms_no_item(call, platform, place, text):
    place.database.execute(
        "UPDATE device_sensors SET `timestamp` = %s WHERE device_uuid = %s", text, BOARD_A
    )
    place.database.execute("UPDATE device_main SET last_seen = %s WHERE uuid = %s", text, BOARD_A)
    reading = {"operation": "sensor-data", "device_uuid": BOARD_A, "sensor": "温度"}
    data = data_of(await call.ask("sensor-data", reading))
    assert (data["value"], data["timestamp"], data["age_seconds"]) == (29.1, None, None)
    assert data["last_seen"] is None
    described = data_of(await call.ask("device", {"device_uuid": BOARD_A}))
    assert {one["timestamp"] for one in described["sensors"]} == {None}
    items = [reading, {**reading, "device_uuid": BOARD_B}, {**reading, "sensor": "室内湿度"}]
    results = data_of(await call.ask("batch", {"requests": items}))["results"]
    assert [one["data"]["value"] for one in results] == [29.1, 23.8, 61]


# ---- null hides nothing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "command"),
    [
        ({"cmd": "pwm", "channel": None, "device_id": 2, "duty": 40}, pwm(2, 40)),
        ({"cmd": "servo", "device_id": 1, "angle": None, "value": 90}, servo(1, 90)),
        ({"cmd": "led", "device_id": 2, "action": None, "value": 0}, switch("led", 2, "off")),
    ],
)
async def test_null_in_a_stored_command_hides_nothing(call, platform, device, stored, command):
    sequence = {
        "preset_key": "s",
        "type": "sequence",
        "steps": [{"command": stored, "delay": None}],
    }
    platform.set_presets(BOARD_A, [{"preset_key": "one", "command": stored}, sequence])
    for key in ("one", "s"):
        data_of(
            await call.ask(
                "preset", {"device_uuid": BOARD_A, "preset_key": key, "parameters": {"speed": 3}}
            )
        )
        assert (await device.next_command()).json == command


# ---- given names --------------------------------------------------------------------------------


async def test_names_that_people_gave_work(call, platform, device):
    platform.update_device(
        BOARD_A,
        device_control_config={"led_2": {"enabled": True, "custom_name": "黑板灯"}},
        device_sensor_config={
            "DHT11_temperature": {"enabled": True, "custom_name": "教室温度"},
            "RAIN_SENSOR_level": {"custom_name": "雨有多大"},
        },
    )
    for name, value in (("教室温度", 29.1), ("教室\u200b温度 ", 29.1), ("雨有多大", 3)):
        body = await call.ask("sensor-data", {"device_uuid": BOARD_A, "sensor": name})
        assert data_of(body)["value"] == value
    asked = {"device_uuid": BOARD_A, "port": "黑板灯\ufeff", "action": "ON"}
    data_of(await call.ask("control", asked))
    assert (await device.next_command()).json == switch("led", 2)
    described = data_of(await call.ask("device", {"device_uuid": BOARD_A}))
    named = [port for port in described["ports"] if port["alias"] == "黑板灯"]
    assert [(port["port_type"], port["port_id"]) for port in named] == [("led", 2)]


async def test_name_of_several_sensors_is_refused_with_their_names(call, platform):
    config = {
        "DHT11_temperature": {"custom_name": "讲台"},
        "DHT11_humidity": {"custom_name": "讲台"},
    }
    platform.update_device(BOARD_A, device_sensor_config=config)
    body = await call.ask("sensor-data", {"device_uuid": BOARD_A, "sensor": "讲台"})
    check_refusal(body, 400, "ambiguous_sensor")
    assert "temperature" in body["detail"]
    assert "humidity" in body["detail"]


async def test_keys_and_rain_names_of_the_product_find_their_rows(call, platform):
    types = {
        "roof": {"name": "屋顶雨水", "type": "RAIN_SENSOR", "data_field": "is_raining"},
        "roof_level": {
            "name": "屋顶雨量",
            "type": "RAIN_SENSOR",
            "data_field": "level",
            "unit": "格",
        },
    }
    platform.set_stored(BOARD_A, "sensor_types", json.dumps(types))
    for name, row, unit in (
        ("屋顶雨水", "rain", ""), ("roof", "rain", ""), ("屋顶雨量", "rain_level", "格"),
        ("rain_level", "rain_level", "格"), ("雨水级别", "rain_level", "格"),
    ):  # fmt: skip
        data = data_of(await call.ask("sensor-data", {"device_uuid": BOARD_A, "sensor": name}))
        assert (data["sensor_name"], data["unit"]) == (row, unit)


async def test_preset_without_a_key_is_listed_and_run_by_its_name(call, platform, device):
    platform.set_presets(
        BOARD_A, [{"name": "亮", "command": {"cmd": "led", "device_id": 1, "action": "on"}},
                  {"preset_key": " ", "name": None, "command": {"cmd": "led", "device_id": 4}}]
    )  # fmt: skip
    described = data_of(await call.ask("device", {"device_uuid": BOARD_A}))
    assert described["presets"][0]["preset_key"] == "亮"
    body = await call.ask("preset", {"device_uuid": BOARD_A, "preset_key": "\u200b"})
    check_refusal(body, 404, "preset_not_found")
    assert "亮" in body["detail"]
    assert "None" not in body["detail"]
    data_of(await call.ask("preset", {"device_uuid": BOARD_A, "preset_key": " 亮 "}))
    assert (await device.next_command()).json == switch("led", 1)


# ---- units --------------------------------------------------------------------------------------

UNITS = {
    "soil_moisture": "%", "light": "lx", "pressure": "Pa", "altitude": "m", "distance": "cm",
    "gas": "ppm", "voltage": "V", "current": "A", "power": "W", "ds18b20": "°C", "rain": "",
    "rain_level": "级", "humidity": "%", "temperature": "°C",
}  # fmt: skip


async def test_unit_is_the_usual_one_where_none_is_stored(call, platform):
    for name in UNITS:
        platform.report(BOARD_D, name, "1")
    described = data_of(await call.ask("device", {"device_uuid": BOARD_D}))
    told = {one["sensor_name"]: one["unit"] for one in described["sensors"]}
    assert {name: told[name] for name in UNITS} == UNITS


# ---- what plugin-service reads ------------------------------------------------------------------


async def test_config_has_the_names_that_plugin_service_reads(platform, place, connect_caller):
    platform.update_device(
        BOARD_A,
        device_control_config={
            "led_1": {"custom_name": "黑板灯"},
            "led_2": {"alias": "顶灯"},
            "x": 5,
        },
    )
    platform.set_presets(BOARD_A, [{"preset_key": "on", "name": "开灯"}, {"name": "无键"}])
    http = await connect_caller("http", of=place.bridge, broker=place.broker)
    data = data_of(await http._request("GET", f"/api/devices/{BOARD_A}/config"))
    assert data["device_control_config"] == {
        "led_1": {"custom_name": "黑板灯", "alias": "黑板灯"}, "led_2": {"alias": "顶灯"}, "x": 5,
    }  # fmt: skip
    assert [(one["alias"], one["preset_name"]) for one in data["device_preset_commands"]] == [
        ("开灯", "on"), ("无键", "无键"),
    ]  # fmt: skip
    for stored in UNREADABLE:
        platform.set_stored(BOARD_A, "device_control_config", stored)
        platform.set_stored(BOARD_A, "device_settings", stored)
        data = data_of(await http._request("GET", f"/api/devices/{BOARD_A}/config"))
        assert data["device_preset_commands"] == []


# ---- what callers send --------------------------------------------------------------------------


async def test_white_space_around_text_is_trimmed(call, platform, device):
    asked = {"device_uuid": f" {BOARD_A}\t", "sensor": "\u3000温度 "}
    if call.transport != "http":
        assert data_of(await call.ask("device", asked))["name"] == NAMES[BOARD_A]
    assert data_of(await call.ask("sensor-data", asked))["value"] == 29.1
    data_of(await call.ask("preset", {**asked, "preset_key": f" {ORDINARY_PRESET} "}))
    assert (await device.next_command()).json["cmd"] == "preset"


async def test_blank_name_matches_nothing(call, platform, device):
    blank = {"alias": "\u3000", "custom_name": "\u200b", "name": " "}
    platform.update_device(
        BOARD_A,
        device_control_config={"led_1": blank},
        device_sensor_config={"DHT11_temperature": blank},
    )
    for name in ("\u3000", "\u200b", " ", "\ufeff \u2060"):
        body = await call.ask("control", {"device_uuid": BOARD_A, "port": name, "action": "on"})
        assert body["code"] == (422 if name.isspace() else 400), body
        body = await call.ask("sensor-data", {"device_uuid": BOARD_A, "sensor": name})
        assert body["code"] == (422 if name.isspace() else 404), body
    await check_nothing_was_sent(call, platform, device)


async def test_byte_order_mark_is_named(call):
    body = await call.send("control", b"\xef\xbb\xbf" + json.dumps({"device_uuid": "x"}).encode())
    check_refusal(body, 400, "malformed_request")
    assert "BOM" in body["detail"]


async def test_milliseconds_are_refused_and_nothing_is_sent(call, platform, device):
    fields = {"device_uuid": BOARD_A, **on_port("led", 1), "expires_at": 4102444800000}
    body = await call.ask("control", fields)
    check_refusal(body, 400, "malformed_request")
    assert "expires_at" in body["detail"]
    await check_nothing_was_sent(call, platform, device)
