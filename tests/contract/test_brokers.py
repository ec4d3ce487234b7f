"""Brokers and bridges that differ: permissions, 3.1.1, shares, names, presence, stored messages."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.contract.callers import TRANSPORTS, json_bytes
from tests.contract.cases import CONTROLS, on_port, servo, switch
from tests.contract.test_refusals import check_refusal
from tests.lab.bridge import Bridge
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Endpoint
from tests.lab.platform import BOARD_A, BOARD_B, BOARD_E, SEQUENCE, UNKNOWN_BOARD
from tests.lab.requester import ABSENT

READING = {"device_uuid": BOARD_A, "sensor": "温度"}
LIGHT = {"device_uuid": BOARD_A, **on_port("led", 1)}


# ---- a broker that does not let us do everything ------------------------------------------------

# Boards may be told nothing; and a packet must not be larger than a list of operations is.
ACL = "topic readwrite plugin/#\ntopic readwrite answers/#\ntopic read devices/#\n"
EXTRA = "answers/#,devices/#,+/status/#,plugin/request/#"


@pytest.fixture(scope="module")
def strict_broker():
    with Mosquitto("max_packet_size 2500", acl=ACL) as server:
        yield server


@pytest.fixture(scope="module")
def strict_bridge(strict_broker, mariadb):
    with Bridge(strict_broker, mariadb, MQTT_REPLY_TOPICS=EXTRA) as process:
        yield process


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("operation", ["control", "ordinary preset", "sequence"])
async def test_command_that_the_broker_denies_is_an_error_and_no_success(
    connect_caller, strict_bridge, strict_broker, transport, operation
):
    call = await connect_caller(transport, of=strict_bridge, broker=strict_broker)
    if operation == "control":
        body = await call.ask("control", LIGHT)
    else:
        key = SEQUENCE if operation == "sequence" else "blink_led_1"
        body = await call.ask("preset", {"device_uuid": BOARD_A, "preset_key": key})
    check_refusal(body, 503, "mqtt_unavailable")
    assert "0x87" in body["detail"]


async def test_reply_that_the_broker_would_not_take_is_answered_413(
    connect_requester, strict_bridge, strict_broker
):
    requester = await connect_requester(strict_broker)
    check_refusal((await requester.ask("operations")).body, 413, "payload_too_large")
    assert (await requester.ask("sensor-data", READING)).code == 200


@pytest.mark.parametrize("topic", ["answers/me", "answers", "answers/deep/er"])
async def test_reply_topic_of_the_settings_may_be_used(
    connect_requester, strict_bridge, strict_broker, topic
):
    requester = await connect_requester(strict_broker)
    reply = await requester.ask("sensor-data", READING, response_topic=topic)
    assert (reply.topic, reply.code) == (topic, 200)


@pytest.mark.parametrize(
    "topic",
    [
        f"devices/{BOARD_B}/control",
        "devices/x",
        "plugin/request/control",
        "plugin/status/x",
        "answer/me",
        "other",
    ],
)
async def test_reply_topic_that_others_act_on_is_forbidden_whatever_the_settings(
    connect_requester, strict_bridge, strict_broker, topic
):
    requester = await connect_requester(strict_broker)
    reply = await requester.ask("sensor-data", READING, response_topic=topic)
    check_refusal(reply.body, 403, "reply_topic_forbidden")
    assert reply.topic == "plugin/reply/sensor-data"


# ---- the bridge on MQTT 3.1.1 -------------------------------------------------------------------


@pytest.fixture(scope="module")
def old_broker():
    with Mosquitto() as server:
        yield server


@pytest.fixture(scope="module")
def old_bridge(old_broker, mariadb):
    with Bridge(old_broker, mariadb, MQTT_PROTOCOL="3.1.1") as process:
        yield process


# Not "mqtt5": to us, a 3.1.1 subscriber, the broker passes on neither Response Topic nor
# Correlation Data. Such a requester must say `reply_to`, or listen on the default topic.
@pytest.fixture(params=["http", "mqtt3"])
async def old_call(request, connect_caller, old_bridge, old_broker):
    return await connect_caller(request.param, of=old_bridge, broker=old_broker)


@pytest.mark.parametrize("case", CONTROLS[:8], ids=lambda case: case.name)
async def test_bridge_on_3_1_1_sends_the_firmwares_command(old_call, old_broker, board, case):
    device = await board(case.device_uuid, old_broker)
    body = await old_call.ask("control", case.request)
    assert (body["code"], body["data"]["command"]) == (200, case.command)
    assert (await device.next_command()).json == case.command


async def test_bridge_on_3_1_1_cannot_know_that_nobody_listens(old_call):
    assert (await old_call.ask("control", LIGHT))["code"] == 200


async def test_bridge_on_3_1_1_answers_and_refuses(old_call):
    assert (await old_call.ask("sensor-data", READING))["data"]["value"] == 29.1
    body = await old_call.ask("sensor-data", {**READING, "device_uuid": UNKNOWN_BOARD})
    check_refusal(body, 404, "device_not_found")


async def test_bridge_on_3_1_1_answers_an_mqtt_5_requester_on_the_default_topic(
    connect_requester, old_bridge, old_broker
):
    requester = await connect_requester(old_broker)
    fields = {**READING, "request_id": "r1"}
    reply = await requester.ask("sensor-data", fields, response_topic=ABSENT, correlation=ABSENT)
    assert (reply.topic, reply.code) == ("plugin/reply/sensor-data/r1", 200)


async def test_bridge_on_3_1_1_tells_its_presence(connect_requester, old_bridge, old_broker):
    requester = await connect_requester(old_broker)
    await requester.subscribe(f"plugin/status/{old_bridge.instance}")
    message = await requester.next_message()
    assert (message.json["status"], message.retain) == ("online", True)


# ---- several bridges ----------------------------------------------------------------------------


async def test_two_bridges_in_one_share_execute_each_command_once(
    private_mosquitto, private_bridge, board, connect_requester
):
    broker = private_mosquitto()
    for _ in range(2):
        private_bridge(broker=broker)
    device, requester = await board(BOARD_A, broker), await connect_requester(broker)
    angles = list(range(40))
    replies = await asyncio.gather(
        *(
            requester.ask(
                "control", {"device_uuid": BOARD_A, **on_port("servo", 1, "set", value=angle)}
            )
            for angle in angles
        )
    )
    assert {reply.code for reply in replies} == {200}
    sent = await device.next_commands(40)
    assert sorted(one["angle"] for one in sent) == angles
    await requester.ask("control", {"device_uuid": BOARD_A, **on_port("servo", 1, "set", value=99)})
    assert (await device.next_command()).json == servo(1, 99)
    assert len(device.commands) == 41


async def test_bridge_comes_back_after_another_client_took_its_name(
    private_mosquitto, private_bridge, connect_requester
):
    broker = private_mosquitto()
    bridge = private_bridge(broker=broker)
    impostor = await connect_requester(broker, client_id=bridge.instance, reconnect=False)
    await impostor.offline()
    await asyncio.to_thread(bridge.wait_until_it_is, "ready")
    requester = await connect_requester(broker)
    assert (await requester.ask("sensor-data", READING)).code == 200


async def take_over(reader, writer):
    """The broker's side of a connection that another client of our name takes over.

    Played here, because Debian's Mosquitto 2.0.11 closes such a connection without a word.
    """
    await _packet(reader)  # CONNECT
    writer.write(b"\x20\x03\x00\x00\x00")
    # The session's marker, and the requests.
    for granted in (b"\x01", b"\x01\x01"):
        _, subscribe = await _packet(reader)
        writer.write(bytes((0x90, 3 + len(granted))) + subscribe[:2] + b"\x00" + granted)
    await _acknowledge_presence(reader, writer)
    writer.write(b"\xe0\x02\x8e\x00")
    await writer.drain()
    writer.close()


async def _acknowledge_presence(reader, writer):
    _, presence = await _packet(reader)
    topic_end = 2 + int.from_bytes(presence[:2], "big")
    writer.write(b"\x40\x02" + presence[topic_end : topic_end + 2])


async def _packet(reader):
    first, length, shift = (await reader.readexactly(1))[0], 0, 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return first, await reader.readexactly(length)
        shift += 7


async def test_session_taken_over_is_one_error_that_names_the_setting(private_bridge):
    connections = []

    async def accept(reader, writer):
        connections.append(writer)
        if len(connections) == 1:
            await take_over(reader, writer)

    async with await asyncio.start_server(accept, "127.0.0.1") as peer:
        broker = Endpoint(*peer.sockets[0].getsockname())
        bridge = await asyncio.to_thread(private_bridge, broker=broker, wait="live")
        line = await asyncio.to_thread(bridge.wait_for_line, "MQTT_INSTANCE")
        assert " ERROR " in line
        assert bridge.instance in line
        await asyncio.to_thread(bridge.kill)
        for connection in connections:
            connection.close()
    assert bridge.output.count(" ERROR ") == 1


# ---- presence -----------------------------------------------------------------------------------


async def presence_of(requester, bridge):
    message = await requester.next_message(topic=f"plugin/status/{bridge.instance}")
    assert message.retain
    return message.json


async def test_presence_is_online_then_offline_by_will_and_at_shutdown(
    private_bridge, private_mosquitto, connect_requester
):
    broker = private_mosquitto()
    bridge = private_bridge(broker=broker)
    requester = await connect_requester(broker)
    await requester.subscribe(f"plugin/status/{bridge.instance}", retain_as_published=True)
    online = await presence_of(requester, bridge)
    assert set(online) == {"status", "version", "since", "subscribed"}
    assert online["status"] == "online"
    # Who knows the share's name may take turns in it.
    assert "$share" not in str(online)
    await asyncio.to_thread(bridge.kill)
    assert (await presence_of(requester, bridge))["status"] == "offline"
    await asyncio.to_thread(bridge.start)
    assert (await presence_of(requester, bridge))["status"] == "online"
    assert await asyncio.to_thread(bridge.stop) == 0
    assert (await presence_of(requester, bridge))["status"] == "offline"


# ---- never stale --------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_stored_retained_request_is_never_executed(
    private_mosquitto, private_bridge, board, connect_requester, protocol
):
    broker = private_mosquitto()
    device, requester = await board(BOARD_E, broker), await connect_requester(broker)
    stale = {"device_uuid": BOARD_E, **on_port("led", 1)}
    for topic in ("plugin/request/control", "plugin/request/control/kim"):
        await requester.publish(topic, json_bytes(stale), retain=True)
    private_bridge(broker=broker, MQTT_PROTOCOL=protocol)
    fresh = {**stale, "action": "off", "reply_to": requester.reply_topic()}
    await requester.subscribe(requester.reply_topic())
    await requester.publish("plugin/request/control", json.dumps(fresh))
    assert (await requester.next_message(topic=requester.reply_topic())).json["code"] == 200
    assert (await device.next_command()).json == switch("led", 1, "off")
    assert len(device.commands) == 1
