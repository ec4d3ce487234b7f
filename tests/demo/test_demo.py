"""`python run.py demo`: what it prints works as printed, and nothing is left when it has ended."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.lab.bridge import PROJECT
from tests.lab.mqtt import Endpoint, MqttVersion
from tests.lab.requester import ABSENT, Requester
from tests.lab.servers import LOOPBACK, Server, free_port, wait_until

USUAL_PORTS = (1883, 9001)
LAST_WORD = {"zh": "按 Ctrl-C 结束", "en": "Press Ctrl-C to end"}
ALL_BYTES = bytes(range(256))

# Without the proxies of the surroundings.
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Demo(Server):
    """The demo as its users run it, in an empty folder, with its temporary files in another."""

    def __init__(self, *arguments: str, **settings: str) -> None:
        super().__init__()
        self._arguments = arguments
        self._settings = settings
        self.temporary = self.folder / "temporary"
        self.temporary.mkdir()

    def command(self) -> list[str]:
        return [sys.executable, str(PROJECT / "run.py"), "demo", *self._arguments]

    def environment(self) -> dict[str, str]:
        return {**surroundings(), "TMPDIR": str(self.temporary), **self._settings}

    def answers(self) -> bool:
        return any(words in self.output for words in LAST_WORD.values())

    @property
    def printed_commands(self) -> list[str]:
        """The lines that are there to be pasted."""
        beginnings = ("curl ", "mosquitto_", "(sleep ")
        return [line for line in self.output.splitlines() if line.startswith(beginnings)]

    @property
    def url(self) -> str:
        return self._found(r"(http://localhost:\d+)")

    @property
    def broker(self) -> Endpoint:
        return Endpoint(LOOPBACK, int(self._found(r"MQTT +localhost:(\d+)")))

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The data of a reply over HTTP, which has to be a success."""
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with direct.open(request, timeout=10) as response:
            return json.load(response)["data"]

    def _found(self, pattern: str) -> str:
        found = re.search(pattern, self.output)
        assert found, self.output
        return found[1]


def surroundings() -> dict[str, str]:
    """Neither settings of a developer nor proxies: the printed commands go to this machine."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL")
    return {name: os.environ[name] for name in kept if name in os.environ}


def paste(command: str) -> str:
    """Run a line in a shell as it is; what it prints."""
    shell = ["bash", "-c", command]
    done = subprocess.run(
        shell, env=surroundings(), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with Demo() as running:
        yield running


@pytest.fixture
def start_demo() -> Iterator[Callable[..., Demo]]:
    """Starts demos (arguments of `Demo`) that the test may end."""
    with ExitStack() as demos:
        yield lambda *arguments, **settings: demos.enter_context(Demo(*arguments, **settings))


@pytest.fixture
def take_ports() -> Iterator[Callable[..., None]]:
    """Listens on ports, unless another program does so already."""
    with ExitStack() as listeners:

        def take(*ports: int, host: str = LOOPBACK) -> None:
            for port in ports:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                listener = listeners.enter_context(socket.socket(family))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    listener.bind((host, port))
                except OSError:
                    continue
                listener.listen()

        yield take


# What it prints


@pytest.mark.parametrize("language", ["zh", "en"])
def test_every_printed_command_works_as_printed(start_demo, language):
    demo = start_demo(LANGUAGE=language)
    assert LAST_WORD[language] in demo.output
    health, listed, *rest = map(paste, demo.printed_commands)
    sensor, control, over_mqtt5, preset, over_mqtt311 = rest
    assert len(json.loads(listed)["data"]["devices"]) == 5
    assert json.loads(health)["status"] == "healthy"
    assert 10 < json.loads(sensor)["data"]["value"] < 40
    assert json.loads(control)["data"]["command"] == led(1, "on")
    assert json.loads(over_mqtt5)["data"]["sensor_type"] == "DS18B20"
    assert json.loads(preset)["data"]["success"] is True
    assert json.loads(over_mqtt311)["data"]["command"] == led(1, "off")


def test_printed_commands_ask_every_way_that_there_is(demo):
    commands = "\n".join(demo.printed_commands)
    for way in (
        f"curl {demo.url}/health",
        "/api/sensor-data?",
        "-X POST",
        "mosquitto_rr -V 5",
        "mosquitto_pub",
        "mosquitto_sub",
    ):
        assert way in commands


def test_printed_console_is_there(demo):
    assert f"Console       {demo.url}/console" in demo.output
    with direct.open(f"{demo.url}/console", timeout=10) as page:
        assert page.headers.get_content_type() == "text/html"


def test_it_is_ready_within_seconds_and_says_nothing_else(start_demo):
    demo = start_demo()
    assert demo.ask("/api/devices/demo-board-2")["online"] is True
    assert "WARNING" not in demo.output
    assert "ERROR" not in demo.output
    assert "\x1b" not in demo.output


def test_with_its_usual_ports_taken_it_prints_others_that_work(start_demo, take_ports):
    take_ports(*USUAL_PORTS)
    demo = start_demo()
    for port in USUAL_PORTS:
        assert f":{port}" not in demo.output
    assert f"-p {demo.broker.port} " in demo.printed_commands[-1]
    for command in demo.printed_commands:
        assert json.loads(paste(command)).get("code", 200) == 200


def test_two_demos_live_side_by_side(demo, start_demo):
    other = start_demo()
    assert other.url != demo.url
    switch(other, 4, "on")
    other.wait_for_line("led 4 on")
    assert "led 4 on" not in demo.output


# What runs in it


def test_switched_led_is_shown_on_the_terminal(demo):
    switch(demo, 3, "on")
    assert demo.wait_for_line("led 3 on") == "[board 演示板一] led 3 on  ○○●○"
    switch(demo, 3, "off")
    assert demo.wait_for_line("led 3 off") == "[board 演示板一] led 3 off ○○○○"


def test_boards_go_on_reporting(demo):
    def timestamp() -> str:
        reading = demo.ask("/api/sensor-data?device_uuid=demo-board-1&sensor=temperature")
        assert reading["age_seconds"] < 4
        assert reading["online"] is True
        return str(reading["timestamp"])

    first = timestamp()
    wait_until(lambda: timestamp() != first, 6, "another reading")


@pytest.mark.parametrize(
    ("board", "sensor", "unit"),
    [
        (1, "temperature", "°C"),
        (1, "DHT11_humidity", "%"),
        (1, "rain", ""),
        (1, "RAIN_SENSOR_level", "级"),
        (2, "DS18B20", "°C"),
    ],
)
def test_boards_have_sensors_of_every_kind(demo, board, sensor, unit):
    reading = demo.ask(f"/api/sensor-data?device_uuid=DEMO-board-{board}&sensor={sensor}")
    assert isinstance(reading["value"], int | float)
    assert reading["unit"] == unit


def test_device_is_described_with_the_names_people_gave(demo):
    device = demo.ask("/api/devices/demo-board-1")
    assert len(device["sensors"]) == 4
    ports = {(port["port_type"], port["port_id"]): port["alias"] for port in device["ports"]}
    assert ports["led", 1] == "客厅灯"
    assert {kind for kind, _ in ports} == {"led", "relay", "servo", "pwm"}
    assert {preset["type"] for preset in device["presets"]} == {"sequence", "blink"}


def test_ordinary_preset_reaches_the_board(demo):
    fields = {"device_uuid": "demo-board-1", "preset_key": "客厅灯闪烁", "parameters": {"count": 5}}
    assert demo.ask("/api/preset", fields)["success"] is True
    demo.wait_for_line("preset blink led 1  count=5 on_time=500 off_time=500")


def test_unknown_device_has_no_data(demo):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        demo.ask("/api/devices/nobody")


async def test_what_is_no_command_is_shown_without_harm(demo):
    async with Requester(demo.broker) as someone:
        for payload in (b"\x1b[2J\xff", b'{"cmd":"led"}', b"[1]"):
            await someone.publish("devices/demo-board-2/control", payload)
        await asyncio.to_thread(demo.wait_for_line, "[board 演示板二] ? \\u001b[2J")
        await asyncio.to_thread(demo.wait_for_line, "[board 演示板二] ? [1]")


async def test_what_is_no_report_changes_nothing(demo):
    async with Requester(demo.broker) as someone:
        for payload in (b"{", b"[]", b'{"Bad Name":1}', b"\xff"):
            await someone.publish("devices/demo-board-2/data", payload)
        await someone.publish("devices/nobody/data", b'{"sensor":"DHT11","temperature":1}')
    (sensor,) = demo.ask("/api/devices/demo-board-2")["sensors"]
    assert sensor["sensor_name"] == "temperature"


# What it takes from its surroundings, and what not


def test_settings_that_point_outside_are_ignored(start_demo):
    elsewhere = "192.0.2.1"
    demo = start_demo(
        MQTT_BROKER=elsewhere,
        MQTT_PORT="8883",
        MQTT_TLS="true",
        MQTT_PROTOCOL="3.1.1",
        MQTT_USERNAME="someone",
        MQTT_PASSWORD="secret",
        MQTT_TOPIC_PREFIX="elsewhere",
        MQTT_SHARE="others",
        MQTT_INSTANCE="production",
        DATABASE_URL=f"mysql://user:secret@{elsewhere}/aiot",
        DEDUP_STORE="mysql",
        WORKERS="3",
        API_KEYS="admin:secret",
        SERVICE_HOST="0.0.0.0",
        SERVICE_PORT="1",
    )
    for command in demo.printed_commands[:4]:
        assert json.loads(paste(command)).get("code", 200) == 200
    assert demo.broker.host == LOOPBACK


def test_it_listens_on_loopback_only(demo):
    assert [a for pid in demo.processes() for a in listening_addresses(pid)] == ["0100007F"] * 3


def test_given_http_port_is_used(start_demo):
    port = free_port()
    assert start_demo("--http-port", str(port)).url == f"http://localhost:{port}"


def test_given_mqtt_port_is_used(start_demo):
    port = free_port()
    assert start_demo("--mqtt-port", str(port)).broker.port == port


@pytest.mark.parametrize(
    ("arguments", "settings", "language"),
    [
        ([], {"LC_ALL": "", "LANG": ""}, "zh"),
        ([], {"LC_ALL": "", "LANG": "en_GB.UTF-8"}, "en"),
        ([], {"LC_ALL": "zh_CN.UTF-8", "LANG": "en_GB.UTF-8"}, "zh"),
        ([], {"LANGUAGE": "en", "LC_ALL": "zh_CN.UTF-8"}, "en"),
        (["--language", "en"], {"LANGUAGE": "zh"}, "en"),
    ],
)
def test_it_speaks_the_readers_language(start_demo, arguments, settings, language):
    assert LAST_WORD[language] in start_demo(*arguments, **settings).output


def test_bad_env_file_does_not_concern_it():
    demo = Demo()
    (demo.folder / ".env").write_text("DB_PORT=none\nLANGUAGE=fr\nAPI_KEYS=nonsense\n")
    with demo:
        assert demo.ask("/api/devices")["next_cursor"] is None


def test_devices_of_two_rooms_are_listed_and_the_retired_one_is_not(demo):
    devices = demo.ask("/api/devices")["devices"]
    assert {device["device_uuid"] for device in devices} == {
        f"demo-board-{number}" for number in (1, 2, 3, 4, 5)
    }
    assert len({device["room"] for device in devices}) == 2
    assert [d["device_uuid"] for d in devices if not d["online"]] == ["demo-board-5"]
    (found,) = demo.ask(f"/api/devices?query={quote('教室灯光')}")["devices"]
    assert found["name"] == "101 教室灯光"
    (reading,) = demo.ask("/api/devices/demo-board-5")["sensors"]
    assert reading["age_seconds"] > 3000


@pytest.mark.parametrize(
    ("port", "status", "words"),
    [("taken", 1, "can't be used"), ("0", 2, "1 到 65535"), ("65536", 2, "1 到 65535")],
)
def test_unusable_http_port_is_told_with_an_exit_status(take_ports, port, status, words):
    if port == "taken":
        port = str(free_port())
        take_ports(int(port))
    demo = Demo("--http-port", port)
    try:
        demo.spawn()
        assert demo.wait() == status
        assert words in demo.output
        assert "Traceback" not in demo.output
        assert_nothing_is_left_of(demo)
    finally:
        demo.close()


# How it ends


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("whole_group", [False, True], ids=["alone", "as from a terminal"])
def test_signal_ends_it_and_nothing_is_left(start_demo, number, whole_group):
    demo = start_demo()
    assert len(demo.processes()) == 2
    before = demo.output
    if whole_group:
        os.killpg(demo.pid, number)
    else:
        demo.send_signal(number)
    assert demo.wait(timeout=10) == 0
    assert "Traceback" not in demo.output
    assert number != signal.SIGINT or demo.output == before
    assert_nothing_is_left_of(demo)


def test_signal_in_the_middle_of_a_sequence_ends_it_too(start_demo):
    demo = start_demo()
    command = next(line for line in demo.printed_commands if "/preset" in line)
    with subprocess.Popen(["bash", "-c", command], env=surroundings(), stdout=subprocess.PIPE):
        demo.wait_for_line("led 1 on")
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=15) == 0
    assert "Traceback" not in demo.output
    assert_nothing_is_left_of(demo)


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.3])
def test_signal_while_it_starts_ends_it_too(delay):
    demo = Demo()
    try:
        demo.spawn()
        # From the broker's start on, signals are its own; before, there is nothing to leave.
        demo.wait_for(lambda: len(demo.processes()) > 1, "starting its broker")
        time.sleep(delay)
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(timeout=15) == 0
        assert "Traceback" not in demo.output
        assert_nothing_is_left_of(demo)
    finally:
        demo.close()


def test_it_goes_on_when_nobody_reads_its_output_any_more():
    demo = Demo()
    with subprocess.Popen(
        demo.command(),
        env=demo.environment(),
        cwd=demo.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith(LAST_WORD["zh"]):
                    break
            process.stdout.close()
            control = next((line for line in lines if "/api/control" in line), None)
            assert control is not None, (lines, process.stderr.read())
            for _ in range(3):
                assert json.loads(paste(control))["code"] == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()
            demo.close()


def test_killed_demo_takes_its_broker_along(start_demo):
    demo = start_demo()
    demo.send_signal(signal.SIGKILL)
    demo.wait()
    wait_until(lambda: not demo.processes(), 5, "the broker's end")
    assert_nothing_is_left_of(demo)


# Its front door: one port, both versions


@pytest.mark.parametrize("asked_in", ["5", "3.1.1"])
async def test_both_versions_ask_on_one_port(demo, asked_in: MqttVersion):
    async with Requester(demo.broker, version=asked_in) as requester:
        fields = {"device_uuid": "demo-board-2", "sensor": "水温"}
        assert (await requester.ask("sensor-data", fields)).code == 200
        assert (await requester.ask("sensor-data", fields, client_level="plugin-a")).code == 200


async def test_correlation_data_comes_back_byte_for_byte(demo):
    async with Requester(demo.broker) as requester:
        reply = await requester.ask("health", correlation=ALL_BYTES)
    assert reply.correlation == ALL_BYTES
    assert reply.content_type == "application/json"
    assert reply.user_properties["__stat"] == "200"


async def test_many_at_once_are_all_answered(demo):
    """More than the broker leaves unacknowledged, and fewer than MAX_IN_FLIGHT."""
    fields = {"device_uuid": "demo-board-1", "sensor": "温度"}
    async with (
        Requester(demo.broker) as in_5,
        Requester(demo.broker, version="3.1.1") as in_311,
    ):
        asked = [who.ask("sensor-data", fields) for who in (in_5, in_311) for _ in range(120)]
        assert {reply.code for reply in await asyncio.gather(*asked)} == {200}


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize(("sender", "receiver"), [("5", "3.1.1"), ("3.1.1", "5")])
async def test_messages_pass_between_versions(
    demo, sender: MqttVersion, receiver: MqttVersion, qos: int
):
    topic = f"test/{sender}/{qos}"
    async with (
        Requester(demo.broker, version=sender) as one,
        Requester(demo.broker, version=receiver) as other,
    ):
        await other.subscribe(topic, qos)
        properties = {"content_type": "x/y", "user_properties": {"a": "b"}} if sender == "5" else {}
        await one.publish(topic, ALL_BYTES, qos=qos, **properties)
        message = await other.next_message()
        assert (message.topic, message.payload) == (topic, ALL_BYTES)
        await other.unsubscribe(topic)


async def test_request_on_311_without_reply_topic_is_answered_on_the_default_one(demo):
    async with Requester(demo.broker, version="3.1.1") as requester:
        reply = await requester.ask("health", response_topic=ABSENT)
    assert reply.topic.startswith("plugin/reply/health/")


async def test_client_that_is_no_mqtt_client_harms_no_other(demo):
    for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\x10\x0c\x00\x06MQIsdp\x03\x02\x00<\x00\x00"):
        reader, writer = await asyncio.open_connection(*demo.broker)
        writer.write(nonsense)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
    async with Requester(demo.broker) as requester:
        assert (await requester.ask("health")).code == 200


# What the tests say often


def led(number: int, action: str) -> dict[str, Any]:
    return {"cmd": "led", "device_id": number, "action": action}


def switch(demo: Demo, number: int, action: str) -> None:
    fields = {"device_uuid": "demo-board-1", "port_type": "led", "port_id": number}
    command = demo.ask("/api/control", {**fields, "action": action})["command"]
    assert command == led(number, action)


def assert_nothing_is_left_of(demo: Demo) -> None:
    assert demo.processes() == []
    assert list(demo.temporary.iterdir()) == []


def listening_addresses(pid: int) -> Iterator[str]:
    """Where a process listens, as in /proc/net/tcp: hexadecimal, the least byte first."""
    sockets = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                yield local.split(":")[0]
