"""What the doctor says of brokers in every kind of trouble, with TLS and without."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from iotcore import Broker as EmbeddedBroker

from tests.doctor.report import FAILED, NOTE, OK, SKIPPED, Found
from tests.lab.bridge import PROJECT
from tests.lab.certificates import KeyPair
from tests.lab.mqtt import Connection, Endpoint
from tests.lab.servers import LOOPBACK, free_port


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
