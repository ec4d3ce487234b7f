"""The demo's parts that need no process: ports of the machine, packets, a board's ports."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from bridge.demo.front_door import Session
from bridge.demo.loopback import NoFreePortError, free_port, wanted_port
from bridge.demo.simulation import NotUnderstoodError, Ports
from bridge.link.packets import MalformedPacketError
from tests.lab.servers import free_port as free_lab_port

# Ports of the machine


# Where `localhost` leads on this machine, which may be ::1 too.
LOCALHOST = {str(found[4][0]) for found in socket.getaddrinfo("localhost", None)}


@pytest.fixture(params=sorted({"0.0.0.0", *LOCALHOST}))
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port that someone listens on."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((request.param, free_lab_port()))
        listener.listen()
        yield listener.getsockname()[1]


def test_taken_port_is_replaced_by_one_that_ends_like_it(taken):
    assert free_port(taken) in range(taken + 10_000, 65536, 10_000)


def test_taken_port_that_was_asked_for_is_refused(taken):
    with pytest.raises(NoFreePortError, match=str(taken)):
        wanted_port(taken)


def test_free_port_is_taken_as_it_is():
    port = free_lab_port()
    assert free_port(port) == wanted_port(port) == port


# Packets: a first byte and a body, as they are in MQTT 3.1.1 and in MQTT 5

NAME = b"\x00\x04MQTT"
CLIENT_ID = b"\x00\x02me"
WILL = b"\x00\x01w\x00\x04gone"
LOGIN = b"\x00\x01u\x00\x01p"
TOPIC = b"\x00\x03a/b"
PACKET_ID = b"\x00\x07"
# A content type and a user property.
PROPERTIES = b"\x0d\x03\x00\x01x\x26\x00\x02ab\x00\x02cd"

CONNECT_311 = (0x10, NAME + b"\x04\x02\x00\x3c" + CLIENT_ID)
CONNECT_5 = (0x10, NAME + b"\x05\x02\x00\x3c\x00" + CLIENT_ID)

TO_BROKER = [
    (CONNECT_311, CONNECT_5),
    (
        (0x10, NAME + b"\x04\xc6\x00\x3c" + CLIENT_ID + WILL + LOGIN),
        (0x10, NAME + b"\x05\xc6\x00\x3c\x00" + CLIENT_ID + b"\x00" + WILL + LOGIN),
    ),
    ((0x30, TOPIC + b"hello"), (0x30, TOPIC + b"\x00" + b"hello")),
    ((0x3B, TOPIC + PACKET_ID + b"hello"), (0x3B, TOPIC + PACKET_ID + b"\x00" + b"hello")),
    ((0x82, PACKET_ID + TOPIC + b"\x00"), (0x82, PACKET_ID + b"\x00" + TOPIC + b"\x00")),
    ((0xA2, PACKET_ID + TOPIC), (0xA2, PACKET_ID + b"\x00" + TOPIC)),
    ((0x40, PACKET_ID), (0x40, PACKET_ID)),
    ((0xC0, b""), (0xC0, b"")),
    ((0xE0, b""), (0xE0, b"")),
]
TO_CLIENT = [
    ((0x20, b"\x01\x00\x03\x22\x00\x0a"), (0x20, b"\x01\x00")),
    ((0x20, b"\x00\x87\x00"), (0x20, b"\x00\x03")),
    ((0x30, TOPIC + PROPERTIES + b"hello"), (0x30, TOPIC + b"hello")),
    ((0x32, TOPIC + PACKET_ID + PROPERTIES + b"hello"), (0x32, TOPIC + PACKET_ID + b"hello")),
    ((0x32, TOPIC + PACKET_ID + b"\x00"), (0x32, TOPIC + PACKET_ID)),
    ((0x90, PACKET_ID + b"\x00\x01\x02\x87"), (0x90, PACKET_ID + b"\x01\x02\x80")),
    ((0xB0, PACKET_ID + b"\x00\x00"), (0xB0, PACKET_ID)),
    ((0x40, PACKET_ID + b"\x10"), (0x40, PACKET_ID)),
    ((0x50, PACKET_ID), (0x50, PACKET_ID)),
    ((0xD0, b""), (0xD0, b"")),
    ((0xE0, b"\x8b\x00"), None),
]


def whole(packet: tuple[int, bytes] | None) -> bytes:
    """The packet with its length; nothing for none."""
    return b"" if packet is None else bytes((packet[0], len(packet[1]))) + packet[1]


@pytest.mark.parametrize(("in_311", "in_5"), TO_BROKER)
def test_client_of_311_speaks_mqtt_5_to_the_broker(in_311, in_5):
    session = Session()
    session.to_broker(*CONNECT_311)
    assert session.to_broker(*in_311) == whole(in_5)


@pytest.mark.parametrize(("in_5", "in_311"), TO_CLIENT)
def test_broker_speaks_311_to_a_client_of_311(in_5, in_311):
    session = Session()
    session.to_broker(*CONNECT_311)
    assert session.to_client(*in_5) == whole(in_311)


@pytest.mark.parametrize("packet", [five for _, five in TO_BROKER])
def test_mqtt_5_passes_unchanged_to_the_broker(packet):
    session = Session()
    session.to_broker(*CONNECT_5)
    assert session.to_broker(*packet) == whole(packet)


@pytest.mark.parametrize("packet", [five for five, _ in TO_CLIENT])
def test_mqtt_5_passes_unchanged_to_the_client(packet):
    session = Session()
    session.to_broker(*CONNECT_5)
    assert session.to_client(*packet) == whole(packet)


@pytest.mark.parametrize(
    ("connect", "properties"), [(CONNECT_311, b""), (CONNECT_5, b"\x02\x0b\x01")]
)
def test_subscriptions_are_made_at_qos_0(connect, properties):
    def subscribe(first: bytes, second: bytes) -> bytes:
        return TOPIC + first + b"\x00\x01#" + second

    session = Session()
    session.to_broker(*connect)
    # 0x28: Retain Handling 2 and Retain As Published, which stay as they are.
    asked = session.to_broker(0x82, PACKET_ID + properties + subscribe(b"\x29", b"\x02"))
    assert asked.endswith((properties or b"\x00") + subscribe(b"\x28", b"\x00"))


def test_long_packets_keep_their_length():
    session = Session()
    session.to_broker(*CONNECT_311)
    payload = bytes(300)
    assert session.to_broker(0x30, TOPIC + payload) == b"\x30\xb2\x02" + TOPIC + b"\x00" + payload


@pytest.mark.parametrize("name", [b"\x00\x06MQIsdp\x03", NAME + b"\x06", b"\x00\x04HTTP\x04"])
def test_other_protocols_are_refused(name):
    with pytest.raises(MalformedPacketError):
        Session().to_broker(0x10, name + b"\x02\x00\x3c" + CLIENT_ID)


# A board's ports


@pytest.fixture
def ports() -> Ports:
    return Ports({"led": 4, "relay": 1, "servo": 1, "pwm": 1})


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ({"cmd": "led", "device_id": 2, "action": "on"}, "led 2 on  ○●○○"),
        ({"cmd": "led", "device_id": 0, "action": "on"}, "led all on  ●●●●"),
        ({"cmd": "relay", "device_id": 1, "action": "off"}, "relay 1 off □"),
        ({"cmd": "servo", "device_id": 1, "angle": 180}, "servo 1 180°  ██████████"),
        (
            {"cmd": "pwm", "channel": 1, "device_id": 1, "frequency": 5000, "duty_cycle": 30},
            "pwm 1 30%  ███░░░░░░░  5000 Hz",
        ),
        (
            {
                "cmd": "preset",
                "preset_type": "blink",
                "device_type": "led",
                "device_id": 0,
                "parameters": {"count": 3},
            },
            "preset blink led all  count=3",
        ),
    ],
)
def test_command_is_done_and_shown_in_one_line(ports, command, shown):
    assert ports.take(command) == shown


def test_ports_keep_their_state(ports):
    for number in (1, 3):
        ports.take({"cmd": "led", "device_id": number, "action": "on"})
    assert ports.take({"cmd": "led", "device_id": 1, "action": "off"}) == "led 1 off ○○●○"
    assert ports.state == {"led": [0, 0, 1, 0], "relay": [0], "servo": [0], "pwm": [0]}


@pytest.mark.parametrize(
    "command",
    [
        {"cmd": "led", "device_id": 5, "action": "on"},
        {"cmd": "led", "device_id": -1, "action": "on"},
        {"cmd": "led", "device_id": 1, "action": "explode"},
        {"cmd": "pwm", "device_id": 1, "duty": 30},
        {"cmd": "servo", "device_id": 1, "angle": "90"},
        {"cmd": "dance"},
        ["led"],
        None,
    ],
)
def test_what_the_firmware_does_not_know_changes_nothing(ports, command):
    before = str(ports.state)
    with pytest.raises(NotUnderstoodError):
        ports.take(command)
    assert str(ports.state) == before


def test_all_relays_of_a_board_without_relays_are_not_understood():
    with pytest.raises(NotUnderstoodError):
        Ports({"led": 1}).take({"cmd": "relay", "device_id": 0, "action": "on"})
