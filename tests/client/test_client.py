"""The client for plugin authors, and `run.py call`, against the real bridge."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from bridge import errors
from bridge.apidocs import refusals  # noqa: F401  every class of error is loaded
from bridge.client import RETRIES, BridgeClient, CallError, NoReply, NotConnected, Refused, Unheard
from bridge.devices import errors as device_errors
from bridge.devices.models import ControlResult, PresetResult, Reading, SequenceResult
from bridge.link import packets as wire
from tests.lab.bridge import PROJECT, Bridge
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Broker, Connection, Endpoint, Message
from tests.lab.platform import (
    ALIAS,
    BOARD_A,
    BOARD_D,
    NAMES,
    ORDINARY_PRESET,
    SEQUENCE,
    TEXT_SENSOR,
    TEXT_VALUE,
    UNKNOWN_BOARD,
)
from tests.lab.scripted import Scripted
from tests.lab.servers import LOOPBACK, free_port

LED_ON = {"cmd": "led", "device_id": 1, "action": "on"}

Connect = Callable[..., Awaitable[BridgeClient]]


def url_of(broker: Broker) -> str:
    return f"mqtt://{broker.host}:{broker.port}"


@pytest.fixture
async def connect(mosquitto: Mosquitto, bridge: Bridge) -> AsyncIterator[Connect]:
    """Connects clients: to the shared broker, or to `broker=`."""
    async with AsyncExitStack() as connections:

        async def enter(broker: Broker = mosquitto, **options: Any) -> BridgeClient:
            return await connections.enter_async_context(BridgeClient(url_of(broker), **options))

        yield enter


@pytest.fixture
async def client(connect: Connect) -> BridgeClient:
    return await connect()


class Responder(Connection):
    """Answers requests as a test wants it to; `requests` holds all that came."""

    def __init__(self, broker: Broker, *answers: dict[str, Any] | bytes) -> None:
        super().__init__(broker)
        self.broker = broker
        self.requests: list[Message] = []
        self._scripted = list(answers)
        self._replying: list[asyncio.Task[int]] = []

    def received(self, message: Message) -> None:
        self.requests.append(message)
        if self._scripted:
            answer = self._scripted.pop(0)
            payload = answer if isinstance(answer, bytes) else json.dumps(answer)
            assert message.response_topic
            reply = self.publish(
                message.response_topic, payload, correlation=message.correlation, qos=1
            )
            self._replying.append(asyncio.create_task(reply))


@pytest.fixture
async def respond(
    private_mosquitto: Callable[..., Mosquitto],
) -> AsyncIterator[Callable[..., Awaitable[tuple[Responder, BridgeClient]]]]:
    """A responder with these answers, and a client beside it."""
    async with AsyncExitStack() as connections:

        async def start(
            *answers: dict[str, Any] | bytes, **options: Any
        ) -> tuple[Responder, BridgeClient]:
            broker = await asyncio.to_thread(private_mosquitto)
            responder = await connections.enter_async_context(Responder(broker, *answers))
            await responder.subscribe("plugin/request/#")
            asker = BridgeClient(url_of(broker), **options)
            return responder, await connections.enter_async_context(asker)

        yield start


# ---- typed replies ------------------------------------------------------------------------------


async def test_reading_is_typed(client):
    reading = await client.sensor_data(BOARD_A, "温度")
    assert isinstance(reading, Reading)
    assert (reading.value, reading.unit, reading.device_name) == (29.1, "°C", NAMES[BOARD_A])
    assert isinstance(reading.timestamp, datetime)


async def test_reading_of_text_stays_text(client):
    assert (await client.sensor_data(BOARD_D, TEXT_SENSOR)).value == TEXT_VALUE


@pytest.mark.parametrize("port", [{"port_type": "led", "port_id": 1}, {"port": ALIAS}])
async def test_control_reaches_the_board(client, board, port):
    listening = await board(BOARD_A)
    result = await client.control(BOARD_A, action="on", **port)
    assert isinstance(result, ControlResult)
    assert result.command == LED_ON
    assert (await listening.next_command()).json == LED_ON


async def test_presets_are_typed_by_what_they_are(client, board):
    listening = await board(BOARD_A)
    ordinary = await client.preset(BOARD_A, ORDINARY_PRESET, {"count": 5})
    sequence = await client.preset(BOARD_A, SEQUENCE)
    assert isinstance(ordinary, PresetResult)
    assert isinstance(sequence, SequenceResult)
    assert [step.status for step in sequence.executed_steps] == ["success"] * 4
    (blink, *_) = await listening.next_commands(5)
    assert blink["parameters"]["count"] == 5


async def test_device_health_and_operations_are_typed(client):
    device, health, operations = await asyncio.gather(
        client.device(BOARD_A), client.health(), client.operations()
    )
    assert ALIAS in [port.alias for port in device.ports]
    assert health.status == "healthy"
    assert "sensor-data" in [row.operation for row in operations]


async def test_batch_answers_each_item(client):
    batch = await client.batch(
        [
            {"operation": "sensor-data", "device_uuid": BOARD_A, "sensor": "温度"},
            {"operation": "device", "device_uuid": UNKNOWN_BOARD},
        ]
    )
    assert [result["code"] for result in batch.results] == [200, 404]


async def test_call_takes_any_operation_and_gives_its_data(client):
    data = await client.call("sensor-data", device_uuid=BOARD_A, sensor="humidity")
    assert data["value"] == 61


async def test_two_hundred_at_once_each_get_their_own_answer(client):
    asked = [f"sensor-{number}-é\x00🙂" for number in range(200)]

    async def detail(sensor: str) -> str:
        with pytest.raises(Refused) as refused:
            await client.sensor_data(BOARD_A, sensor)
        return refused.value.detail

    details = await asyncio.gather(*map(detail, asked))
    assert all(sensor in told for sensor, told in zip(asked, details, strict=True))


async def test_what_others_send_to_the_reply_topic_is_no_reply(client, requester):
    for payload in (b"", b"\xff\x00", b"[]", b"{}", b'{"code": 200, "data": null}'):
        await requester.publish(client.reply_topic, payload, correlation=b"\xff" * 16)
        await requester.publish(client.reply_topic, payload)
    assert (await client.sensor_data(BOARD_A, "温度")).value == 29.1


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "fields", "code", "error", "retry"),
    [
        ("device", {"device_uuid": UNKNOWN_BOARD}, 404, "device_not_found", "no"),
        ("device", {}, 422, "validation_error", "no"),
        ("explode", {}, 404, "operation_not_found", "no"),
        (
            "control",
            {"device_uuid": BOARD_D, "port": "前门", "action": "on"},
            409,
            "device_unreachable",
            "same id",
        ),
    ],
)
async def test_refusal_tells_code_error_and_what_to_do(
    client, operation, fields, code, error, retry
):
    with pytest.raises(Refused) as caught:
        await client.call(operation, request_id="r1", **fields)
    refused = caught.value
    assert (refused.code, refused.error, refused.retry) == (code, error, retry)
    assert refused.detail
    assert refused.request_id == "r1"


async def test_validation_error_lists_the_fields(client):
    with pytest.raises(Refused) as caught:
        await client.call("sensor-data", device_uuid=BOARD_A)
    assert [fault["loc"] for fault in caught.value.errors] == [["sensor"]]


def test_every_error_of_the_bridge_says_whether_it_may_be_retried():
    assert device_errors

    def names(kind: type[errors.BridgeError]) -> set[str]:
        return {kind.error}.union(*map(names, kind.__subclasses__()))

    assert set(RETRIES) == names(errors.BridgeError)


async def test_too_large_a_request_is_refused_before_it_leaves(
    private_mosquitto, private_bridge, connect
):
    broker = await asyncio.to_thread(private_mosquitto, "max_packet_size 4000")
    client = await connect(broker)
    with pytest.raises(Refused) as caught:
        await client.call("sensor-data", sensor="x" * 5000)
    assert caught.value.error == "payload_too_large"


@pytest.mark.parametrize("operation", ["", "a/b", "+", "#", "a\x00", "\ud800"])
async def test_operation_that_can_be_no_topic_level_is_an_error_of_the_caller(client, operation):
    with pytest.raises(ValueError, match="level of a topic"):
        await client.call(operation)
    assert await client.health()


@pytest.mark.parametrize(
    ("broker", "options"),
    [
        ("http://localhost", {}),
        ("localhost:1883", {}),
        ("mqtt://", {}),
        ("mqtt://user:secret@localhost:99999", {}),
        ("mqtt://user:密码＠secret@localhost", {}),
        ("mqtt://user:pa[secret]word@localhost", {}),
        ("mqtt://localhost", {"name": "a/b"}),
        ("mqtt://localhost", {"client_level": "#"}),
        ("mqtt://localhost", {"timeout": 0}),
        ("mqtt://localhost", {"timeout": "5"}),
        ("mqtt://localhost", {"timeout": True}),
        ("mqtt://localhost", {"name": 5}),
        ("mqtt://localhost", {"client_level": b"lamps"}),
        ("mqtt://localhost", {"protocol": 5}),
        (b"mqtt://user:secret@localhost", {}),
        (None, {}),
        ("mqtt://localhost", {"protocol": "3.1"}),
    ],
)
def test_unusable_argument_is_told_without_the_password(broker, options):
    with pytest.raises(ValueError, match=r".") as caught:
        BridgeClient(broker, **options)
    assert "secret" not in str(caught.value)


# ---- nobody there -------------------------------------------------------------------------------


async def test_request_that_nobody_hears_fails_at_once(private_mosquitto, connect):
    client = await connect(await asyncio.to_thread(private_mosquitto))
    started = time.monotonic()
    with pytest.raises(Unheard, match="nobody is subscribed"):
        await client.sensor_data(BOARD_A, "温度")
    assert time.monotonic() - started < 1


async def test_absent_broker_fails_the_start():
    with pytest.raises(NotConnected, match="check that it runs"):
        async with BridgeClient(url_of(Endpoint(LOOPBACK, free_port()))):
            pass


async def test_wrong_password_fails_the_start_and_is_not_told(private_mosquitto):
    broker = await asyncio.to_thread(
        private_mosquitto, anonymous=False, passwords={"plugin": "right"}
    )
    with pytest.raises(NotConnected, match="password") as caught:
        async with BridgeClient(f"mqtt://plugin:wr0ng@{broker.host}:{broker.port}"):
            pass
    assert "wr0ng" not in str(caught.value)


async def test_broker_gone_before_a_request_is_not_connected(private_mosquitto, connect):
    broker = await asyncio.to_thread(private_mosquitto)
    client = await connect(broker)
    await asyncio.to_thread(broker.kill)
    with pytest.raises(NotConnected, match="nothing was executed"):
        await client.call("control", timeout=0.5, device_uuid=BOARD_A)


async def test_request_that_never_left_is_told_as_not_executed():
    """The broker takes one message at a time, and acknowledges none."""
    async with Scripted(b"\x20\x06\x00\x00\x03\x21\x00\x01") as broker:
        entering = asyncio.create_task(BridgeClient(url_of(broker)).__aenter__())
        _, subscribe = await broker.packet(8)
        broker.send(b"\x90\x04" + subscribe[:2] + b"\x00\x01")
        client = await asyncio.wait_for(entering, 5)
        first, second = (
            asyncio.create_task(client.call("control", timeout=1, device_uuid=BOARD_A))
            for _ in range(2)
        )
        await broker.packet(wire.PUBLISH)
        broker.send(b"\xe0\x00")
        with pytest.raises(NoReply):
            await first
        with pytest.raises(NotConnected, match="nothing was executed"):
            await second
        await client.__aexit__(None, None, None)


async def test_broker_restarted_in_the_midst_costs_no_answer(private_bridge, connect):
    bridge = await asyncio.to_thread(private_bridge)
    client = await connect(bridge.broker)
    restarted = asyncio.Event()

    async def keep_asking() -> int:
        asked = 0
        while not restarted.is_set():
            await client.sensor_data(BOARD_A, "温度", timeout=20)
            asked += 1
        return asked

    async with asyncio.timeout(40), asyncio.TaskGroup() as group:
        asking = [group.create_task(keep_asking()) for _ in range(20)]
        await client.health()
        await asyncio.to_thread(bridge.broker.restart)
        await client.health(timeout=20)
        restarted.set()
    assert all(task.result() for task in asking)


# ---- in time, and once --------------------------------------------------------------------------


async def test_timeout_is_the_requests_deadline_and_no_reply_says_so(respond):
    responder, client = await respond()
    started = time.monotonic()
    with pytest.raises(NoReply, match="may have been executed") as caught:
        await client.call("control", timeout=1, request_id="once", device_uuid=BOARD_A)
    assert 0.9 < time.monotonic() - started < 2
    assert caught.value.request_id == "once"
    (request,) = responder.requests
    assert request.expiry == 1
    assert request.response_topic == client.reply_topic
    assert request.content_type == "application/json"


@pytest.mark.parametrize(
    ("options", "operation", "expiry"),
    [
        ({}, "sensor-data", 10),
        ({}, "preset", 120),
        ({"timeout": 7}, "preset", 7),
        ({"timeout": 1.9}, "control", 1),
    ],
)
async def test_expiry_follows_the_timeout(respond, options, operation, expiry):
    responder, client = await respond({"code": 200, "data": None}, **options)
    await client.call(operation)
    assert responder.requests[0].expiry == expiry
    assert "expires_at" not in responder.requests[0].json


async def test_deadline_of_less_than_a_second_is_told_in_the_payload_too(respond):
    responder, client = await respond(*[{"code": 200, "data": None}] * 3)
    before = time.time()
    await client.call("control", timeout=0.5)
    await client.call("control", timeout=0.5, expires_at=None)
    await client.call("control", timeout=0.5, expires_at=1.5)
    *ours, callers = responder.requests
    for request in ours:
        assert request.expiry == 1
        assert before + 0.4 < request.json["expires_at"] <= time.time() + 0.5
    assert callers.json["expires_at"] == 1.5


async def test_bridge_executes_nothing_after_a_deadline_of_less_than_a_second(
    private_bridge, connect, board
):
    bridge = await asyncio.to_thread(private_bridge)
    listening = await board(BOARD_A, broker=bridge.broker)
    client = await connect(bridge.broker)
    bridge.pause()
    with pytest.raises(NoReply):
        await client.control(BOARD_A, port_type="led", port_id=1, action="on", timeout=0.3)
    bridge.resume()
    await client.control(BOARD_A, port_type="led", port_id=2, action="on")
    assert (await listening.next_command()).json["device_id"] == 2


NO_TIMEOUTS = [
    *(0, -1, float("nan"), float("inf"), float("-inf"), 86401, 1e300, 10**400),
    *("5", "", b"5", True, False, [5], 5j, Decimal(5), timedelta(seconds=5)),
]


@pytest.mark.parametrize("timeout", NO_TIMEOUTS)
async def test_timeout_that_is_none_sends_nothing(respond, timeout):
    responder, client = await respond({"code": 200, "data": None})
    with pytest.raises(ValueError, match=r"timeout=.* must be a number of seconds"):
        await client.call("control", timeout=timeout)
    await client.call("health")
    assert [request.topic for request in responder.requests] == ["plugin/request/health"]


@pytest.mark.parametrize("operation", ["", "a/b", "#", "$x", None, 5, b"control", ["control"]])
async def test_operation_that_is_none_sends_nothing(respond, operation):
    responder, client = await respond({"code": 200, "data": None})
    with pytest.raises(ValueError, match="can't be a level of a topic"):
        await client.call(operation)
    await client.call("health")
    assert [request.topic for request in responder.requests] == ["plugin/request/health"]


@pytest.mark.parametrize("request_id", ["a b", "x" * 129, "é", "a\n", 5])
async def test_request_id_that_is_none_sends_nothing(respond, request_id):
    responder, client = await respond({"code": 200, "data": None})
    with pytest.raises(ValueError, match="request_id="):
        await client.call("control", request_id=request_id)
    await client.call("health")
    assert [request.topic for request in responder.requests] == ["plugin/request/health"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["frequency", "expires_at", "parameters"])
async def test_number_that_json_has_not_sends_nothing(respond, number, field):
    """orjson writes null, which the bridge takes for a field that was left out."""
    responder, client = await respond({"code": 200, "data": None})
    value = {"of": (1, [number])} if field == "parameters" else number
    with pytest.raises(ValueError, match="JSON"):
        await client.call("control", **{field: value})
    await client.call("health")
    assert [request.topic for request in responder.requests] == ["plugin/request/health"]


@dataclass
class Pulse:
    width: float


class Level(Enum):
    UNKNOWN = float("nan")


@pytest.mark.parametrize("value", [Pulse(float("nan")), Level.UNKNOWN, {"of": [Pulse(1.5)]}])
async def test_field_that_is_no_json_sends_nothing(respond, value):
    """orjson writes dataclasses and enums too, and null for the NaN in them."""
    responder, client = await respond({"code": 200, "data": None})
    with pytest.raises(TypeError, match="JSON"):
        await client.call("control", value=value)
    await client.call("health")
    assert [request.topic for request in responder.requests] == ["plugin/request/health"]


@pytest.mark.parametrize("payload", [b"", b"\xff", b"on", b"[]", b'{"code":"200"}', b"{}"])
async def test_reply_that_no_bridge_sends_fails_the_call_at_once(respond, payload):
    _, client = await respond(payload)
    with pytest.raises(CallError, match="no bridge sent it") as caught:
        await asyncio.wait_for(client.call("control", request_id="r1"), 5)
    assert caught.value.request_id == "r1"


@pytest.mark.parametrize(
    "error", [error for error, retry in RETRIES.items() if retry == "automatic"]
)
async def test_passing_trouble_is_retried_under_the_same_id(respond, error):
    trouble = {"code": 503, "error": error, "detail": "…"}
    responder, client = await respond(trouble, trouble, {"code": 200, "data": "at last"})
    assert await client.call("control", device_uuid=BOARD_A) == "at last"
    assert len(responder.requests) == 3
    assert len({request.json["request_id"] for request in responder.requests}) == 1
    assert len({request.response_topic for request in responder.requests}) == 1


async def test_passing_trouble_that_outlasts_the_timeout_is_told(respond):
    _, client = await respond(*[{"code": 429, "error": "busy"}] * 50)
    with pytest.raises(Refused) as caught:
        await client.call("control", timeout=1)
    assert caught.value.error == "busy"


@pytest.mark.parametrize(
    "error", [error for error, retry in RETRIES.items() if retry != "automatic"]
)
async def test_other_errors_are_told_and_never_retried_silently(respond, error):
    responder, client = await respond({"code": 500, "error": error}, {"code": 200})
    with pytest.raises(Refused):
        await client.call("control")
    assert len(responder.requests) == 1


async def test_reply_of_another_shape_is_told(respond):
    _, client = await respond({"code": 200, "data": {"value": []}})
    with pytest.raises(CallError, match="no Reading"):
        await client.sensor_data(BOARD_A, "温度")


async def test_crowd_on_a_small_bridge_is_all_served(private_bridge, connect):
    bridge = await asyncio.to_thread(private_bridge, MAX_IN_FLIGHT="2")
    client = await connect(bridge.broker)
    readings = await asyncio.gather(
        *(client.sensor_data(BOARD_A, "温度", timeout=20) for _ in range(60))
    )
    assert {reading.value for reading in readings} == {29.1}


async def test_same_id_executes_once(client, board):
    listening = await board(BOARD_A)
    results = await asyncio.gather(
        *(
            client.control(BOARD_A, port_type="led", port_id=1, action="on", request_id="twice")
            for _ in range(5)
        )
    )
    await client.control(BOARD_A, port_type="led", port_id=2, action="on")
    assert all(result == results[0] for result in results)
    assert [command["device_id"] for command in await listening.next_commands(2)] == [1, 2]


async def test_same_id_after_no_reply_executes_once(private_bridge, connect, board):
    bridge = await asyncio.to_thread(private_bridge)
    listening = await board(BOARD_A, broker=bridge.broker)
    client = await connect(bridge.broker)

    async def switch_on(timeout: float) -> ControlResult:
        return await client.control(
            BOARD_A, port_type="led", port_id=1, action="on", request_id="r1", timeout=timeout
        )

    bridge.pause()
    with pytest.raises(NoReply):
        await switch_on(timeout=1)
    bridge.resume()
    assert (await switch_on(timeout=10)).command == LED_ON
    await client.control(BOARD_A, port_type="led", port_id=2, action="on")
    assert [command["device_id"] for command in await listening.next_commands(2)] == [1, 2]


async def test_same_id_of_the_same_name_executes_once_over_a_restart(bridge, mosquitto, board):
    listening = await board(BOARD_A)
    for port in (1, 1, 2):
        async with BridgeClient(url_of(mosquitto), name="lamp-plugin") as client:
            await client.control(
                BOARD_A, port_type="led", port_id=port, action="on", request_id=f"restart-{port}"
            )
    assert [command["device_id"] for command in await listening.next_commands(2)] == [1, 2]


async def test_leaving_ends_calls_that_still_wait(respond):
    responder, client = await respond()
    waiting = asyncio.create_task(client.call("control", timeout=60))
    while not responder.requests:
        await asyncio.sleep(0.01)
    await client.__aexit__(None, None, None)
    with pytest.raises(NoReply):
        await asyncio.wait_for(waiting, 2)


# ---- who asks -----------------------------------------------------------------------------------

PINNED = """
user bridge
topic readwrite #
user lamps
topic write plugin/request/health/lamps
topic write plugin/request/sensor-data/lamps
pattern read plugin/reply/%u/#
"""


@pytest.fixture
async def pinned(private_mosquitto, private_bridge) -> Mosquitto:
    """A broker whose ACL lets a plugin ask and hear under its own name alone; a bridge on it."""
    broker = await asyncio.to_thread(
        private_mosquitto,
        anonymous=False,
        passwords={"bridge": "b", "lamps": "l@mp/s"},
        acl=PINNED,
    )
    await asyncio.to_thread(
        private_bridge, broker=broker, MQTT_USERNAME="bridge", MQTT_PASSWORD="b"
    )
    return broker


async def test_client_level_is_all_a_pinning_acl_needs(pinned):
    url = f"mqtt://lamps:l%40mp%2Fs@{pinned.host}:{pinned.port}"
    async with BridgeClient(url, client_level="lamps") as client:
        assert (await client.sensor_data(BOARD_A, "温度")).value == 29.1


async def test_broker_that_denies_the_request_is_told_at_once(pinned):
    url = f"mqtt://lamps:l%40mp%2Fs@{pinned.host}:{pinned.port}"
    async with BridgeClient(url, client_level="others") as client:
        with pytest.raises(Unheard, match="may this user publish"):
            await client.health()


async def test_tls_verifies_the_broker(private_mosquitto, private_bridge, certificates):
    broker = await asyncio.to_thread(private_mosquitto, certificates=certificates)
    await asyncio.to_thread(private_bridge, broker=broker)
    url = f"mqtts://{broker.host}:{broker.port}"
    async with BridgeClient(url, tls=certificates.client_context()) as client:
        assert (await client.health()).mqtt
    with pytest.raises(NotConnected, match="certificate"):
        async with BridgeClient(url):
            pass


# ---- what it needs ------------------------------------------------------------------------------

WITHOUT_SERVER_PACKAGES = """
import sys
for package in ("asyncmy", "aiohttp", "cryptography", "prometheus_client", "aiosqlite", "iotcore"):
    sys.modules[package] = None  # an import of it raises ImportError
"""


def test_client_imports_no_server_package():
    program = f"""{WITHOUT_SERVER_PACKAGES}
sys.modules["dotenv"] = sys.modules["mcp"] = None
from bridge.client import BridgeClient
from bridge.client.sync import BridgeClient
"""
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True, timeout=30)


# ---- run.py call --------------------------------------------------------------------------------

WITHOUT_SERVER = f"""{WITHOUT_SERVER_PACKAGES}
sys.path.insert(0, {str(PROJECT)!r})
from bridge.cli import (main)
sys.exit(main(["call", *sys.argv[1:]]))
"""


class Called:
    """How `run.py call` ended, and what it printed."""

    def __init__(self, status: int, output: bytes, complaint: bytes) -> None:
        self.status = status
        self.output = output
        self.complaint = complaint.decode()

    @property
    def body(self) -> dict[str, Any]:
        body = json.loads(self.output)
        assert isinstance(body, dict)
        return body


@pytest.fixture
def call(mosquitto: Mosquitto, tmp_path: Path) -> Callable[..., Awaitable[Called]]:
    """Runs `run.py call`, without the packages that only the bridge needs."""

    async def run(*arguments: str, broker: Broker = mosquitto, **settings: str) -> Called:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WITHOUT_SERVER, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env={"MQTT_BROKER": broker.host, "MQTT_PORT": str(broker.port), **settings},
        )
        try:
            output, complaint = await asyncio.wait_for(process.communicate(), 30)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        assert process.returncode is not None
        return Called(process.returncode, output, complaint)

    return run


async def test_call_prints_the_reply_and_succeeds(bridge, call):
    called = await call("sensor-data", f"device_uuid={BOARD_A}", "sensor=温度", LC_ALL="C")
    assert called.status == 0, called.complaint
    assert called.body["data"]["value"] == 29.1
    assert "成功".encode() in called.output


async def test_call_prints_a_refusal_and_fails(bridge, call):
    called = await call("device", f"device_uuid={UNKNOWN_BOARD}", "--id", "r1")
    assert called.status == 1
    assert (called.body["code"], called.body["request_id"]) == (404, "r1")


async def test_call_sends_json_where_it_is_json_and_text_elsewhere(respond, call):
    responder, _ = await respond({"code": 200, "data": None})
    fields = ["n=1", "f=0.5", "yes=true", "no=null", 'o={"a":[1]}', 't="1"', "w=客厅 =灯", "e="]
    called = await call("control", *fields, "--id", "r1", "--timeout", "3", broker=responder.broker)
    assert called.status == 0, called.complaint
    (request,) = responder.requests
    assert request.expiry == 3
    assert request.json == {
        "n": 1,
        "f": 0.5,
        "yes": True,
        "no": None,
        "o": {"a": [1]},
        "t": "1",
        "w": "客厅 =灯",
        "e": "",
        "request_id": "r1",
        "reply_to": "plugin/reply/call-r1",
    }


async def test_call_with_the_same_id_executes_once(bridge, call, board):
    listening = await board(BOARD_A)
    fields = [f"device_uuid={BOARD_A}", "port_type=led", "port_id=1", "action=on"]
    first, second = [await call("control", *fields, "--id", "same") for _ in range(2)]
    assert first.status == second.status == 0
    assert first.body == second.body
    await listening.next_command()
    await call("control", *fields[:2], "port_id=2", "action=on")
    assert (await listening.next_command()).json["device_id"] == 2


async def test_call_takes_prefix_user_and_client_level(pinned, call):
    arguments = ["health", "--client-level", "lamps"]
    called = await call(*arguments, broker=pinned, MQTT_USERNAME="lamps", MQTT_PASSWORD="l@mp/s")
    assert called.status == 0, called.complaint


@pytest.mark.parametrize(
    ("arguments", "settings", "complaint"),
    [
        (["health"], {"MQTT_TOPIC_PREFIX": "nobody"}, "nobody is subscribed"),
        (["health", "--timeout", "1"], {"MQTT_PORT": str(free_port())}, "not connected"),
        (["a/b"], {}, "level of a topic"),
        (["health", "nonsense"], {"LANGUAGE": "en"}, "is not name=value"),
        *(
            (["health", f"--timeout={wrong}"], {"LANGUAGE": "en"}, "must be a number of seconds")
            for wrong in ("0", "nan", "True")
        ),
        (["health"], {"MQTT_PORT": "many"}, "MQTT_PORT"),
    ],
)
async def test_call_without_a_reply_says_why_on_one_line(call, arguments, settings, complaint):
    called = await call(*arguments, **settings)
    assert called.status == 2
    assert called.output == b""
    assert complaint in called.complaint.splitlines()[-1]
    assert "Traceback" not in called.complaint


async def test_call_tells_that_no_reply_came_in_time(respond, call):
    responder, _ = await respond()
    called = await call("control", "--timeout", "1", "--id", "r9", broker=responder.broker)
    assert called.status == 2
    assert len(called.complaint.splitlines()) == 1
    assert "r9" in called.complaint


async def test_call_speaks_the_version_of_the_settings(bridge, call):
    fields = [f"device_uuid={BOARD_A}", "sensor=温度"]
    called = await call("sensor-data", *fields, MQTT_PROTOCOL="3.1.1")
    assert called.status == 0, called.complaint
    assert called.body["data"]["value"] == 29.1
