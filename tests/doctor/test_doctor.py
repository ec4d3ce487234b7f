"""`python run.py doctor`, run as a user would: what it prints, settings, port and time."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from tests.doctor.report import FAILED, NOTE, OK
from tests.lab.mqtt import Broker, Connection, Message
from tests.lab.platform import BOARD_A
from tests.lab.servers import LOOPBACK, free_port

SUBJECTS = (
    "settings",
    "names of settings",
    "API keys",
    "database",
    "database login",
    "table device_main",
    "table device_sensors",
    "table device_products",
    "statements",
    "times",
    "broker",
    "broker login",
    "broker limits",
    "request topics",
    "reply topics",
    "command topics",
    "presence topic",
    "instance",
    "broker speed",
    "unreachable devices",
    "port",
)
"""What is looked at with the plainest settings, in that order."""


# All is well


def test_all_is_well(doctor):
    report = doctor(API_KEYS="coze:not-a-secret")
    assert report.status == 0
    # Mosquitto as it comes takes 20 unacknowledged messages.
    assert report.marked(OK) == set(SUBJECTS) - {"broker limits"}
    assert tuple(report.found) == SUBJECTS
    assert "MariaDB" in report.found["database login"].says
    assert "\nThe bridge can run: python run.py" in report.output


def test_it_speaks_chinese(doctor):
    report = doctor(LANGUAGE="zh")
    assert report.status == 0
    assert report.found["数据库登录"].mark == OK
    assert report.found["API 密钥"].mark == NOTE


@pytest.mark.parametrize(("encoding", "says"), [("gbk", "数据库"), ("ascii", "database")])
def test_terminal_that_cannot_show_the_marks_gets_words(doctor, encoding, says):
    report = doctor(LANGUAGE="zh", PYTHONIOENCODING=encoding)
    assert report.status == 0
    assert f"\nok   {says}: " in report.output
    assert "\nnote API" in report.output


def test_reader_that_has_seen_enough_breaks_nothing(doctor):
    report = doctor(reader="head -1")
    assert (report.status, report.output.count("\n")) == (0, 1)


async def test_it_leaves_nothing_behind(doctor, private_mosquitto):
    broker = private_mosquitto()
    assert (await asyncio.to_thread(doctor, broker)).status == 0
    async with Listener(broker) as listener:
        await listener.subscribe("#", qos=1)
        await listener.publish("the/end", b"", qos=1)
        assert (await asyncio.wait_for(listener.heard.get(), 5)).topic == "the/end"


async def test_it_tells_devices_nothing(doctor, private_mosquitto):
    broker = private_mosquitto()
    async with Listener(broker) as listener:
        await listener.subscribe(f"devices/{BOARD_A}/#", qos=1)
        assert (await asyncio.to_thread(doctor, broker)).status == 0
        await listener.publish(f"devices/{BOARD_A}/end", b"", qos=1)
        assert (await asyncio.wait_for(listener.heard.get(), 5)).topic.endswith("/end")


class Listener(Connection):
    """Keeps what it hears."""

    def __init__(self, broker: Broker, **options: Any) -> None:
        super().__init__(broker, **options)
        self.heard: asyncio.Queue[Message] = asyncio.Queue()

    def received(self, message: Message) -> None:
        self.heard.put_nowait(message)


def test_no_secret_is_printed(doctor):
    secrets = {
        "DB_PASSWORD": "hidden-one",
        "MQTT_PASSWORD": "hidden-two",
        "API_KEYS": "coze:hidden-three",
        "DB_PASWORD": "hidden-four",
    }
    report = doctor(MQTT_USERNAME="someone", **secrets)
    assert report.status == 1
    assert "hidden" not in report.output
    url = "mysql://bridge:hidden-four@127.0.0.1:1/aiot"
    assert "hidden" not in doctor(DATABASE_URL=url, API_KEYS="coze:hidden-three").output


# Settings


def test_settings_of_a_file(doctor):
    report = doctor(env_file="DB_NAME=aiot\n")
    assert report.found["settings"].mark == OK
    assert report.found["settings"].says.endswith("/elsewhere/.env")


def test_environment_that_overrides_the_file_is_told(doctor):
    report = doctor(env_file="DB_NAME=another\n")
    assert report.status == 0
    assert report.found["settings"].mark == NOTE
    assert "DB_NAME" in report.found["settings"].says


MISSPELT = {
    "DB_PASWORD": "DB_PASSWORD",
    "DB_USERNAME": "DB_USER",
    "MQTT_HOST": "MQTT_BROKER",
    "mqtt_user": "MQTT_USERNAME",
    "REQUEST_TIMOUT": "REQUEST_TIMEOUT",
    "API_KEY": "API_KEYS",
}


def test_misspelt_settings_are_pointed_out(doctor):
    env_file = "".join(f"{name}=anything\n" for name in MISSPELT)
    report = doctor(None, None, env_file=env_file, DB_PORT="1", MQTT_PORT="1")
    found = report.found["names of settings"]
    assert found.mark == NOTE
    assert found.advice.splitlines()[1:] == [
        f"{name.upper()}: did you mean {meant}?"
        for name, meant in sorted(MISSPELT.items(), key=lambda pair: pair[0].upper())
    ]
    assert "anything" not in report.output


def test_misspelt_setting_in_the_environment_is_pointed_out(doctor):
    report = doctor(SERVICE_HOTS="anything", LOG_LEVLE="anything")
    # SERVICE_HOST itself is set, so that the other can't have been meant for it.
    assert report.found["names of settings"].says == "without effect: LOG_LEVLE"


def test_names_of_other_programs_are_left_alone(doctor):
    others = {
        "DB_SERVICE_HOST": "10.0.0.1",
        "MQTT_BROKER_HOST": "broker.example",
        "REDIS_HOST": "redis",
        "SECRET_KEY": "other",
        "LOGNAME": "other",
    }
    report = doctor(**others)
    assert report.found["names of settings"].mark == OK


def test_unguarded_api_is_a_note(doctor):
    report = doctor()
    assert report.status == 0
    assert report.found["API keys"].mark == NOTE
    assert "API_KEYS" in report.found["API keys"].advice


def test_key_file_that_cannot_be_used_is_told(doctor, tmp_path):
    file = tmp_path / "keys"
    file.write_text("coze:hidden everything=yes\n")
    report = doctor(API_KEYS_FILE=str(file))
    assert report.status == 1
    assert "line 1" in report.found["API keys"].says
    assert "hidden" not in report.output


def test_workers_that_forget_each_others_ids_are_a_note(doctor):
    report = doctor(WORKERS="2")
    assert report.status == 0
    assert report.found["workers"].mark == NOTE
    assert "DEDUP_STORE=mysql" in report.found["workers"].advice


# Port


def test_port_taken_by_another_program(doctor):
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        report = doctor(SERVICE_PORT=str(port))
    assert report.status == 1
    assert report.marked(FAILED) == {"port"}
    assert "another program" in report.found["port"].says
    assert "SERVICE_PORT" in report.found["port"].advice


def test_port_taken_by_another_http_service(doctor, private_mosquitto):
    port = free_port()
    broker = private_mosquitto(f"listener {port} {LOOPBACK}", "protocol websockets")
    assert doctor(broker, SERVICE_PORT=str(port)).found["port"].mark == FAILED


def test_running_bridge_is_a_note_and_goes_on(doctor, private_bridge):
    bridge = private_bridge()
    broker, settings = bridge.broker, bridge.settings
    report = doctor(broker, **settings)
    assert report.status == 0
    assert "a bridge is already running" in report.found["port"].says
    assert "healthy" in report.found["port"].says
    assert f"{bridge.instance} is online already" in report.found["instance"].says
    assert report.marked(NOTE) == {"API keys", "broker limits", "port", "instance"}
    assert bridge.ready


def test_instance_taken_elsewhere_is_a_note(doctor, private_bridge):
    bridge = private_bridge()
    report = doctor(bridge.broker, MQTT_INSTANCE=bridge.instance)
    assert report.found["instance"].mark == NOTE
    assert "MQTT_INSTANCE" in report.found["instance"].advice
    assert report.found["port"].mark == OK


def test_address_of_another_machine(doctor):
    report = doctor(SERVICE_HOST="192.0.2.1")
    assert report.status == 1
    assert "SERVICE_HOST" in report.found["port"].advice


# Time


def test_it_ends_though_everything_hangs(doctor, private_mosquitto, private_mariadb):
    broker, database = private_mosquitto(), private_mariadb()
    broker.pause()
    database.pause()
    with socket.create_server((LOOPBACK, 0)) as silent:
        report = doctor(broker, database, SERVICE_PORT=str(silent.getsockname()[1]))
    assert report.seconds < 15
    assert report.status == 1
    assert report.marked(FAILED) == {"database login", "broker login", "port"}
    assert "says nothing" in report.found["database login"].says
    assert "says nothing" in report.found["broker login"].says
