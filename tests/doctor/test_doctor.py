"""`python run.py doctor`, run as a user would, against real servers in every kind of trouble."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
import trustme
from iotcore import Broker as EmbeddedBroker

from bridge.database.idempotency_table import CREATE_TABLE, TABLE
from bridge.doctor import columns_read
from tests.lab.bridge import PROJECT
from tests.lab.certificates import Certificates, KeyPair
from tests.lab.mariadb import READER, MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Broker, Connection, Endpoint, Message
from tests.lab.platform import BOARD_A, Platform, beijing_now, seed_classroom
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

DOCTOR = (sys.executable, str(PROJECT / "run.py"), "doctor")
OK, NOTE, FAILED, SKIPPED = "✓", "!", "✗", "-"


@dataclass(frozen=True)
class Found:
    """One check's line, and what to do below it."""

    mark: str
    says: str
    advice: str


@dataclass(frozen=True)
class Report:
    """What one run printed."""

    status: int
    output: str
    seconds: float

    @property
    def found(self) -> dict[str, Found]:
        """What was found, by the subject of each check."""
        found: dict[str, Found] = {}
        subject = ""
        for line in self.output.splitlines():
            if line.startswith("      "):
                before = found[subject]
                found[subject] = Found(before.mark, before.says, f"{before.advice}\n{line.strip()}")
            elif ": " in line and line[:2] in {"✓ ", "! ", "✗ ", "- "}:
                subject, _, says = line[2:].partition(": ")
                found[subject] = Found(line[0], says, "")
        return found

    def marked(self, mark: str) -> set[str]:
        return {subject for subject, found in self.found.items() if found.mark == mark}


class Doctor(Protocol):
    def __call__(
        self,
        broker: Broker | None = ...,
        database: MariaDb | None = ...,
        *,
        env_file: str | None = ...,
        reader: str = ...,
        **settings: str,
    ) -> Report: ...


@pytest.fixture
def doctor(tmp_path: Path, mosquitto: Mosquitto, mariadb: MariaDb) -> Doctor:
    """Runs it in an empty folder, with a clean environment, on the shared servers or others."""

    def run(
        broker: Broker | None = mosquitto,
        database: MariaDb | None = mariadb,
        *,
        env_file: str | None = None,
        reader: str = "cat",
        **settings: str,
    ) -> Report:
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        if env_file is not None:
            (folder / ".env").write_text(env_file, encoding="utf-8")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONIOENCODING": "utf-8",
            "PYTHONDEVMODE": "1",
            "LANGUAGE": "en",
            "SERVICE_HOST": LOOPBACK,
            "SERVICE_PORT": str(free_port()),
            **_broker_settings(broker),
            **_database_settings(database),
            **settings,
        }
        started = time.monotonic()
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f'"$@" | {reader}', "-", *DOCTOR],
            cwd=folder,
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        encoding = environment["PYTHONIOENCODING"]
        assert done.stderr.decode() == ""
        return Report(done.returncode, done.stdout.decode(encoding), time.monotonic() - started)

    return run


def _broker_settings(broker: Broker | None) -> dict[str, str]:
    if broker is None:
        return {}
    return {"MQTT_BROKER": broker.host, "MQTT_PORT": str(broker.port)}


def _database_settings(database: MariaDb | None) -> dict[str, str]:
    if database is None:
        return {}
    return {
        "DB_HOST": database.host,
        "DB_PORT": str(database.port),
        "DB_NAME": database.database,
        "DB_USER": database.user,
        "DB_PASSWORD": database.password,
    }


@pytest.fixture(scope="module")
def own_mariadb() -> Iterator[MariaDb]:
    """A server for these tests, which make further databases and accounts in it."""
    with MariaDb() as server:
        seed_classroom(server)
        yield server


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


# Database


def test_database_that_refuses(doctor):
    report = doctor(DB_PORT=str(free_port()))
    assert report.status == 1
    assert report.marked(FAILED) == {"database"}
    assert "refuses" in report.found["database"].says
    assert "systemctl status" in report.found["database"].advice
    assert report.marked(SKIPPED) == {
        "database login",
        "table device_main",
        "table device_sensors",
        "table device_products",
        "statements",
        "times",
    }
    assert report.found["broker speed"].mark == OK


def test_database_on_an_unknown_host(doctor):
    report = doctor(DB_HOST="nowhere.invalid")
    assert report.status == 1
    assert "nowhere.invalid is not known" in report.found["database"].says


def test_database_that_does_not_answer(doctor):
    with silent_port() as port:
        report = doctor(DB_PORT=str(port))
    assert report.status == 1
    assert "does not answer" in report.found["database"].says
    assert report.seconds < 15


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port whose queue of connections is full: more are neither taken nor refused."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server((LOOPBACK, 0), backlog=0))
        for _ in range(3):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_wrong_database_password(doctor):
    report = doctor(DB_PASSWORD="wrong")
    found = report.found["database login"]
    assert (report.status, found.mark) == (1, FAILED)
    assert "'bridge'@'127.0.0.1'" in found.says
    assert "1045" in found.says
    assert "GRANT SELECT ON `aiot`.* TO 'bridge'@'%';" in found.advice
    assert "DB_TLS_CA" in found.advice


def test_empty_database_password_is_told(doctor):
    assert "DB_PASSWORD is empty" in doctor(DB_PASSWORD="").found["database login"].advice


def test_unknown_database(doctor, own_mariadb):
    own_mariadb.execute("CREATE OR REPLACE USER 'all'@'%' IDENTIFIED BY 'pa55'")
    own_mariadb.execute("GRANT SELECT ON *.* TO 'all'@'%'")
    for user in ({}, {"DB_USER": "all", "DB_PASSWORD": "pa55"}):
        report = doctor(database=own_mariadb, DB_NAME="nosuch", **user)
        found = report.found["database login"]
        assert (report.status, found.mark) == (1, FAILED)
        assert "no database nosuch" in found.says
        assert "DB_NAME" in found.advice


def test_database_url_is_used(doctor, mariadb):
    url = f"mysql+pymysql://{mariadb.user}:wrong@{mariadb.host}:{mariadb.port}/aiot"
    assert doctor(DATABASE_URL=url).found["database login"].mark == FAILED


def altered(server: MariaDb, name: str, *statements: str) -> None:
    """A database with copies of the platform's tables, which the statements then alter."""
    server.execute(f"CREATE OR REPLACE DATABASE {name}")
    for table in columns_read():
        server.execute(f"CREATE TABLE {name}.{table} LIKE aiot.{table}")
    server.execute(f"GRANT SELECT ON {name}.* TO '{READER}'@'%'")
    for statement in statements:
        server.execute(statement)


def test_missing_table(doctor, own_mariadb):
    altered(own_mariadb, "no_table", "DROP TABLE no_table.device_sensors")
    report = doctor(database=own_mariadb, DB_NAME="no_table")
    assert report.status == 1
    assert report.marked(FAILED) == {"table device_sensors"}
    assert report.found["table device_sensors"].says == "there is none in no_table"
    assert "DB_NAME" in report.found["table device_sensors"].advice
    assert report.marked(SKIPPED) == {"statements", "times"}


def test_missing_columns_are_all_named(doctor, own_mariadb):
    altered(
        own_mariadb,
        "no_column",
        "ALTER TABLE no_column.device_main DROP device_settings, DROP device_control_config",
    )
    report = doctor(database=own_mariadb, DB_NAME="no_column")
    assert report.status == 1
    assert report.marked(FAILED) == {"table device_main"}
    says = report.found["table device_main"].says
    assert says == "columns are missing: device_control_config, device_settings"


def test_missing_right_is_not_taken_for_a_missing_table(doctor, own_mariadb):
    own_mariadb.execute("CREATE OR REPLACE USER 'half'@'%' IDENTIFIED BY 'pa55'")
    own_mariadb.execute("GRANT SELECT ON aiot.device_main TO 'half'@'%'")
    own_mariadb.execute("GRANT SELECT (id, name) ON aiot.device_products TO 'half'@'%'")
    report = doctor(database=own_mariadb, DB_USER="half", DB_PASSWORD="pa55")
    assert report.marked(FAILED) == {"table device_sensors", "table device_products"}
    for table in ("device_sensors", "device_products"):
        found = report.found[f"table {table}"]
        assert "may not read" in found.says
        assert f"GRANT SELECT ON `aiot`.{table} TO 'half'@'%';" in found.advice


def test_columns_are_those_that_the_statements_of_the_store_name():
    assert columns_read() == {
        "device_main": [
            "device_control_config",
            "device_sensor_config",
            "device_settings",
            "is_online",
            "last_seen",
            "name",
            "product_id",
            "uuid",
        ],
        "device_products": ["control_ports", "id", "sensor_types"],
        "device_sensors": [
            "device_uuid",
            "sensor_name",
            "sensor_type",
            "sensor_unit",
            "sensor_value",
            "timestamp",
        ],
    }


def test_values_from_the_future_are_a_note(doctor, own_mariadb):
    platform = Platform(own_mariadb)
    platform.report(BOARD_A, "temperature", "20", timestamp=beijing_now() + timedelta(hours=8))
    report = doctor(database=own_mariadb)
    platform.report(BOARD_A, "temperature", "20")
    assert report.status == 0
    assert report.found["times"].mark == NOTE
    assert "DB_TIMEZONE" in report.found["times"].advice


def test_database_that_wants_tls(doctor, certificates, tmp_path):
    stranger = Certificates(tmp_path / "stranger")
    with MariaDb(certificates=certificates, require_tls=True) as server:
        plain = doctor(database=server)
        trusted = doctor(database=server, DB_TLS_CA=str(certificates.ca))
        untrusted = doctor(database=server, DB_TLS_CA=str(stranger.ca))
    assert "DB_TLS_CA" in plain.found["database login"].advice
    assert trusted.status == 0
    assert "not trusted" in untrusted.found["database login"].says


def test_database_without_tls(doctor, certificates):
    found = doctor(DB_TLS_CA=str(certificates.ca)).found["database login"]
    assert (found.mark, "no TLS" in found.says) == (FAILED, True)


def test_table_of_ids(doctor, own_mariadb):
    altered(own_mariadb, "ids")

    def table() -> Found:
        report = doctor(database=own_mariadb, DB_NAME="ids", DEDUP_STORE="mysql", WORKERS="2")
        return report.found[f"table {TABLE}"]

    missing = table()
    assert missing.mark == FAILED
    assert "python run.py init-db" in missing.advice
    own_mariadb.execute(CREATE_TABLE.replace(f"EXISTS {TABLE}", f"EXISTS ids.{TABLE}"))
    readable = table()
    assert readable.mark == FAILED
    assert "INSERT, UPDATE command denied" in readable.says
    assert "GRANT SELECT, INSERT, UPDATE, DELETE" in readable.advice
    own_mariadb.execute(f"GRANT INSERT, UPDATE, DELETE ON ids.{TABLE} TO '{READER}'@'%'")
    assert table().mark == OK


def test_read_only_replica_is_named(doctor, own_mariadb):
    own_mariadb.execute("SET GLOBAL read_only = 1")
    try:
        altered(own_mariadb, "replica")
        own_mariadb.execute(CREATE_TABLE.replace(f"EXISTS {TABLE}", f"EXISTS replica.{TABLE}"))
        own_mariadb.execute(f"GRANT INSERT, UPDATE, DELETE ON replica.{TABLE} TO '{READER}'@'%'")
        found = doctor(database=own_mariadb, DB_NAME="replica", DEDUP_STORE="mysql").found
    finally:
        own_mariadb.execute("SET GLOBAL read_only = 0")
    assert found[f"table {TABLE}"].mark == FAILED
    assert f"{own_mariadb.host} is a read-only replica" in found[f"table {TABLE}"].says
    assert "DB_HOST" in found[f"table {TABLE}"].advice


def test_check_of_the_table_of_ids_leaves_nothing_in_it(doctor, own_mariadb):
    altered(own_mariadb, "kept")
    own_mariadb.execute(CREATE_TABLE.replace(f"EXISTS {TABLE}", f"EXISTS kept.{TABLE}"))
    own_mariadb.execute(f"GRANT INSERT, UPDATE, DELETE ON kept.{TABLE} TO '{READER}'@'%'")
    report = doctor(database=own_mariadb, DB_NAME="kept", DEDUP_STORE="mysql")
    assert report.found[f"table {TABLE}"].mark == OK
    assert own_mariadb.query(f"SELECT COUNT(*) FROM kept.{TABLE}") == [{"COUNT(*)": 0}]


# Broker


def test_broker_that_refuses(doctor):
    report = doctor(MQTT_PORT=str(free_port()))
    assert report.status == 1
    assert report.marked(FAILED) == {"broker"}
    assert "systemctl status mosquitto" in report.found["broker"].advice
    assert report.found["broker login"].says == "skipped: 'broker' has to pass first"
    assert report.found["command topics"].says == "skipped: 'broker login' has to pass first"
    assert report.found["port"].mark == OK


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_wrong_broker_password(doctor, private_mosquitto, protocol):
    broker = private_mosquitto(anonymous=False, passwords={"bridge": "right"})

    def login(**settings: str) -> Found:
        report = doctor(broker, MQTT_PROTOCOL=protocol, **settings)
        return report.found["broker login"]

    assert login(MQTT_USERNAME="bridge", MQTT_PASSWORD="right").mark == OK
    wrong = login(MQTT_USERNAME="bridge", MQTT_PASSWORD="wrong")
    assert wrong.mark == FAILED
    assert "refuses bridge" in wrong.says
    assert "mosquitto_passwd" in wrong.advice
    anonymous = login()
    assert "without a name" in anonymous.says
    assert "MQTT_USERNAME" in anonymous.advice


def test_broker_that_does_not_speak_mqtt_5(doctor, broker_of_311):
    found = doctor(broker_of_311).found["broker login"]
    assert found.mark == FAILED
    assert "MQTT_PROTOCOL=3.1.1" in found.advice
    report = doctor(broker_of_311, MQTT_PROTOCOL="3.1.1")
    assert report.status == 0
    assert report.found["request topics"].mark == OK
    # What 3.1.1 does not tell is not claimed.
    assert report.found["command topics"].mark == NOTE
    assert report.found["unreachable devices"].mark == NOTE


@pytest.fixture
def broker_of_311(tmp_path: Path) -> Iterator[Endpoint]:
    """rumqttd with a listener for 3.1.1 alone."""
    port = free_port()
    config = tmp_path / "rumqttd.toml"
    config.write_text(
        f"""
        id = 0
        [router]
        id = 0
        max_connections = 100
        max_outgoing_packet_count = 200
        max_segment_size = 1048576
        max_segment_count = 10
        [v4.1]
        name = "v4"
        listen = "{LOOPBACK}:{port}"
        next_connection_delay_ms = 1
        [v4.1.connections]
        connection_timeout_ms = 60000
        max_payload_size = 1048576
        max_inflight_count = 100
        dynamic_filters = true
        """
    )
    broker = EmbeddedBroker(config_path=str(config))
    broker.start()
    yield Endpoint(LOOPBACK, port)
    broker.stop()


CONNACK, SUBACK = 2, 9


@pytest.mark.parametrize(
    ("packets", "subject", "says", "advice"),
    [
        (
            {CONNACK: b"\x00\x01"},
            "broker login",
            "does not speak MQTT 5",
            "MQTT_PROTOCOL=3.1.1",
        ),
        ({CONNACK: b"\x00\x84\x00"}, "broker login", "does not speak MQTT 5", "3.1.1"),
        ({CONNACK: b"\x00\x89\x00"}, "broker login", "0x89", ""),
        (
            {CONNACK: b"\x00\x00\x00", SUBACK: b"\x00\x87\x87"},
            "request topics",
            "0x87",
            "topic read plugin/request/#",
        ),
        (
            {CONNACK: b"\x00\x00\x00", SUBACK: b"\x00\x9e\x9e"},
            "request topics",
            "0x9E",
            "MQTT_SHARE=",
        ),
    ],
    ids=["3.1.1 only", "version", "busy", "subscription denied", "no shared subscriptions"],
)
def test_what_mosquitto_never_answers(doctor, packets, subject, says, advice):
    with scripted_broker(packets) as broker:
        found = doctor(broker).found[subject]
    assert found.mark == FAILED
    assert says in found.says
    assert advice in found.advice


@contextlib.contextmanager
def scripted_broker(packets: Mapping[int, bytes]) -> Iterator[Endpoint]:
    """Answers CONNECT and SUBSCRIBE with the given packets, and the rest by closing."""
    with socket.create_server((LOOPBACK, 0)) as listener:

        def serve() -> None:
            # Closing the listener ends this.
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        answer(connection)

        def answer(connection: socket.socket) -> None:
            while (header := connection.recv(2)) and (header[0] >> 4) + 1 in packets:
                body = connection.recv(header[1], socket.MSG_WAITALL)
                kind = (header[0] >> 4) + 1
                packet = packets[kind] if kind == CONNACK else body[:2] + packets[kind]
                connection.sendall(bytes((kind << 4, len(packet))) + packet)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Endpoint(*listener.getsockname()[:2])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


LIMITS = [
    ("retain_available false", NOTE, "retains no messages", "retain_available true"),
    ("max_qos 0", FAILED, "only QoS 0", "max_qos 2"),
    ("max_packet_size 4000", NOTE, "packets of 4000 bytes", "max_packet_size 66560"),
    ("max_inflight_messages 30", NOTE, "takes 30 unacknowledged", "max_inflight_messages 1000"),
]


@pytest.mark.parametrize(("line", "mark", "says", "advice"), LIMITS)
def test_limit_of_the_broker_is_told_with_the_line_to_change(
    doctor, private_mosquitto, line, mark, says, advice
):
    found = doctor(private_mosquitto(line)).found["broker limits"]
    assert found.mark == mark
    assert says in found.says
    assert advice in found.advice.splitlines()


def test_broker_of_3_1_1_that_retains_nothing_is_told_though_it_can_not_say_so(
    doctor, private_mosquitto
):
    broker = private_mosquitto("retain_available false")
    found = doctor(broker, MQTT_PROTOCOL="3.1.1").found["broker limits"]
    assert found.mark == NOTE
    assert "retains no messages" in found.says
    assert "retain_available true" in found.advice.splitlines()


def test_limits_that_suffice(doctor, private_mosquitto):
    broker = private_mosquitto("max_inflight_messages 1000")
    assert doctor(broker).found["broker limits"].mark == OK


def test_short_keepalive_of_the_broker_is_a_note(doctor):
    with scripted_broker({CONNACK: b"\x00\x00\x03\x13\x00\x03"}) as broker:
        found = doctor(broker).found["broker limits"]
    assert (found.mark, "keepalive of 3 s" in found.says) == (NOTE, True)


def test_broker_that_says_it_has_no_shared_subscriptions(doctor):
    connack = b"\x00\x00\x02\x2a\x00"
    with scripted_broker({CONNACK: connack, SUBACK: b"\x00\x9e\x9e"}) as broker:
        found = doctor(broker).found["broker limits"]
    assert (found.mark, found.says.partition(":")[0]) == (
        FAILED,
        "it has no shared subscriptions",
    )
    assert "MQTT_SHARE=" in found.advice.splitlines()


def test_broker_that_takes_a_share_for_a_literal_topic(doctor):
    with literal_broker() as broker:
        shared = doctor(broker, MQTT_PROTOCOL="3.1.1")
        plain = doctor(broker, MQTT_PROTOCOL="3.1.1", MQTT_SHARE="")
    found = shared.found["request topics"]
    assert (shared.status, found.mark) == (1, FAILED)
    assert "delivers nothing by it" in found.says
    assert "MQTT_SHARE=" in found.advice.splitlines()
    assert plain.found["request topics"].mark == OK


@contextlib.contextmanager
def literal_broker() -> Iterator[Endpoint]:
    """Speaks 3.1.1, and sends what is published back to whoever subscribed to that very topic."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        topics: set[bytes] = set()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (first,) = await reader.readexactly(1)
                length = shift = 0
                while True:
                    (digit,) = await reader.readexactly(1)
                    length |= (digit & 127) << shift
                    shift += 7
                    if digit < 128:
                        break
                body = await reader.readexactly(length)
                match first >> 4:
                    case 1:
                        writer.write(b"\x20\x02\x00\x00")
                    case 3 if first & 6:
                        size = int.from_bytes(body[:2])
                        writer.write(b"\x40\x02" + body[2 + size : 4 + size])
                        if body[2 : 2 + size] in topics:
                            content = body[: 2 + size] + body[4 + size :]
                            writer.write(b"\x30" + bytes((len(content),)) + content)
                    case 8:
                        rest, count = body[2:], 0
                        while rest:
                            size = int.from_bytes(rest[:2])
                            topics.add(rest[2 : 2 + size])
                            rest, count = rest[3 + size :], count + 1
                        writer.write(b"\x90" + bytes((2 + count,)) + body[:2] + b"\x01" * count)
                    case 12:
                        writer.write(b"\xd0\x00")
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, LOOPBACK, 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield Endpoint(*server.sockets[0].getsockname()[:2])
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()


RIGHTS = {
    "publishClientSend": ("plugin/request/#", "plugin/reply/#", "plugin/status/#", "devices/#"),
    "publishClientReceive": ("plugin/#", "devices/#"),
}


@pytest.mark.parametrize(
    ("pattern", "mark"), [("$share/bridge/plugin/request/#", OK), ("plugin/request/#", FAILED)]
)
def test_dynamic_security_wants_the_share_in_its_rights(
    doctor, private_mosquitto, tmp_path, pattern, mark
):
    file = tmp_path / "dynamic-security.json"
    command = ("mosquitto_ctrl", "dynsec", "init", str(file), "bridge", "right")
    subprocess.run(command, check=True, capture_output=True)
    rights = json.loads(file.read_text())
    rights["roles"][0]["acls"] = [
        {"acltype": kind, "topic": topic, "allow": True, "priority": 0}
        for kind, topics in (*RIGHTS.items(), ("subscribePattern", (pattern, "plugin/status/+")))
        for topic in topics
    ]
    file.write_text(json.dumps(rights))
    broker = private_mosquitto(
        f"plugin {dynamic_security()}", f"plugin_opt_config_file {file}", anonymous=False
    )
    found = doctor(broker, MQTT_USERNAME="bridge", MQTT_PASSWORD="right").found["request topics"]
    assert found.mark == mark
    assert ("'$share/bridge/plugin/request/#' allow" in found.advice) == (mark == FAILED)


def dynamic_security() -> Path:
    """Mosquitto's plugin, where Debian puts it."""
    return next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"))


def test_deployed_acl_is_enough(doctor, private_mosquitto):
    acl = (PROJECT / "deploy" / "mosquitto" / "acl").read_text(encoding="utf-8")
    broker = private_mosquitto(anonymous=False, passwords={"bridge": "right"}, acl=acl)
    report = doctor(broker, MQTT_USERNAME="bridge", MQTT_PASSWORD="right")
    assert report.status == 0
    assert report.marked(NOTE) == {"API keys", "broker limits"}


ALL_RULES = {
    "request topics": "topic read plugin/request/#",
    "reply topics": "topic write plugin/reply/#",
    "command topics": "topic write devices/+/control",
}


@pytest.mark.parametrize("denied", ALL_RULES)
def test_acl_that_denies(doctor, private_mosquitto, denied):
    rules = [rule for subject, rule in ALL_RULES.items() if subject != denied]
    # Ours may ask, so that what reaches us can be seen.
    broker = private_mosquitto(acl="\n".join([*rules, "topic write plugin/request/health"]))
    report = doctor(broker)
    assert report.status == 1
    assert report.marked(FAILED) == {denied}
    assert ALL_RULES[denied] in report.found[denied].advice
    # Presence alone may be allowed on the one topic that is ours.
    assert report.found["presence topic"].mark == NOTE
    assert "topic write plugin/status/+" in report.found["presence topic"].advice


def test_what_cannot_be_proved_is_a_note(doctor, private_mosquitto):
    """Without the right to ask, the bridge can do its work, and the doctor can't see it."""
    broker = private_mosquitto(acl="\n".join(ALL_RULES.values()))
    report = doctor(broker)
    assert report.status == 0
    assert report.found["request topics"].mark == NOTE
    assert "can't be proved" in report.found["request topics"].says


def test_topic_prefix_is_that_of_the_settings(doctor, private_mosquitto):
    broker = private_mosquitto(acl="topic readwrite school/plugin/#\ntopic write devices/+/control")
    assert doctor(broker, MQTT_TOPIC_PREFIX="school/plugin").status == 0
    assert doctor(broker).status == 1


async def test_subscriber_to_every_command_is_a_note(doctor, private_mosquitto):
    broker = private_mosquitto()
    async with Connection(broker) as monitor:
        await monitor.subscribe("devices/#")
        report = await asyncio.to_thread(doctor, broker)
    assert report.status == 0
    assert report.found["unreachable devices"].mark == NOTE
    assert "devices/#" in report.found["unreachable devices"].advice


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_broker_with_nagles_algorithm(doctor, private_mosquitto, protocol):
    report = doctor(private_mosquitto(tcp_nodelay=False), MQTT_PROTOCOL=protocol)
    assert report.status == 0
    assert report.found["broker speed"].mark == NOTE
    assert "set_tcp_nodelay true" in report.found["broker speed"].advice


# TLS


def test_broker_certificate_that_is_trusted(doctor, private_mosquitto, certificates):
    broker = private_mosquitto(certificates=certificates)
    report = doctor(broker, MQTT_TLS_CA=str(certificates.ca))
    assert report.status == 0
    assert report.found["broker TLS"].mark == OK


@dataclass(frozen=True)
class Issued:
    """A server certificate of one's own making, and the authority that signed it."""

    ca: Path
    server: KeyPair


def issue(folder: Path, name: str, **options: Any) -> Issued:
    authority = trustme.CA()
    issued = authority.issue_cert(name, **options)
    made = Issued(folder / "ca.pem", KeyPair(folder / "server.pem", folder / "server.key"))
    authority.cert_pem.write_to_path(str(made.ca))
    issued.cert_chain_pems[0].write_to_path(str(made.server.certificate))
    issued.private_key_pem.write_to_path(str(made.server.key))
    return made


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (LOOPBACK, {"not_after": datetime.now(UTC) - timedelta(days=1)}, "has expired"),
        ("broker.example", {}, "not for 127.0.0.1"),
    ],
)
def test_broker_certificate_that_is_unfit(doctor, private_mosquitto, tmp_path, name, options, says):
    unfit: Any = issue(tmp_path, name, **options)
    report = doctor(private_mosquitto(certificates=unfit), MQTT_TLS_CA=str(unfit.ca))
    assert report.status == 1
    assert report.marked(FAILED) == {"broker TLS"}
    assert says in report.found["broker TLS"].says


def test_broker_certificate_that_is_not_trusted(doctor, private_mosquitto, certificates):
    report = doctor(private_mosquitto(certificates=certificates), MQTT_TLS="true")
    assert report.status == 1
    assert "not trusted" in report.found["broker TLS"].says
    assert "MQTT_TLS_CA=" in report.found["broker TLS"].advice
    assert report.found["broker login"].mark == SKIPPED


def test_broker_that_wants_a_client_certificate(doctor, private_mosquitto, certificates):
    broker = private_mosquitto(certificates=certificates, require_client_certificate=True)
    found = doctor(broker, MQTT_TLS_CA=str(certificates.ca)).found["broker login"]
    assert (found.mark, "MQTT_TLS_CERT" in found.advice) == (FAILED, True)


def test_tls_on_one_side_only(doctor, mosquitto, private_mosquitto, certificates):
    ours_only = doctor(mosquitto, MQTT_TLS_CA=str(certificates.ca))
    assert "MQTT_TLS=false" in ours_only.found["broker TLS"].advice
    theirs_only = doctor(private_mosquitto(certificates=certificates))
    assert "MQTT_TLS=true" in theirs_only.found["broker login"].advice


def test_certificate_file_that_is_none(doctor, certificates):
    report = doctor(MQTT_TLS_CA=str(certificates.server.key))
    assert report.found["broker TLS"].mark == FAILED
    assert "MQTT_TLS_CA" in report.found["broker TLS"].advice


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
