"""The store on tables as they are in schools: converted three times, with rows that are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

import pytest

from bridge.database.columns import flag, text, time
from bridge.database.init_db import make_table
from bridge.database.pool import Database, StatementRefused
from bridge.database.statements import PROFILES, READINGS, SENSORS, fitted
from bridge.database.store import MysqlStore
from bridge.devices.listing import DevicesFields
from bridge.observability.metrics import Metrics
from tests.database.test_pool import settings_for, within
from tests.lab.certificates import Certificates
from tests.lab.mariadb import MariaDb
from tests.lab.platform import BOARD_A, BOARD_B, BOARD_E, NAMES, Platform

NEW_YEAR = datetime.fromisoformat("2026-01-01")
EMOJI = "\U0001f600"
TABLES = ("device_main", "device_sensors", "device_products")

# How old installations came to be: statements that are run on the platform's own tables.
ODD = {
    "utf8mb3": [
        f"ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb3 COLLATE utf8mb3_general_ci"
        for table in TABLES
    ],
    "collations differ": [
        "ALTER TABLE device_sensors CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci"
    ],
    "character sets differ": [
        "ALTER TABLE device_main CONVERT TO CHARACTER SET utf8mb3 COLLATE utf8mb3_unicode_ci"
    ],
    "one column in latin1": [
        "ALTER TABLE device_sensors MODIFY device_uuid VARCHAR(36) CHARACTER SET latin1 NOT NULL",
        "ALTER TABLE device_sensors MODIFY sensor_name VARCHAR(50) CHARACTER SET latin1 NOT NULL",
    ],
    "binary columns": [
        "ALTER TABLE device_main MODIFY uuid VARBINARY(36) NOT NULL",
        "ALTER TABLE device_sensors MODIFY sensor_value VARBINARY(255) NULL",
        "ALTER TABLE device_main MODIFY is_online BIT(1) NOT NULL",
    ],
    "no indexes": [
        "ALTER TABLE device_main DROP INDEX uq_device_main_uuid",
        "ALTER TABLE device_sensors DROP INDEX uq_device_sensors_device_sensor",
    ],
    "columns missing": [
        "ALTER TABLE device_main DROP COLUMN device_sensor_config",
        "ALTER TABLE device_main DROP COLUMN device_control_config",
        "ALTER TABLE device_products DROP COLUMN control_ports, DROP COLUMN name",
        *(
            f"ALTER TABLE device_main DROP COLUMN {column}"
            for column in ("room", "group_name", "floor", "is_active")
        ),
    ],
}


class Opened:
    """A store and the database below it."""

    def __init__(self, address: Any, **chosen: Any) -> None:
        self.database = Database(settings_for(address, **chosen), Metrics())
        self.store = MysqlStore(self.database, 3.0, Metrics())


@pytest.fixture
async def open_store() -> AsyncIterator[Callable[..., Opened]]:
    async with AsyncExitStack() as stack:

        def open_(address: Any, **chosen: Any) -> Opened:
            opened = Opened(address, **chosen)
            stack.push_async_callback(opened.database.close)
            stack.push_async_callback(opened.store.close)
            return opened

        yield open_


@pytest.mark.parametrize("changes", ODD.values(), ids=ODD)
async def test_odd_tables_are_read_and_hostile_keys_harm_nobody(
    private_mariadb, open_store, changes
):
    server: MariaDb = private_mariadb()
    for change in changes:
        server.execute(change)
    opened = open_store(server)
    store = opened.store
    uuids = [BOARD_A, EMOJI, BOARD_B, "\u6f22", "\xe9", BOARD_E, EMOJI * 36] * 20
    for read in (store.readings, store.profile, store.controls):
        found = await asyncio.gather(*(read(uuid) for uuid in uuids))
        assert [one and one.name for one in found] == [NAMES.get(uuid) for uuid in uuids]
    singles = await asyncio.gather(
        *(store.sensors([(uuid, ("temperature",))]) for uuid in uuids),
    )
    together = await store.sensors([(uuid, ("temperature", "humidity")) for uuid in uuids])
    for devices in ([device for (device,) in singles], together):
        for uuid, device in zip(uuids, devices, strict=True):
            assert device is None if uuid not in NAMES else device.name == NAMES[uuid]
            if uuid == BOARD_A:
                assert "29.1" in {row.sensor_value for row in device.rows}
                assert device.online
    listed = await store.devices(DevicesFields(), None)
    assert {device.device_uuid: device.name for device in listed} == NAMES
    assert opened.database.available


async def test_list_of_devices_without_its_columns_has_none_of_their_values(
    private_mariadb, open_store
):
    server = private_mariadb()
    store = open_store(server).store
    before = await store.devices(DevicesFields(), None)
    assert any(device.room and device.group and device.floor for device in before)
    for change in ODD["columns missing"]:
        server.execute(change)
    after = await store.devices(DevicesFields(), None)
    assert [(device.room, device.group, device.floor, device.product) for device in after] == [
        (None,) * 4
    ] * len(before)
    assert [device.device_uuid for device in after] == [device.device_uuid for device in before]
    for fields in (DevicesFields(room="101"), DevicesFields(group="一班")):
        assert await store.devices(fields, None) == []
    assert len(await store.devices(DevicesFields(query=NAMES[BOARD_A]), None)) == 1


async def test_log_tells_of_hostile_keys_once(private_mariadb, open_store, caplog):
    server = private_mariadb()
    for change in ODD["utf8mb3"]:
        server.execute(change)
    store = open_store(server).store
    for _ in range(20):
        await asyncio.gather(*(store.readings(f"{EMOJI}{number}") for number in range(5)))
    assert len([one for one in caplog.records if one.levelname != "INFO"]) <= 1


async def test_tables_that_change_under_way_are_looked_at_again(private_mariadb, open_store):
    server = private_mariadb()
    store = open_store(server).store
    assert await store.readings(BOARD_A)
    for name in ("no indexes", "columns missing"):
        for change in ODD[name]:
            server.execute(change)
        assert await store.readings(BOARD_A)
        assert await store.profile(BOARD_A)
        assert await store.sensors([(BOARD_A, ("temperature",))])


@pytest.mark.parametrize(
    "text", ["0000-00-00 00:00:00", "2026-02-30 10:00:00", "0000-03-01 00:00:00"]
)
async def test_date_that_is_none_is_null_and_harms_nobody(private_mariadb, open_store, text):
    server = private_mariadb("--sql-mode=ALLOW_INVALID_DATES")
    server.execute("UPDATE device_main SET last_seen = %s WHERE uuid = %s", text, BOARD_A)
    server.execute(
        "UPDATE device_sensors SET `timestamp` = %s WHERE device_uuid = %s AND sensor_name = %s",
        text, BOARD_A, "humidity",
    )  # fmt: skip
    store = open_store(server).store
    wanted = [(BOARD_A, ("humidity",)), (BOARD_B, ("temperature",))]
    odd, healthy = await store.sensors(wanted)
    assert (odd.last_seen, healthy.last_seen is None) == (None, False)
    assert [
        (row.sensor_value, row.timestamp) for row in odd.rows if row.sensor_name == "humidity"
    ] == [("61", None)]
    whole = await store.readings(BOARD_A)
    assert {row.sensor_name for row in whole.rows if row.timestamp is None} == {"humidity"}


@pytest.mark.parametrize(
    ("stored", "value"),
    [
        (NEW_YEAR, NEW_YEAR),
        ("2026-01-01 00:00:00", NEW_YEAR),
        ("2026-01-01T00:00:00Z", None),
        ("0000-00-00 00:00:00", None),
        ("soon", None),
        (5, None),
        (None, None),
    ],
)
def test_time_column_is_a_naive_time_or_null(stored, value):
    assert time(stored) == value


def test_column_of_another_type_is_read_all_the_same():
    assert [text(one) for one in (None, "x", b"\xe6\xb8\xa9", b"\xff", 5)] == [
        None, "x", "\u6e29", "\ufffd", "5",
    ]  # fmt: skip
    assert [flag(one) for one in (1, 0, None, b"\x01", b"\x00", "1", "0")] == [
        True, False, False, True, False, True, False,
    ]  # fmt: skip


# ---- the server's words -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["", "NO_BACKSLASH_ESCAPES"])
async def test_names_are_right_whatever_the_server_sets_up_for_a_session(
    private_mariadb, open_store, mode
):
    server = private_mariadb("--init-connect=SET NAMES latin1", f"--sql-mode={mode}")
    Platform(server).update_device(BOARD_B, name=f"\u6c34\u6e29{EMOJI}")
    store = open_store(server).store
    assert (await store.readings(BOARD_A)).name == NAMES[BOARD_A]
    assert (await store.readings(BOARD_B)).name == f"\u6c34\u6e29{EMOJI}"


@pytest.mark.parametrize("charset", ["utf8mb4", "utf8", "gbk"])
async def test_charset_of_the_url_is_the_connections(mariadb, open_store, charset):
    url = f"mysql://{mariadb.user}:{mariadb.password}@{mariadb.host}:{mariadb.port}/aiot"
    opened = open_store(mariadb, database_url=f"{url}?charset={charset}")
    ((_, used),) = await opened.database.fetch(
        "SHOW VARIABLES LIKE 'character_set_client'", deadline=within(5)
    )
    assert used.startswith(charset)
    assert (await opened.store.readings(BOARD_A)).name == NAMES[BOARD_A]


async def test_unix_socket_of_the_url_is_used(mariadb, open_store):
    socket = mariadb.query("SELECT @@socket AS socket")[0]["socket"]
    url = f"mysql://{mariadb.user}:{mariadb.password}@/aiot?unix_socket={socket}"
    opened = open_store(1, database_url=url)
    assert (await opened.store.readings(BOARD_A)).name == NAMES[BOARD_A]


async def test_tls_that_the_url_asks_for_is_used_and_verified(
    private_mariadb, open_store, certificates, tmp_path
):
    server = private_mariadb(certificates=certificates)
    url = f"mysql://{server.user}:{server.password}@{server.host}:{server.port}/aiot"
    cipher = "SHOW STATUS LIKE 'Ssl_cipher'"
    for query in (f"ssl_ca={certificates.ca}&ssl_verify_cert=true", "ssl_verify_cert=false"):
        database = open_store(server, database_url=f"{url}?{query}").database
        assert (await database.fetch(cipher, deadline=within(5)))[0][1]
    others = Certificates(tmp_path)
    for query in (f"ssl_ca={others.ca}", "ssl=true"):
        database = open_store(server, database_url=f"{url}?{query}").database
        with pytest.raises(Exception, match="database_unavailable"):
            await database.fetch(cipher, deadline=within(5))
        assert "certificate" in str(database.last_error).lower()


async def test_parameters_that_are_not_understood_are_named_in_a_warning(mariadb, caplog):
    url = "mysql://u:secret@h/aiot?local_infile=hidden"
    Database(settings_for(mariadb, database_url=url), Metrics())
    assert "local_infile" in caplog.text
    assert "hidden" not in caplog.text


async def test_statements_use_their_indexes_though_statistics_call_the_tables_empty(
    private_mariadb, open_store
):
    server = private_mariadb()
    server.execute(
        "INSERT INTO device_sensors (device_uuid, sensor_name, sensor_value)"
        " SELECT UUID(), CONCAT('s', seq), '1' FROM seq_1_to_500"
    )
    server.execute("SET GLOBAL innodb_stats_auto_recalc = OFF")
    server.execute("UPDATE mysql.innodb_table_stats SET n_rows = 0, clustered_index_size = 1")
    server.execute("DELETE FROM mysql.innodb_index_stats")
    server.execute("FLUSH TABLES")
    store = open_store(server).store
    await store.readings(BOARD_A)
    statements = store._statements
    uuids, names = (BOARD_A, BOARD_B), ("temperature", "humidity")
    for sql, args in (
        (statements.sensors, (names, uuids)),
        (statements.readings, (uuids, uuids)),
        (statements.profiles, (uuids,)),
        (statements.controls, (uuids,)),
    ):
        assert "FORCE INDEX" in sql
        for row in server.query(f"EXPLAIN {sql}", *args):
            assert row["type"] != "ALL", row


async def test_last_error_is_the_drivers_until_a_statement_succeeds(mariadb, open_store):
    database = open_store(mariadb).database
    with pytest.raises(StatementRefused) as refusal:
        await database.fetch("SELECT * FROM no_such_table", deadline=within(5))
    assert refusal.value.errno == 1146
    assert database.last_error.args[0] == 1146
    await database.fetch("SELECT 1", deadline=within(5))
    assert database.last_error is None


def test_statements_are_fitted_to_what_is_there():
    columns = [
        ("device_main", "uuid", "utf8mb4_unicode_ci"),
        ("DEVICE_SENSORS", "device_uuid", "utf8mb4_unicode_ci"),
        ("device_main", "device_settings", None),
    ]
    indexes = [("device_main", "a`b%", "uuid", 1), ("device_sensors", "s", "device_uuid", 1)]
    there = fitted(columns, indexes)
    assert not there.apart
    assert "FORCE INDEX (`a``b%%`)" in there.profiles
    assert "FORCE INDEX (`s`) ON" in there.sensors
    assert "d.device_settings" in there.profiles
    assert "d.device_control_config" not in there.profiles
    assert fitted([], []).apart
    assert all("FORCE" not in sql for sql in (SENSORS, READINGS, PROFILES))


async def test_init_db_without_the_right_to_create_says_so(mariadb, capsys):
    assert await make_table(settings_for(mariadb, language="en"), print_only=False) == 1
    told = capsys.readouterr().err
    assert "may not create tables" in told
    assert "unavailable" not in told
