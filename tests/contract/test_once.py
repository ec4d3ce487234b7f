"""At most once, in order per device, and one sequence at a time."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest

from tests.contract.cases import on_port, servo, switch
from tests.contract.test_refusals import check_refusal
from tests.lab.platform import BOARD_A, BOARD_B, BOARD_E, SEQUENCE

LIGHT = {"device_uuid": BOARD_A, **on_port("led", 1)}


def angle(value: int):
    return {"device_uuid": BOARD_A, **on_port("servo", 1, "set", value=value)}


def fresh() -> str:
    return uuid.uuid4().hex


async def by_body(call, operation, fields, request_id):
    return await call.ask(operation, {**fields, "request_id": request_id})


async def beside(call, operation, fields, request_id):
    return await call.ask_with_id(operation, fields, request_id)


@pytest.fixture(params=[by_body, beside], ids=["request_id", "beside the fields"])
def ask_once(request, call):
    """Asks under an id: `request_id`, or `Idempotency-Key` / Correlation Data."""

    async def ask(operation, fields, request_id):
        return await request.param(call, operation, fields, request_id)

    return ask


async def only_then(device, call, count):
    """The board has been sent `count` commands, and then ours."""
    assert (await call.ask("control", angle(77)))["code"] == 200
    await device.next_commands(count + 1)
    assert device.commands[-1].json == servo(1, 77)
    assert len(device.commands) == count + 1


async def test_duplicate_gets_the_same_answer_and_is_not_executed(ask_once, call, board):
    device, key = await board(BOARD_A), fresh()
    first = await ask_once("control", LIGHT, key)
    assert first["code"] == 200
    assert [await ask_once("control", LIGHT, key) for _ in range(3)] == [first] * 3
    await only_then(device, call, 1)


async def test_duplicate_is_known_however_its_fields_are_spelt(ask_once, call, board):
    device, key = await board(BOARD_A), fresh()
    first = await ask_once("control", LIGHT, key)
    again = {**LIGHT, "port_id": "1", "unknown": 1, "expires_at": 4e9, "value": None}
    assert await ask_once("control", again, key) == first
    await only_then(device, call, 1)


async def test_duplicate_that_comes_too_late_gets_the_same_answer(ask_once, call, board):
    """It begins nothing; and that the first was not executed would be a lie."""
    device, key = await board(BOARD_A), fresh()
    first = await ask_once("control", LIGHT, key)
    assert first["code"] == 200
    too_late = {**LIGHT, "expires_at": time.time() - 1}
    assert await ask_once("control", too_late, key) == first
    check_refusal(await ask_once("control", too_late, fresh()), 408, "expired")
    await only_then(device, call, 1)


async def test_other_request_under_the_same_id_is_refused(ask_once, call, board):
    device, key = await board(BOARD_A), fresh()
    assert (await ask_once("control", LIGHT, key))["code"] == 200
    for other in ({**LIGHT, "action": "off"}, {**LIGHT, "device_uuid": BOARD_B}):
        check_refusal(await ask_once("control", other, key), 409, "idempotency_conflict")
    preset = {"device_uuid": BOARD_A, "preset_key": SEQUENCE}
    check_refusal(await ask_once("preset", preset, key), 409, "idempotency_conflict")
    await only_then(device, call, 1)


async def test_duplicate_that_comes_meanwhile_waits_for_the_first(ask_once, call, board):
    device, key = await board(BOARD_A), fresh()
    preset = {"device_uuid": BOARD_A, "preset_key": SEQUENCE}
    first, *others = await asyncio.gather(*(ask_once("preset", preset, key) for _ in range(4)))
    assert first["data"]["success"] is True
    assert others == [first] * 3
    await only_then(device, call, 4)


async def test_refusal_before_anything_was_sent_is_not_kept(ask_once, call, platform, board):
    key, blink = fresh(), {"device_uuid": BOARD_E, "preset_key": "k"}
    check_refusal(await ask_once("preset", blink, key), 404, "preset_not_found")
    platform.set_presets(BOARD_E, [{"preset_key": "k", "name": "k", "command": switch("led", 1)}])
    await board(BOARD_E)
    assert (await ask_once("preset", blink, key))["code"] == 200


async def test_reads_are_always_read_afresh(ask_once, platform):
    key, asked = fresh(), {"device_uuid": BOARD_B, "sensor": "温度"}
    for value in ("1.5", "2.5"):
        platform.report(BOARD_B, "temperature", value, sensor_type="DS18B20")
        assert (await ask_once("sensor-data", asked, key))["data"]["raw_value"] == value


async def test_without_an_id_each_request_is_executed(connect_caller, board):
    device, call = await board(BOARD_A), await connect_caller("http")
    for _ in range(3):
        assert (await call.ask("control", LIGHT))["code"] == 200
    await only_then(device, call, 3)


async def test_requesters_do_not_share_their_ids(connect_caller, board):
    device, key = await board(BOARD_A), fresh()
    callers = [await connect_caller(transport) for transport in ("http", "mqtt5", "mqtt3")]
    for call in callers:
        assert (await by_body(call, "control", LIGHT, key))["code"] == 200
    await only_then(device, callers[0], 3)


async def test_request_id_goes_before_correlation_data(requester, bridge, board):
    device, key = await board(BOARD_A), fresh()
    fields = {**LIGHT, "request_id": key}
    bodies = [
        (await requester.ask("control", fields, correlation=correlation)).body
        for correlation in (b"one", b"two")
    ]
    assert bodies[0] == bodies[1]
    assert len(await device.next_commands(1)) == len(device.commands) == 1


async def test_client_level_is_the_requester_whatever_its_reply_topic(requester, bridge, board):
    device, key = await board(BOARD_A), fresh()
    fields = {**LIGHT, "request_id": key}
    for topic in ("plugin/reply/kim/1", "plugin/reply/kim/2"):
        reply = await requester.ask(
            "control", fields, client_level="kim", response_topic=topic, correlation=b"c"
        )
        assert reply.code == 200
    await device.next_command()
    assert len(device.commands) == 1


async def test_retried_batch_repeats_no_command(ask_once, call, board):
    device, key = await board(BOARD_A), fresh()
    items = [{"operation": "control", **angle(n)} for n in (1, 2)]
    first = await ask_once("batch", {"requests": items}, key)
    again = await ask_once("batch", {"requests": items}, key)
    assert [one["code"] for one in first["data"]["results"]] == [200, 200]
    assert again == first
    await only_then(device, call, 2)


# ---- order and sequences ------------------------------------------------------------------------


async def test_commands_for_one_device_leave_in_the_order_of_their_requests(
    requester, bridge, board
):
    device = await board(BOARD_A)
    angles = [(11 * n) % 181 for n in range(60)]
    replies = await asyncio.gather(*(requester.ask("control", angle(one)) for one in angles))
    assert {reply.code for reply in replies} == {200}
    assert [one["angle"] for one in await device.next_commands(60)] == angles


async def test_second_sequence_on_a_device_is_refused_while_one_runs(call, connect_caller, board):
    device = await board(BOARD_A)
    other = await connect_caller("http")
    preset = {"device_uuid": BOARD_A, "preset_key": SEQUENCE}
    running = asyncio.create_task(call.ask("preset", preset))
    await device.next_command()
    check_refusal(await other.ask("preset", preset), 409, "device_busy")
    assert (await running)["data"]["success"] is True
    assert (await call.ask("preset", preset))["code"] == 200
    await device.next_commands(7)
    assert len(device.commands) == 8


async def test_single_command_goes_out_between_the_steps_of_a_sequence(call, connect_caller, board):
    device = await board(BOARD_A)
    other = await connect_caller("http")
    preset = {"device_uuid": BOARD_A, "preset_key": SEQUENCE}
    running = asyncio.create_task(call.ask("preset", preset))
    await device.next_command()
    assert (await other.ask("control", angle(77)))["code"] == 200
    assert not running.done()
    assert (await running)["data"]["success"] is True
    sent = [switch("led", 1), *await device.next_commands(4)]
    assert sent[1] == servo(1, 77)
    assert len(device.commands) == 5
