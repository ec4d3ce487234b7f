"""The table of codes: what is refused, how it is told, and that it is not executed."""

from __future__ import annotations

import pytest

from tests.contract.callers import MQTT, ROUTES, TRANSPORTS
from tests.contract.cases import (
    CONTROLS,
    MALFORMED_PAYLOADS,
    REFUSALS,
    Refusal,
    on_port,
    servo,
)
from tests.lab.platform import BOARD_A, BOARD_E


def over_their_transports():
    for refusal in REFUSALS:
        get_only = ROUTES.get(refusal.operation, ("POST", ""))[0] == "GET"
        for transport in MQTT if refusal.json_only and get_only else TRANSPORTS:
            yield pytest.param(
                transport, refusal, id=f"{transport}-{refusal.operation}-{refusal.name}"
            )


def check_refusal(body, code, error):
    """The envelope of a refusal: exactly the contract's members."""
    assert (body["code"], body["error"]) == (code, error), body
    extra = {"errors"} if code == 422 else set()
    assert set(body) - {"request_id"} == {"code", "msg", "data", "detail", "error"} | extra
    assert (body["msg"], body["data"]) == ("失败", None)
    assert len(body["detail"]) > 5


def check_faults(refusal: Refusal, body):
    assert all(set(fault) == {"loc", "msg", "type"} for fault in body["errors"])
    assert refusal.at_fault in {fault["loc"][0] for fault in body["errors"]}


@pytest.mark.parametrize(("transport", "refusal"), list(over_their_transports()))
async def test_refusal_is_told_and_explained(connect_caller, transport, refusal):
    caller = await connect_caller(transport)
    body = await caller.ask(refusal.operation, refusal.fields)
    check_refusal(body, refusal.code, refusal.error)
    for word in refusal.mentions:
        assert word in body["detail"]
    if refusal.code == 422:
        check_faults(refusal, body)


REFUSED_COMMANDS = [
    refusal
    for refusal in REFUSALS
    if refusal.operation in ("control", "preset") and refusal.fields.get("device_uuid") == BOARD_A
]


async def test_refused_command_is_never_sent(call, board):
    device = await board(BOARD_A)
    for refusal in REFUSED_COMMANDS:
        await call.ask(refusal.operation, refusal.fields)
    await call.ask("control", {"device_uuid": BOARD_A, **on_port("servo", 1, "set", value=77)})
    assert (await device.next_command()).json == servo(1, 77)
    assert len(device.commands) == 1


@pytest.mark.parametrize("payload", MALFORMED_PAYLOADS.values(), ids=MALFORMED_PAYLOADS)
async def test_malformed_payload_is_answered_400(call, payload):
    check_refusal(await call.send("control", payload), 400, "malformed_request")


async def test_every_field_at_fault_is_listed(call):
    body = await call.ask("control", {"device_uuid": "", "port_id": "one", "action": 5})
    assert {fault["loc"][0] for fault in body["errors"]} == {"device_uuid", "port_id", "action"}


async def test_payload_over_64_kib_is_answered_413(call, board):
    await board(BOARD_A)
    whole = (
        b'{"device_uuid":"%s","port_type":"led","port_id":1,"action":"on","x":"' % BOARD_A.encode()
    )
    exact = whole + b"x" * (65536 - len(whole) - 2) + b'"}'
    check_refusal(await call.send("control", exact + b" "), 413, "payload_too_large")
    assert (await call.send("control", exact))["code"] == 200


async def test_command_that_reaches_nobody_is_answered_409(call):
    """No board is connected: whatever the command, nobody is subscribed to its topic."""
    body = await call.ask("control", CONTROLS[0].request)
    check_refusal(body, 409, "device_unreachable")
    body = await call.ask("preset", {"device_uuid": BOARD_A, "preset_key": "blink_led_1"})
    check_refusal(body, 409, "device_unreachable")
    body = await call.ask("preset", {"device_uuid": BOARD_A, "preset_key": "class_begin"})
    check_refusal(body, 409, "device_unreachable")


async def test_port_name_of_two_ports_is_answered_400_with_both(call, platform):
    platform.update_device(
        BOARD_A, device_control_config={"led_1": {"alias": "灯"}, "relay_2": {"alias": "灯"}}
    )
    body = await call.ask("control", {"device_uuid": BOARD_A, "port": "灯", "action": "on"})
    check_refusal(body, 400, "invalid_control")
    assert "led 1" in body["detail"]
    assert "relay 2" in body["detail"]


async def test_preset_name_of_two_presets_is_answered_400_with_both(call, platform):
    one = {"name": "闪", "device_type": "led", "device_id": 1, "preset_type": "blink"}
    platform.set_presets(BOARD_E, [{**one, "preset_key": "k1"}, {**one, "preset_key": "k2"}])
    body = await call.ask("preset", {"device_uuid": BOARD_E, "preset_key": "闪"})
    check_refusal(body, 400, "invalid_preset")
    assert "k1" in body["detail"]
    assert "k2" in body["detail"]
