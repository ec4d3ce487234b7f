"""Where an MQTT reply goes and what it carries; and what is never answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest

from tests.contract.callers import json_bytes
from tests.contract.cases import REFUSALS, on_port, servo
from tests.contract.test_refusals import check_refusal
from tests.lab.platform import BOARD_A, BOARD_B, UNKNOWN_BOARD
from tests.lab.requester import ABSENT

pytestmark = pytest.mark.usefixtures("bridge")

READING = {"device_uuid": BOARD_A, "sensor": "温度"}
LIGHT = {"device_uuid": BOARD_A, **on_port("led", 1)}
MARK = {"device_uuid": BOARD_A, **on_port("servo", 1, "set", value=77)}

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def check_that_only_the_mark_arrives(requester, device):
    """Nothing was sent to the board so far: the next command, of ours, is its first."""
    assert (await requester.ask("control", MARK)).code == 200
    assert (await device.next_command()).json == servo(1, 77)
    assert len(device.commands) == 1


# ---- the three ways -----------------------------------------------------------------------------


async def test_response_topic_goes_before_reply_to(requester):
    first, second = requester.reply_topic(), requester.reply_topic() + "/second"
    await requester.subscribe(second)
    reply = await requester.ask("sensor-data", {**READING, "reply_to": second})
    assert (reply.topic, reply.code) == (first, 200)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_reply_to_goes_before_the_default(connect_requester, version):
    requester = await connect_requester(version=version)
    topic = requester.reply_topic() + "/in/the/payload"
    await requester.subscribe(topic)
    await requester.publish(
        "plugin/request/sensor-data", json_bytes({**READING, "reply_to": topic})
    )
    message = await requester.next_message()
    assert (message.topic, message.json["code"]) == (topic, 200)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("client", [None, "kim"])
@pytest.mark.parametrize("request_id", [None, "r-1"])
async def test_default_reply_topic_names_operation_client_and_request(
    connect_requester, version, client, request_id
):
    requester = await connect_requester(version=version)
    await requester.subscribe("plugin/reply/#")
    asked = "/".join(filter(None, ("plugin/request/sensor-data", client)))
    fields = READING if request_id is None else {**READING, "request_id": request_id}
    await requester.publish(asked, json_bytes(fields))
    message = await requester.next_message()
    expected = ("plugin/reply", client, "sensor-data", request_id)
    assert message.topic == "/".join(filter(None, expected))
    assert message.json["code"] == 200
    assert message.json.get("request_id") == request_id


@pytest.mark.parametrize("client", [None, "kim"])
async def test_unknown_operation_is_answered_on_its_default_topic(requester, client):
    reply = await requester.ask("no-such", {}, response_topic=ABSENT, client_level=client)
    check_refusal(reply.body, 404, "operation_not_found")
    assert reply.topic == "/".join(filter(None, ("plugin/reply", client, "no-such")))


async def test_malformed_request_is_answered_on_its_default_topic(requester):
    reply = await requester.ask_raw(
        "plugin/request/control", b"{", response_topic=ABSENT, listen=["plugin/reply/control"]
    )
    check_refusal(reply.body, 400, "malformed_request")


async def test_client_may_be_answered_below_its_own_level(requester):
    topic = requester.reply_topic(client_level="kim")
    reply = await requester.ask("sensor-data", READING, response_topic=topic, client_level="kim")
    assert (reply.topic, reply.code) == (topic, 200)


async def test_empty_client_level_counts_as_none(requester):
    reply = await requester.ask_raw("plugin/request/health/", b"{}")
    assert (reply.code, reply.topic) == (200, requester.reply_topic())


async def test_long_client_level_is_refused(requester):
    client = "k" * 129
    reply = await requester.ask("health", client_level=client, response_topic=ABSENT)
    check_refusal(reply.body, 403, "forbidden")
    assert reply.topic == f"plugin/reply/{client}/health"


async def test_client_level_named_like_an_operation_is_refused(requester, board):
    device = await board(BOARD_A)
    reply = await requester.ask(
        "control", LIGHT, client_level="preset", response_topic="plugin/reply/preset/x"
    )
    check_refusal(reply.body, 403, "forbidden")
    await check_that_only_the_mark_arrives(requester, device)


# ---- forbidden reply topics ---------------------------------------------------------------------

FORBIDDEN = {
    "empty": "",
    "the prefix alone": "plugin/reply",
    "nothing below the prefix": "plugin/reply/",
    "like the prefix": "plugin/replyx/me",
    "another prefix": "elsewhere/me",
    "a device's control topic": f"devices/{BOARD_B}/control",
    "a request topic": "plugin/request/control",
    "a status topic": "plugin/status/lab",
    "$SYS": "$SYS/broker/version",
    "$share": "$share/bridge/plugin/reply/me",
    "wildcard +": "plugin/reply/+",
    "wildcard #": "plugin/reply/#",
    "wildcard within a level": "plugin/reply/a+b",
    "NUL": "plugin/reply/a\0b",
    "control character": "plugin/reply/\x01",
    "newline": "plugin/reply/a\nb",
    "DEL": "plugin/reply/\x7f",
    "C1 control": "plugin/reply/\x85",
    "non-character": "plugin/reply/\uffff",
    "257 bytes": "plugin/reply/" + "x" * 244,
    "past 256 bytes in UTF-8": "plugin/reply/" + "字" * 82,
}


def forbidden(reply):
    check_refusal(reply.body, 403, "reply_topic_forbidden")
    assert reply.topic.startswith("plugin/reply/control")
    assert "plugin/reply/" in reply.detail
    return True


@pytest.mark.parametrize("topic", FORBIDDEN.values(), ids=FORBIDDEN)
@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_request_with_forbidden_reply_to_is_refused_and_not_executed(
    connect_requester, board, version, topic
):
    requester = await connect_requester(version=version)
    device = await board(BOARD_A)
    reply = await requester.ask_raw(
        "plugin/request/control",
        json_bytes({**LIGHT, "reply_to": topic}),
        response_topic=ABSENT,
        listen=["plugin/reply/control"],
    )
    assert forbidden(reply)
    await check_that_only_the_mark_arrives(requester, device)


@pytest.mark.parametrize("topic", [5, True, ["plugin/reply/me"], {"topic": "plugin/reply/me"}])
async def test_reply_to_that_is_no_text_is_refused(requester, topic):
    fields = {**LIGHT, "reply_to": topic}
    assert forbidden(await requester.ask("control", fields, response_topic=ABSENT))


# Of these the broker itself ends the requester's connection.
STOPPED_BY_BROKER = (
    "NUL", "wildcard +", "wildcard #", "wildcard within a level", "control character", "newline",
    "DEL", "C1 control", "non-character",
)  # fmt: skip
PASSED_ON = [name for name in FORBIDDEN if name not in STOPPED_BY_BROKER]


@pytest.mark.parametrize("name", PASSED_ON)
async def test_request_with_forbidden_response_topic_is_refused_and_not_executed(
    requester, board, name
):
    device = await board(BOARD_A)
    reply = await requester.ask_raw(
        "plugin/request/control",
        json_bytes(LIGHT),
        response_topic=FORBIDDEN[name],
        listen=["plugin/reply/control"],
    )
    assert forbidden(reply)
    await check_that_only_the_mark_arrives(requester, device)


@pytest.mark.parametrize(
    "topic",
    [*(FORBIDDEN[name] for name in STOPPED_BY_BROKER), b"plugin/reply/\xff", b"\xed\xa0\x80"],
    ids=[*STOPPED_BY_BROKER, "no UTF-8", "surrogate"],
)
async def test_bridge_still_answers_after_a_response_topic_that_no_broker_should_pass_on(
    requester, connect_requester, board, topic
):
    device = await board(BOARD_A)
    hostile = await connect_requester(reconnect=False)
    with contextlib.suppress(TimeoutError):
        await hostile.publish(
            "plugin/request/control", json_bytes(LIGHT), response_topic=topic, timeout=0.2
        )
    await check_that_only_the_mark_arrives(requester, device)


async def test_refusal_of_a_reply_topic_carries_correlation_and_request_id(requester):
    fields = {**LIGHT, "request_id": "r1"}
    reply = await requester.ask("control", fields, response_topic="elsewhere", correlation=b"\xff")
    assert forbidden(reply)
    assert (reply.topic, reply.request_id) == ("plugin/reply/control/r1", "r1")
    assert reply.correlation == b"\xff"


@pytest.mark.parametrize("topic", ["plugin/reply/me", "plugin/reply/kimo/1", "plugin/reply/kim"])
async def test_client_may_not_be_answered_elsewhere(requester, board, topic):
    device = await board(BOARD_A)
    reply = await requester.ask("control", LIGHT, client_level="kim", response_topic=topic)
    check_refusal(reply.body, 403, "reply_topic_forbidden")
    assert reply.topic == "plugin/reply/kim/control"
    await check_that_only_the_mark_arrives(requester, device)


# ---- what a reply carries -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "correlation",
    [bytes(range(256)), b"\x00", b"\xff\xfe", "编号".encode(), b"x" * 65535],
    ids=["every byte", "NUL", "no UTF-8", "Chinese", "longest"],
)
async def test_correlation_data_comes_back_byte_for_byte(requester, correlation):
    for fields in (READING, {}):
        reply = await requester.ask("sensor-data", fields, correlation=correlation)
        assert reply.correlation == correlation


async def test_reply_without_correlation_data_has_none(requester):
    reply = await requester.ask("sensor-data", READING, correlation=ABSENT)
    assert reply.correlation is None


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_reply_has_the_requests_qos_and_is_not_retained(connect_requester, version, qos):
    requester = await connect_requester(version=version)
    for fields in (READING, {}):
        reply = await requester.ask("sensor-data", fields, qos=qos)
        assert (reply.qos, reply.retain) == (qos, False)
    late = await connect_requester(version=version)
    await late.subscribe(requester.reply_topic())
    await late.subscribe("plugin/reply/#")
    assert (await late.ask("sensor-data", READING)).code == 200
    assert not any(message.retain for message in late.messages)


async def test_request_at_qos_2_is_answered(requester):
    assert (await requester.ask("sensor-data", READING, qos=2)).code == 200


async def test_reply_says_that_it_is_json_in_utf_8(requester):
    for fields in (READING, {}):
        reply = await requester.ask("sensor-data", fields)
        assert (reply.content_type, reply.payload_format) == ("application/json", 1)


async def test_reply_to_an_mqtt_3_requester_is_read_by_it(connect_requester):
    old = await connect_requester(version="3.1.1")
    reply = await old.ask("sensor-data", READING)
    assert reply.code == 200
    assert reply.user_properties == {}


@pytest.mark.parametrize("expiry", [1, 60])
async def test_reply_expires_with_its_request(requester, expiry):
    for fields in (READING, {}):
        reply = await requester.ask("sensor-data", fields, expiry=expiry)
        assert reply.expiry is not None
        assert max(1, expiry - 1) <= reply.expiry <= expiry


async def test_reply_to_a_request_without_expiry_has_none(requester):
    assert (await requester.ask("sensor-data", READING)).expiry is None


async def test_reply_expires_with_what_is_left_of_its_request(requester, board):
    """A sequence takes 0.4 s; the whole seconds that are left are rounded up."""
    await board(BOARD_A)
    fields = {"device_uuid": BOARD_A, "preset_key": "class_begin"}
    asked = time.monotonic()
    reply = await requester.ask("preset", fields, expiry=5)
    assert reply.expiry == 5 - int(reply.at - asked)


async def test_command_expires_with_its_request(requester, board):
    device = await board(BOARD_A)
    await requester.ask("control", LIGHT, expiry=5)
    assert (await device.next_command()).expiry in (4, 5)


async def test_answer_has_its_code_as_user_property_and_no_other(requester):
    reply = await requester.ask("sensor-data", READING)
    assert reply.user_property_pairs == (("__stat", "200"), ("__protVer", "1.0"))


# Whether the operation itself failed, or the request was at fault.
IN_OPERATION = {
    "device_not_found", "sensor_not_found", "preset_not_found", "invalid_control",
    "invalid_preset", "device_offline",
}  # fmt: skip


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda one: f"{one.operation}-{one.name}")
async def test_refusal_is_told_in_user_properties_too(requester, refusal):
    reply = await requester.ask(refusal.operation, refusal.fields)
    told = dict(reply.user_properties)
    assert told.pop("__stat") == str(refusal.code)
    assert told.pop("__protVer") == "1.0"
    assert told.pop("__stMsg") == reply.detail[:300]
    assert told.pop("__apErr", None) == ("true" if refusal.error in IN_OPERATION else None)
    assert told.pop("__propName", "").split(".")[0] == (refusal.at_fault or "")
    value = refusal.fields.get(refusal.at_fault)
    if refusal.code == 408:
        # As in Azure's protocol: what was left of the time, an ISO 8601 duration.
        assert told.pop("__propVal") == "PT0S"
    elif isinstance(value, str | int):
        assert told.pop("__propVal") == (value if isinstance(value, str) else json.dumps(value))
    assert set(told) <= {"__propVal"}


@pytest.mark.parametrize(
    ("options", "named", "value"),
    [
        ({"response_topic": "elsewhere"}, "Response Topic", "elsewhere"),
        ({"reply_to": "elsewhere", "response_topic": ABSENT}, "reply_to", "elsewhere"),
        ({"reply_to": 5, "response_topic": ABSENT}, "reply_to", "5"),
    ],
)
async def test_forbidden_reply_topic_is_named(requester, options, named, value):
    fields = dict(LIGHT)
    if "reply_to" in options:
        fields["reply_to"] = options.pop("reply_to")
    told = (await requester.ask("control", fields, **options)).user_properties
    assert (told["__propName"], told["__propVal"]) == (named, value)


async def test_id_of_another_request_is_named(requester, board):
    await board(BOARD_A)
    first = {**LIGHT, "request_id": "taken"}
    assert (await requester.ask("control", first)).code == 200
    reply = await requester.ask("control", {**first, "action": "off"})
    assert reply.error == "idempotency_conflict"
    told = reply.user_properties
    assert (told["__propName"], told["__propVal"]) == ("request_id", "taken")
    assert (await requester.ask("control", LIGHT, correlation=b"\xff")).code == 200
    reply = await requester.ask("control", {**LIGHT, "action": "off"}, correlation=b"\xff")
    assert reply.error == "idempotency_conflict"
    assert reply.user_properties["__propName"] == "Correlation Data"
    assert "__propVal" not in reply.user_properties


@pytest.mark.parametrize(
    ("fields", "named", "value"),
    [
        ({**LIGHT, "port_id": {"a": 1}}, "port_id", '{"a": 1}'),
        ({**LIGHT, "port_id": "x"}, "port_id", "x"),
        ({**LIGHT, "port_id": True}, "port_id", "true"),
    ],
)
async def test_value_at_fault_is_told_as_it_was_sent(requester, fields, named, value):
    told = (await requester.ask("control", fields)).user_properties
    assert (told["__propName"], told["__propVal"]) == (named, value)


async def test_trace_context_comes_back(requester):
    trace = {"traceparent": PARENT, "tracestate": "vendor=1,other=2"}
    for fields in (READING, {}):
        reply = await requester.ask("sensor-data", fields, user_properties={**trace, "mine": "x"})
        told = reply.user_properties
        assert {name: told.get(name) for name in trace} == trace
        assert "mine" not in told


# ---- never stale, never late --------------------------------------------------------------------


async def test_live_retained_request_is_dropped(requester, board):
    device = await board(BOARD_A)
    topic = "plugin/request/control"
    try:
        await requester.publish(topic, json_bytes(LIGHT), retain=True)
        await check_that_only_the_mark_arrives(requester, device)
    finally:
        await requester.publish(topic, b"", retain=True)


async def test_unknown_properties_and_odd_content_types(requester):
    """A JSON type, or none, is served; what can't be JSON is refused."""
    answered = {}
    for content_type in ("application/json", "application/json; charset=utf-8", "text/plain"):
        await requester.subscribe(requester.reply_topic())
        await requester.publish(
            "plugin/request/sensor-data",
            json_bytes(READING),
            response_topic=requester.reply_topic(),
            content_type=content_type,
        )
        answered[content_type] = (await requester.next_message()).json["code"]
    assert list(answered.values()) == [200, 200, 415]


# ---- health -------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"request_id":"r1"}'])
async def test_health_over_mqtt_is_data(requester, payload):
    reply = await requester.ask_raw("plugin/request/health", payload)
    assert reply.code == 200
    data = reply.data
    assert (data["status"], data["database"], data["mqtt"]) == ("healthy", True, True)
    assert set(data) == {
        "status", "database", "mqtt", "version", "uptime_seconds", "in_flight",
    }  # fmt: skip


# ---- many at once -------------------------------------------------------------------------------


async def test_requests_are_answered_together_each_to_its_own_correlation(requester):
    uuids = [BOARD_A, UNKNOWN_BOARD] * 100
    replies = await asyncio.gather(
        *(requester.ask("sensor-data", {"device_uuid": one, "sensor": "温度"}) for one in uuids)
    )
    assert [reply.code for reply in replies] == [200, 404] * 100
    assert requester.messages == []
