"""Which row a sensor's name means, and what the row's text says."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from bridge.devices import sensors
from bridge.devices.errors import AmbiguousSensor, SensorNotFound
from bridge.devices.models import DeviceReadings, SensorRow

NOW = datetime.fromisoformat("2025-03-01T12:00:00")
SHANGHAI, BERLIN = ZoneInfo("Asia/Shanghai"), ZoneInfo("Europe/Berlin")
HERE = NOW.replace(tzinfo=SHANGHAI)


def row(name, value="1", unit="", sensor_type="DHT11", timestamp=NOW):
    return SensorRow(name, value, unit, sensor_type, timestamp)


def device(*rows, sensor_types=None, config=None):
    types, own = (
        one if one is None or isinstance(one, str) else json.dumps(one, ensure_ascii=False)
        for one in (sensor_types, config)
    )
    return DeviceReadings("uuid", "板", True, NOW, types, own, list(rows))


DHT11 = (row("temperature"), row("humidity"))
DS18B20 = row("temperature", sensor_type="DS18B20")
RAIN = (
    row("rain", "False", sensor_type="RAIN_SENSOR"),
    row("rain_level", "3", sensor_type="RAIN_SENSOR"),
)
BY_KEY = (
    row("dht11_temperature"),
    row("dht11_humidity"),
    row("rain_sensor", "True", sensor_type="RAIN_SENSOR"),
    row("rain_sensor_level", "2", sensor_type="RAIN_SENSOR"),
    row("ds18b20_temperature", sensor_type="DS18B20"),
)

# Rows of a device, the names asked for, the row meant.
MEANT = [
    ((*DHT11, *RAIN), ("温度", "temperature", "Temperature", "DHT11_temperature"), "temperature"),
    ((*DHT11, *RAIN), ("湿度", "humidity", "HUMIDITY", "DHT11_humidity"), "humidity"),
    ((*DHT11, *RAIN), ("雨水", "雨滴", "雨水传感器", "是否下雨", "rain", "RAIN_SENSOR"), "rain"),
    ((*DHT11, *RAIN), ("雨水级别", "rain_level", "RAIN_SENSOR_level"), "rain_level"),
    ((DS18B20,), ("DS18B20", "ds18b20", "DS18B20温度", "DS18B20_temperature"), "temperature"),
    ((DS18B20,), ("温度", "temperature"), "temperature"),
    ((row("ds18b20"),), ("DS18B20", "DS18B20温度", "温度"), "ds18b20"),
    (BY_KEY, ("温度", "temperature", "DHT11_temperature"), "dht11_temperature"),
    (BY_KEY, ("湿度", "humidity", "dht11_HUMIDITY"), "dht11_humidity"),
    (BY_KEY, ("雨水", "雨滴", "雨水传感器", "是否下雨", "rain", "RAIN_SENSOR"), "rain_sensor"),
    (BY_KEY, ("雨水级别", "rain_level", "RAIN_SENSOR_level"), "rain_sensor_level"),
    (BY_KEY, ("DS18B20", "DS18B20温度", "DS18B20_temperature"), "ds18b20_temperature"),
    ((row("soil_moisture"),), ("soil_moisture", "Soil_Moisture"), "soil_moisture"),
]


@pytest.mark.parametrize(
    ("rows", "asked", "stored"),
    [(rows, name, stored) for rows, names, stored in MEANT for name in names],
)
def test_name_finds_its_row(rows, asked, stored):
    whole = device(*rows)
    assert sensors.find(whole, asked).sensor_name == stored
    fetched = set(sensors.candidates(asked))
    part = device(*(row for row in rows if row.sensor_name in fetched))
    assert sensors.find_among(part, asked) == sensors.find(whole, asked)


# A DHT11 board has no DS18B20, although it too writes `temperature`; and the other way round.
ABSENT = [
    (DHT11, "DS18B20"),
    (DHT11, "DS18B20温度"),
    (DHT11, "雨水"),
    ((DS18B20,), "湿度"),
    ((DS18B20,), "DHT11_temperature"),
    ((), "温度"),
    (DHT11, "气压"),
    ((row("temperature", value=None),), "温度"),
]


@pytest.mark.parametrize(("rows", "asked"), ABSENT)
def test_absent_sensor_is_not_another_one(rows, asked):
    with pytest.raises(SensorNotFound):
        sensors.find(device(*rows), asked)


def test_refusal_lists_the_sensors_there_are():
    with pytest.raises(SensorNotFound) as refusal:
        sensors.find(device(*DHT11), "气压")
    assert "temperature, humidity" in refusal.value.detail("zh")
    assert "temperature, humidity" in refusal.value.detail("en")


TYPES = {
    "DHT11_temperature": {"name": "室内温度", "type": "DHT11", "data_field": "temperature"},
    "DS18B20": {"name": "水温", "type": "DS18B20", "data_field": "temperature"},
    "off": {"name": "停用", "data_field": "humidity", "enabled": False},
    "twice_1": {"name": "两个", "data_field": "rain"},
    "twice_2": {"name": "两个", "data_field": "rain_level"},
}


@pytest.mark.parametrize("asked", ["室内温度", " 室内 温度 ", "室内温度　"])
def test_display_name_of_the_product_finds_its_row(asked):
    found = sensors.find(device(*DHT11, sensor_types=TYPES), asked)
    assert found.sensor_name == "temperature"


def test_display_name_minds_the_type_of_sensor_behind_a_general_row():
    assert sensors.find(device(DS18B20, sensor_types=TYPES), "水温") == DS18B20
    with pytest.raises(SensorNotFound):
        sensors.find(device(*DHT11, sensor_types=TYPES), "水温")


@pytest.mark.parametrize("enabled", [False, 0, "false", "False", "0"])
def test_disabled_entry_lends_no_name_and_its_row_stays_readable(enabled):
    types = {"off": {"name": "停用", "data_field": "humidity", "enabled": enabled}}
    one = device(*DHT11, sensor_types=types)
    for asked in ("停用", "off"):
        with pytest.raises(SensorNotFound):
            sensors.find(one, asked)
    assert sensors.find(one, "humidity").sensor_name == "humidity"
    assert sensors.find(one, "湿度").sensor_name == "humidity"
    assert len(sensors.all_readings(one, HERE)) == 2


def test_name_of_several_sensors_is_refused_with_their_names():
    with pytest.raises(AmbiguousSensor) as refusal:
        sensors.find(device(*DHT11, *RAIN, sensor_types=TYPES), "两个")
    assert (refusal.value.code, refusal.value.error) == (400, "ambiguous_sensor")
    assert "rain (" in refusal.value.detail("zh")
    assert "rain_level (" in refusal.value.detail("zh")


@pytest.mark.parametrize("blank", ["\u200b", "\u3000", " "])
def test_blank_name_matches_no_sensor(blank):
    types = {"": {"name": "", "data_field": "humidity"}, "\u200b": {"data_field": "humidity"}}
    config = {"DHT11_humidity": {"custom_name": blank}}
    for one in (device(*DHT11, sensor_types=types), device(*DHT11, row(""), config=config)):
        with pytest.raises(SensorNotFound):
            sensors.find(one, blank)


@pytest.mark.parametrize("unreadable", ["[]", '"{}"', '{"x":1e999}', "{", "5"])
def test_unreadable_configuration_lends_no_names_and_hides_no_row(unreadable):
    for one in (device(*DHT11, sensor_types=unreadable), device(*DHT11, config=unreadable)):
        assert sensors.find(one, "温度").sensor_name == "temperature"
        with pytest.raises(SensorNotFound):
            sensors.find(one, "室内温度")


# Names that people gave, with the page of a device or of a product.
RAIN_TYPES = {
    "RAIN_SENSOR": {"name": "窗外雨水", "type": "RAIN_SENSOR", "data_field": "is_raining"},
    "RAIN_SENSOR_level": {"name": "窗外雨量", "type": "RAIN_SENSOR", "data_field": "level"},
    "my_key": {"name": "x", "type": "DHT11", "data_field": "humidity", "unit": "%RH"},
}
GIVEN = [
    ({}, {"DHT11_temperature": {"enabled": True, "custom_name": "教室温度"}}, "temperature"),
    (TYPES, {"DHT11_temperature": {"custom_name": "教室温度"}}, "temperature"),
    (TYPES, {"dht11_TEMPERATURE": {"alias": "教室\u200b温度"}}, "temperature"),
    (None, {"RAIN_SENSOR_level": {"custom_name": "教室温度"}}, "rain_level"),
    (RAIN_TYPES, {"RAIN_SENSOR": {"custom_name": "教室温度"}}, "rain"),
]


@pytest.mark.parametrize(("types", "config", "stored"), GIVEN, ids=range(len(GIVEN)))
def test_name_that_a_person_gave_finds_its_row(types, config, stored):
    one = device(*DHT11, *RAIN, sensor_types=types, config=config)
    for asked in ("教室温度", " 教室 温度\ufeff"):
        assert sensors.find(one, asked).sensor_name == stored


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ("窗外雨水", "rain"),
        ("窗外雨量", "rain_level"),
        ("my_key", "humidity"),
        ("MY_KEY", "humidity"),
    ],
)
def test_names_of_rain_sensors_and_keys_of_the_product_find_their_rows(asked, stored):
    assert sensors.find(device(*DHT11, *RAIN, sensor_types=RAIN_TYPES), asked).sensor_name == stored


def test_few_rows_tell_nothing_where_the_product_gives_the_name_to_another():
    types = {"x": {"name": "温度", "data_field": "soil_temperature"}}
    whole = device(*DHT11, row("soil_temperature"), sensor_types=types)
    assert sensors.find(whole, "温度").sensor_name == "soil_temperature"
    assert sensors.find_among(device(*DHT11, sensor_types=types), "温度") is None
    assert (
        sensors.find_among(device(*DHT11, sensor_types=TYPES), "温度").sensor_name == "temperature"
    )


def test_stored_name_goes_before_a_display_name():
    types = {"x": {"name": "humidity", "data_field": "temperature"}}
    assert sensors.find(device(*DHT11, sensor_types=types), "humidity").sensor_name == "humidity"


@pytest.mark.parametrize(
    ("stored", "value"),
    [
        ("29.1", 29.1),
        ("61", 61),
        ("-3", -3),
        ("+4.50", 4.5),
        ("1e3", 1000.0),
        (" 7 ", 7),
        (".5", 0.5),
        ("True", 1),
        ("False", 0),
        ("true", 1),
        ("晴转多云", "晴转多云"),
        ("", ""),
        ("NaN", "NaN"),
        ("inf", "inf"),
        ("1e999", "1e999"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("12:30", "12:30"),
    ],
)
def test_stored_text_becomes_a_number_where_it_is_one(stored, value):
    told = sensors.value_of(stored)
    assert told == value
    assert type(told) is type(value)


@pytest.mark.parametrize(
    ("name", "stored", "unit"),
    [
        ("soil_moisture", "", "%"),
        ("light", "", "lx"),
        ("pressure", " ", "Pa"),
        ("altitude", "", "m"),
        ("distance", "", "cm"),
        ("gas", "", "ppm"),
        ("voltage", "", "V"),
        ("current", "", "A"),
        ("power", "", "W"),
        ("temperature_2", "", "°C"),
        ("weather", "", ""),
        ("temperature", "", "°C"),
        ("temperature", None, "°C"),
        ("temperature", "°F", "°F"),
        ("ds18b20", "", "°C"),
        ("dht11_humidity", "", "%"),
        ("rain", "", ""),
        ("rain_level", "", "级"),
    ],
)
def test_unit_is_the_stored_one_else_the_usual_one(name, stored, unit):
    one = row(name, unit=stored)
    assert sensors.reading(device(one), one, HERE).unit == unit


def test_unit_of_the_product_goes_before_the_usual_one():
    one = row("humidity")
    assert sensors.reading(device(one, sensor_types=RAIN_TYPES), one, HERE).unit == "%RH"


@pytest.mark.parametrize(
    ("measured", "age"),
    [
        (NOW - timedelta(seconds=30), 30.0),
        (NOW + timedelta(seconds=5), 0.0),
        (None, None),
    ],
)
def test_age_is_told_in_seconds_and_never_negative(measured, age):
    one = row("temperature", timestamp=measured)
    assert sensors.reading(device(one), one, HERE).age_seconds == age


@pytest.mark.parametrize(
    ("measured", "now", "age"),
    [
        # Summer time begins at 02:00 and ends at 03:00, both by an hour.
        ("2025-03-30T01:59:00", "2025-03-30T03:01:00+02:00", 120.0),
        ("2025-10-26T01:59:00", "2025-10-26T03:01:00+01:00", 7320.0),
        ("2025-10-26T02:30:00", "2025-10-26T02:31:00+02:00", 60.0),
        ("2025-10-26T02:30:00", "2025-10-26T02:31:00+01:00", 60.0),
    ],
)
def test_age_is_right_across_a_change_of_summer_time(measured, now, age):
    one = row("temperature", timestamp=datetime.fromisoformat(measured))
    at = datetime.fromisoformat(now).astimezone(BERLIN)
    assert sensors.reading(device(one), one, at).age_seconds == age
