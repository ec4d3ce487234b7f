"""Which row a sensor's name means, and what the row's text says."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest

from bridge.devices import sensors
from bridge.devices.errors import SensorNotFound
from bridge.devices.models import DeviceReadings, SensorRow

NOW = datetime.fromisoformat("2025-03-01T12:00:00")


def row(name, value="1", unit="", sensor_type="DHT11", timestamp=NOW):
    return SensorRow(name, value, unit, sensor_type, timestamp)


def device(*rows, sensor_types=None):
    types = None if sensor_types is None else json.dumps(sensor_types, ensure_ascii=False)
    return DeviceReadings("uuid", "板", True, NOW, types, list(rows))


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
    assert sensors.find(device(*rows), asked).sensor_name == stored


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


@pytest.mark.parametrize("asked", ["停用", "两个"])
def test_disabled_or_ambiguous_display_name_finds_nothing(asked):
    with pytest.raises(SensorNotFound):
        sensors.find(device(*DHT11, *RAIN, sensor_types=TYPES), asked)


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
        ("temperature", "", "°C"),
        ("temperature", None, "°C"),
        ("temperature", "°F", "°F"),
        ("ds18b20", "", "°C"),
        ("dht11_humidity", "", "%"),
        ("rain", "", ""),
        ("rain_level", "", ""),
    ],
)
def test_unit_is_the_stored_one_else_the_usual_one(name, stored, unit):
    one = row(name, unit=stored)
    assert sensors.reading(device(one), one, NOW).unit == unit


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
    assert sensors.reading(device(one), one, NOW).age_seconds == age
