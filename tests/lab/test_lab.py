"""The lab itself works: else every other test would tell of the lab and not of the bridge."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import pymysql
import pytest

from tests.lab import mariadb as accounts
from tests.lab.bridge import PROJECT, Bridge
from tests.lab.mqtt import NO_MATCHING_SUBSCRIBERS, Message, RefusedError
from tests.lab.platform import (
    ALIAS,
    BOARD_A,
    BOARD_B,
    NAMED_PORT,
    SECRET_PREFIX,
    TEXT_SENSOR,
    TEXT_VALUE,
    Platform,
)
from tests.lab.requester import ABSENT, Requester
from tests.lab.servers import Server, ServerError, accepts_connections

# Servers


class Sleeper(Server):
    """Ignores SIGTERM, and has a child of its own."""

    stop_timeout = 0.3

    def command(self) -> list[str]:
        return ["/bin/sh", "-c", "trap '' TERM; echo one; sleep 60 & echo two; wait; sleep 60"]

    def answers(self) -> bool:
        return "two" in self.output


def test_mosquitto_keeps_its_port_over_a_restart(private_mosquitto):
    broker = private_mosquitto()
    port, first = broker.port, broker.pid
    broker.restart()
    assert accepts_connections(broker.host, port)
    assert broker.pid != first


def test_killed_server_is_gone_and_can_be_started_again(private_mosquitto):
    broker = private_mosquitto()
    broker.kill()
    assert not broker.running
    assert not accepts_connections(broker.host, broker.port)
    broker.start()
    assert accepts_connections(broker.host, broker.port)


def test_server_that_cannot_start_says_why(private_mosquitto):
    with pytest.raises(ServerError, match="no_such_option"):
        private_mosquitto("no_such_option true")


def test_server_that_ignores_sigterm_is_killed_with_its_children():
    with Sleeper() as server:
        assert len(server.processes()) == 2
        assert server.rss_bytes > 0
        assert server.open_files > 0
        with pytest.raises(ServerError, match="did not end"):
            server.stop()
        assert server.processes() == []


def test_a_server_outlives_the_thread_that_started_it(private_mosquitto):
    broker = private_mosquitto()
    thread = threading.Thread(target=broker.restart)
    thread.start()
    thread.join()
    # The kernel would tell of the thread's end at once.
    assert accepts_connections(broker.host, broker.port)
    assert broker.running


# The database


def test_reader_may_read_but_not_write(mariadb):
    reader = pymysql.connect(
        host=mariadb.host,
        port=mariadb.port,
        user=accounts.READER,
        password=accounts.READER_PASSWORD,
        database=accounts.DATABASE,
    )
    with reader, reader.cursor() as cursor:
        assert cursor.execute("SELECT uuid FROM device_main") == 5
        for sql in ("UPDATE device_main SET name = ''", "CREATE TABLE mine (id INT)"):
            with pytest.raises(pymysql.err.OperationalError, match="denied"):
                cursor.execute(sql)


def test_the_classroom_is_stored_as_the_platform_stores_it(mariadb):
    rows = mariadb.query("SELECT * FROM device_sensors WHERE device_uuid = %s", BOARD_A)
    assert {row["sensor_name"]: row["sensor_value"] for row in rows} == {
        "temperature": "29.1",
        "humidity": "61",
        "rain": "False",
        "rain_level": "3",
    }
    (text,) = mariadb.query("SELECT * FROM device_sensors WHERE sensor_name = %s", TEXT_SENSOR)
    assert text["sensor_value"] == TEXT_VALUE
    (config,) = mariadb.query(
        "SELECT JSON_UNQUOTE(JSON_EXTRACT(device_control_config, '$.led_1.alias')) AS alias,"
        " device_secret FROM device_main WHERE uuid = %s",
        BOARD_A,
    )
    assert config["alias"] == ALIAS
    assert config["device_secret"].startswith(SECRET_PREFIX)
    (door,) = mariadb.query(
        "SELECT device_control_config AS config FROM device_main"
        " WHERE device_control_config LIKE %s",
        f"%{NAMED_PORT}%",
    )
    assert '"device_id": 7' in door["config"]


def test_a_test_that_changes_rows_leaves_the_classroom_as_it_was(mariadb, request):
    platform = request.getfixturevalue("platform")
    assert isinstance(platform, Platform)
    platform.report(BOARD_B, "temperature", "24.5", sensor_type="DS18B20")
    platform.update_device(BOARD_B, is_online=False, device_settings={"preset_commands": []})
    platform.remove_device(BOARD_A)
    (row,) = mariadb.query("SELECT sensor_value FROM device_sensors")[:1]
    assert row["sensor_value"] == "24.5"


def test_paused_mariadb_is_silent_until_resumed(private_mariadb):
    database = private_mariadb()
    database.pause()
    started = time.monotonic()
    assert not database.answers()
    assert time.monotonic() - started > 0.5
    database.resume()
    assert database.query("SELECT 1 AS one") == [{"one": 1}]


def test_mariadb_keeps_its_rows_over_a_restart(private_mariadb):
    database = private_mariadb()
    database.restart()
    assert database.query("SELECT COUNT(*) AS boards FROM device_main") == [{"boards": 5}]


def test_mariadb_offers_tls_and_may_require_it(private_mariadb, certificates):
    database = private_mariadb(certificates=certificates, require_tls=True)
    account = {
        "host": database.host,
        "port": database.port,
        "user": accounts.READER,
        "password": accounts.READER_PASSWORD,
    }
    with pytest.raises(pymysql.err.OperationalError, match=r"denied|insecure"):
        pymysql.connect(**account, ssl_disabled=True)
    reader = pymysql.connect(**account, ssl=certificates.client_context())
    with reader, reader.cursor() as cursor:
        cursor.execute("SHOW STATUS LIKE 'Ssl_cipher'")
        assert cursor.fetchone()[1]


# MQTT


class Echo(Requester):
    """Answers what it hears on `lab/request/echo` as a responder should.

    Not below `plugin/`, where the bridge of other tests answers.
    """

    def received(self, message: Message) -> None:
        reply = self.publish(
            message.response_topic or "lab/reply/echo",
            message.payload,
            qos=message.qos,
            correlation=message.correlation,
            content_type="application/json",
            payload_format=1,
            expiry=30,
            user_properties={"__stat": "200"},
        )
        self._replying = asyncio.create_task(reply)


@pytest.fixture
async def echo(mosquitto):
    async with Echo(mosquitto) as responder:
        await responder.subscribe("lab/request/echo")
        yield responder


async def test_reply_is_found_by_binary_correlation_data(echo, requester):
    started = time.monotonic()
    correlation = bytes(range(256))
    reply = await requester.ask(
        "echo", {"code": 200, "名": "值"}, correlation=correlation, prefix="lab"
    )
    assert reply.body == {"code": 200, "名": "值"}
    assert reply.code == 200
    assert reply.correlation == correlation
    assert reply.topic == requester.reply_topic("lab")
    assert (reply.qos, reply.retain) == (1, False)
    assert (reply.content_type, reply.payload_format) == ("application/json", 1)
    assert reply.expiry is not None
    assert reply.user_properties == {"__stat": "200"}
    assert time.monotonic() - started < 1


async def test_many_questions_at_once_each_get_their_own_answer(echo, requester):
    replies = await asyncio.gather(
        *(requester.ask("echo", {"n": n}, prefix="lab") for n in range(200))
    )
    assert [reply.body["n"] for reply in replies] == list(range(200))
    assert requester.messages == []


async def test_reply_without_response_topic_is_heard_on_the_default_one(echo, requester):
    reply = await requester.ask("echo", {}, response_topic=ABSENT, correlation=ABSENT, prefix="lab")
    assert reply.topic == "lab/reply/echo"
    assert reply.correlation is None


async def test_requester_speaks_mqtt_3(echo, connect_requester):
    old = await connect_requester(version="3.1.1")
    body = {"code": 200}
    reply = await old.ask("echo", body, response_topic=ABSENT, prefix="lab")
    assert reply.code == 200
    assert reply.request_id
    assert reply.content_type is None


async def test_silence_is_a_timeout_that_names_the_topic(requester):
    with pytest.raises(TimeoutError, match="lab/request/nobody"):
        await requester.ask("nobody", prefix="lab", timeout=0.1)


async def test_publish_tells_the_brokers_reason_code(requester):
    assert await requester.publish("to/nobody", b"x") == NO_MATCHING_SUBSCRIBERS
    await requester.subscribe("to/me")
    assert await requester.publish("to/me", b"\xff\x00") == 0
    assert (await requester.next_message(topic="to/+")).payload == b"\xff\x00"


async def test_board_records_its_commands_in_order(board, requester):
    device = await board(BOARD_A)
    for n in range(3):
        await requester.publish(f"devices/{BOARD_A}/control", f'{{"n":{n}}}', expiry=30)
    first = await device.next_command()
    assert (first.topic, first.json, first.retain) == (device.control_topic, {"n": 0}, False)
    assert first.expiry is not None
    assert await device.next_commands(2) == [{"n": 1}, {"n": 2}]
    assert [command.json["n"] for command in device.commands] == [0, 1, 2]
    assert first.at <= device.commands[-1].at


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_board_comes_back_after_the_broker_did(private_mosquitto, board, version):
    broker = private_mosquitto()
    device = await board(BOARD_A, broker, version=version)
    await asyncio.to_thread(broker.stop)
    await device.offline()
    await asyncio.to_thread(broker.start)
    await device.online()
    async with Requester(broker) as sender:
        assert await sender.publish(device.control_topic, b"{}") == 0
    await device.next_command()


async def test_dropped_client_leaves_its_session_to_its_successor(private_mosquitto):
    broker = private_mosquitto()
    keep = {"client_id": "keeper", "session_expiry": 60, "clean_start": False}
    first = await Requester(broker, **keep).connect()
    await first.subscribe("to/keeper")
    await first.drop()
    async with Requester(broker) as sender, asyncio.timeout(5):
        await sender.publish("to/keeper", b"kept")
    async with Requester(broker, **keep) as second:
        assert (await second.next_message()).payload == b"kept"


async def test_a_hung_broker_does_not_hold_up_a_disconnect(private_mosquitto, connect_requester):
    broker = private_mosquitto()
    client = await connect_requester(broker)
    broker.pause()
    with pytest.raises(TimeoutError):
        await client.publish("to/nobody", b"x", timeout=0.1)
    async with asyncio.timeout(5):
        await client.disconnect()


async def test_broker_checks_passwords_and_acl(private_mosquitto, connect_requester):
    broker = private_mosquitto(
        anonymous=False,
        passwords={"kim": "s3cret"},
        acl="user kim\ntopic read allowed\n",
    )
    with pytest.raises(RefusedError) as refusal:
        await Requester(broker).connect()
    assert refusal.value.code == 0x87
    kim = await connect_requester(broker, username="kim", password="s3cret")
    assert await kim.publish("allowed", b"x") == 0x87
    broker.set_acl("user kim\ntopic readwrite allowed\n")
    assert await kim.publish("allowed", b"x") != 0x87


async def test_broker_asks_for_a_client_certificate(
    private_mosquitto, connect_requester, certificates
):
    broker = private_mosquitto(certificates=certificates, require_client_certificate=True)
    context = certificates.client_context(certificates.client("board"))
    client = await connect_requester(broker, tls=context)
    assert await client.publish("to/nobody", b"x") == NO_MATCHING_SUBSCRIBERS
    with pytest.raises((OSError, TimeoutError)):
        await Requester(broker, tls=certificates.client_context()).connect(timeout=0.5)


# The bridge's process


def test_bridge_process_sees_its_settings_and_no_others(mosquitto, mariadb, monkeypatch):
    monkeypatch.setenv("DB_HOST", "a-developers-own")
    process = Bridge(mosquitto, mariadb, LOG_LEVEL="DEBUG", DB_USER=None)
    try:
        environment = process.environment()
        assert process.command()[:2] == [sys.executable, str(PROJECT / "run.py")]
        assert environment["DB_HOST"] == mariadb.host
        assert environment["MQTT_PORT"] == str(mosquitto.port)
        assert environment["LOG_LEVEL"] == "DEBUG"
        assert "DB_USER" not in environment
    finally:
        process.close()
