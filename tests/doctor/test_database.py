"""What the doctor says of databases in every kind of trouble."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta

import pytest

from bridge.database.idempotency_table import CREATE_TABLE, TABLE
from bridge.doctor import columns_read
from tests.doctor.report import FAILED, NOTE, OK, SKIPPED, Found
from tests.lab.certificates import Certificates
from tests.lab.mariadb import READER, MariaDb
from tests.lab.platform import BOARD_A, Platform, beijing_now, seed_classroom
from tests.lab.servers import LOOPBACK, free_port


@pytest.fixture(scope="module")
def own_mariadb() -> Iterator[MariaDb]:
    """A server for these tests, which make further databases and accounts in it."""
    with MariaDb() as server:
        seed_classroom(server)
        yield server


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
