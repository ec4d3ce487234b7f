"""The codes of trouble: 401, 403, 429, 500, 503 and 504, each on every transport that meets it."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest

from tests.contract.callers import MQTT, TRANSPORTS
from tests.contract.cases import on_port, servo
from tests.contract.test_refusals import check_refusal
from tests.lab.bridge import Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Endpoint
from tests.lab.platform import BOARD_A, BOARD_B, BOARD_E, seed_classroom

READING = {"device_uuid": BOARD_A, "sensor": "温度"}
LIGHT = {"device_uuid": BOARD_A, **on_port("led", 1)}
DB_TIMEOUT = 1.0


# ---- database and broker away or hung -----------------------------------------------------------


@pytest.fixture(scope="module")
def fragile_broker():
    with Mosquitto() as server:
        yield server


@pytest.fixture(scope="module")
def fragile_database():
    with MariaDb() as server:
        seed_classroom(server)
        yield server


@pytest.fixture(scope="module")
def fragile(fragile_broker, fragile_database):
    settings = {"DB_TIMEOUT": str(DB_TIMEOUT), "REQUEST_TIMEOUT": "3"}
    with Bridge(fragile_broker, fragile_database, **settings) as process:
        yield process


@pytest.fixture
async def healthy(fragile, fragile_broker, fragile_database):
    """The bridge, ready; and whatever the test paused goes on afterwards."""
    await asyncio.to_thread(fragile.wait_until_it_is, "ready")
    yield fragile
    fragile_broker.resume()
    fragile_database.resume()


@pytest.fixture
async def callers(connect_caller, healthy, fragile_broker):
    """A caller of that bridge on each transport."""
    return [
        await connect_caller(transport, of=healthy, broker=fragile_broker)
        for transport in TRANSPORTS
    ]


async def all_ask(callers, operation, fields):
    return await asyncio.gather(*(call.ask(operation, fields) for call in callers))


async def status_of(bridge, path):
    async with aiohttp.ClientSession() as session, session.get(bridge.url + path) as response:
        return response.status, await response.json()


async def wait_until_health_says(bridge, **wanted):
    async with asyncio.timeout(5):
        while True:
            status, body = await status_of(bridge, "/health")
            if wanted.items() <= body.items():
                return status, body
            await asyncio.sleep(0.02)


async def test_hung_database_is_answered_504_in_time(callers, healthy, fragile_database):
    fragile_database.pause()
    asked = time.monotonic()
    for body in await all_ask(callers, "sensor-data", READING):
        check_refusal(body, 504, "database_timeout")
    assert time.monotonic() - asked < DB_TIMEOUT + 1
    for path in ("/livez", "/health"):
        asked = time.monotonic()
        await status_of(healthy, path)
        assert time.monotonic() - asked < 0.1


async def test_request_whose_own_time_ends_first_is_answered_504_timeout(callers, fragile_database):
    fragile_database.pause()
    fields = {**READING, "expires_at": time.time() + 0.3}
    for body in await all_ask(callers, "sensor-data", fields):
        check_refusal(body, 504, "timeout")


async def test_command_whose_time_ends_before_it_left_is_never_sent(
    callers, board, fragile_broker, fragile_database
):
    device = await board(BOARD_A, fragile_broker)
    fragile_database.pause()
    fields = {**LIGHT, "expires_at": time.time() + 0.3}
    for body in await all_ask(callers, "control", fields):
        check_refusal(body, 504, "timeout")
    fragile_database.resume()
    await check_only_mark_arrives(callers[0], device)


async def test_batch_tells_504_for_the_items_that_its_deadline_left_undone(
    callers, fragile_database
):
    fragile_database.pause()
    fields = {
        "requests": [{"operation": "sensor-data", **READING}, {"operation": "control", **LIGHT}],
        "expires_at": time.time() + 0.3,
    }
    for body in await all_ask(callers, "batch", fields):
        assert body["code"] == 200
        assert [one["code"] for one in body["data"]["results"]] == [504, 504]


async def test_absent_database_is_answered_503_and_told_by_health(
    callers, healthy, fragile_database
):
    await asyncio.to_thread(fragile_database.stop)
    try:
        for operation, fields in (("sensor-data", READING), ("control", LIGHT)):
            for body in await all_ask(callers, operation, fields):
                check_refusal(body, 503, "database_unavailable")
                assert "Errno" not in body["detail"]
        status, health = await wait_until_health_says(healthy, database=False)
        assert (status, health["status"], health["mqtt"]) == (503, "degraded", True)
        assert (await status_of(healthy, "/readyz"))[0] == 503
        assert (await status_of(healthy, "/livez"))[0] == 200
        # Over MQTT, to have been asked is to be well: code 200, and the truth in data.
        for call in callers[1:]:
            body = await call.ask("health")
            assert (body["code"], body["data"]["status"]) == (200, "degraded")
    finally:
        await asyncio.to_thread(fragile_database.start)


async def test_absent_broker_is_answered_503_over_http(callers, healthy, fragile_broker):
    http = callers[0]
    await asyncio.to_thread(fragile_broker.stop)
    try:
        status, health = await wait_until_health_says(healthy, mqtt=False)
        assert (status, health["status"], health["database"]) == (503, "degraded", True)
        check_refusal(await http.ask("control", LIGHT), 503, "mqtt_unavailable")
        preset = {"device_uuid": BOARD_A, "preset_key": "blink_led_1"}
        check_refusal(await http.ask("preset", preset), 503, "mqtt_unavailable")
        assert (await http.ask("sensor-data", READING))["code"] == 200
        assert (await status_of(healthy, "/readyz"))[0] == 503
    finally:
        await asyncio.to_thread(fragile_broker.start)


async def test_command_without_acknowledgement_is_told_as_such_and_never_sent_again(
    callers, board, healthy, fragile_broker, fragile_database
):
    device = await board(BOARD_A, fragile_broker)
    fragile_database.pause()
    # They wait for the database; when it goes on, the broker takes their commands and is silent.
    fields = {**LIGHT, "expires_at": time.time() + 1.5}
    asked = [
        asyncio.create_task(call.ask_with_id("control", fields, f"unknown-{call.transport}"))
        for call in callers
    ]
    await wait_until_health_says(healthy, in_flight=3)
    fragile_broker.pause()
    fragile_database.resume()
    first = await asked[0]
    check_refusal(first, 504, "outcome_unknown")
    fragile_broker.resume()
    bodies = await asyncio.gather(*asked)
    for call, body in zip(callers, bodies, strict=True):
        check_refusal(body, 504, "outcome_unknown")
        # Its own time has passed; the same request with more of it is still the same.
        again = await call.ask_with_id("control", LIGHT, f"unknown-{call.transport}")
        assert again == body
    await device.next_commands(3)
    await check_only_mark_arrives(callers[0], device, after=3)


async def check_only_mark_arrives(call, device, after=0):
    """The board has been sent `after` commands; ours is the next."""
    mark = {"device_uuid": BOARD_A, **on_port("servo", 1, "set", value=77)}
    async with asyncio.timeout(10):
        # The pool may need a moment after its server was hung.
        while (await call.ask("control", mark))["code"] != 200:
            await asyncio.sleep(0.05)
    assert (await device.next_command()).json == servo(1, 77)
    assert len(device.commands) == after + 1


# ---- busy and draining --------------------------------------------------------------------------

STEPS = [
    {"command": {"cmd": "led", "device_id": 1, "value": value}, "delay": 0.8} for value in (1, 0)
]
SECOND_LONG = {"device_uuid": BOARD_E, "preset_key": "slow"}


async def test_overload_is_429_and_draining_503_and_what_is_in_flight_is_finished(
    private_mosquitto, private_bridge, platform, board, connect_caller
):
    platform.set_presets(
        BOARD_E, [{"preset_key": "slow", "name": "慢", "type": "sequence", "steps": STEPS}]
    )
    broker = private_mosquitto()
    bridge = private_bridge(broker=broker, MAX_IN_FLIGHT="1")
    device = await board(BOARD_E, broker)
    callers = [await connect_caller(one, of=bridge, broker=broker) for one in TRANSPORTS]
    over_mqtt = await connect_caller("mqtt5", of=bridge, broker=broker)

    running = asyncio.create_task(over_mqtt.ask("preset", SECOND_LONG))
    await device.next_command()
    for body in await all_ask(callers, "sensor-data", READING):
        check_refusal(body, 429, "busy")
    for operation in ("health", "operations"):
        for call in callers[1:] if operation == "health" else callers:
            assert (await call.ask(operation))["code"] == 200
    async with aiohttp.ClientSession(bridge.url) as session:
        async with session.get("/api/sensor-data", params=READING) as response:
            assert (response.status, "Retry-After" in response.headers) == (429, True)
        assert (await running)["data"]["success"] is True
        assert (await callers[0].ask("sensor-data", READING))["code"] == 200

        running = asyncio.create_task(over_mqtt.ask("preset", SECOND_LONG))
        await device.next_commands(2)
        stopping = asyncio.create_task(asyncio.to_thread(bridge.stop))
        await asyncio.to_thread(bridge.wait_for_line, "draining")
        check_refusal(await callers[0].ask("sensor-data", READING), 503, "draining")
        assert (await status_of(bridge, "/livez"))[0] == 200
        assert (await status_of(bridge, "/readyz"))[0] == 503
    assert (await running)["data"]["success"] is True
    assert await stopping == 0


# ---- who may ask --------------------------------------------------------------------------------

SECRET = "never-5een"


@pytest.fixture(scope="module")
def guarded(mariadb, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(
        f"reader:reader-{SECRET} operations=sensor-data,batch\n"
        f"room-b:room-{SECRET} devices={BOARD_B}\n"
    )
    with Mosquitto() as broker:
        settings = {"API_KEYS": f"all:all-{SECRET}", "API_KEYS_FILE": str(keys)}
        with Bridge(broker, mariadb, **settings) as process:
            yield process


async def asked(bridge, method, path, headers=None, **options):
    async with (
        aiohttp.ClientSession(bridge.url) as session,
        session.request(method, path, headers=headers, **options) as response,
    ):
        return await response.json()


def key(name):
    return {"X-API-Key": f"{name}-{SECRET}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": "wrong"},
        {"X-API-Key": ""},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic all-{SECRET}"},
        {"Authorization": f"Bearer all:all-{SECRET}"},
    ],
)
@pytest.mark.parametrize("path", ["/api/sensor-data", "/api/operations", "/metrics", "/api/nope"])
async def test_no_key_or_a_wrong_one_is_answered_401(guarded, headers, path):
    check_refusal(await asked(guarded, "GET", path, headers), 401, "unauthorized")


@pytest.mark.parametrize(
    "headers", [key("all"), {"Authorization": f"Bearer all-{SECRET}"}, key("reader")]
)
async def test_key_opens(guarded, headers):
    body = await asked(guarded, "GET", "/api/sensor-data", headers, params=READING)
    assert body["code"] == 200


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/health"])
async def test_probes_stay_open(guarded, path):
    assert (await status_of(guarded, path))[0] == 200


@pytest.mark.parametrize(
    ("name", "operation", "fields"),
    [
        ("reader", "control", LIGHT),
        ("reader", "preset", {"device_uuid": BOARD_A, "preset_key": "blink_led_1"}),
        ("room", "control", LIGHT),
    ],
)
async def test_what_a_key_may_not_do_is_answered_403(guarded, name, operation, fields):
    body = await asked(guarded, "POST", f"/api/{operation}", key(name), json=fields)
    check_refusal(body, 403, "forbidden")


async def test_limits_of_a_key_hold_within_a_batch(guarded):
    items = [{"operation": "control", **LIGHT}, {"operation": "sensor-data", **READING}]
    body = await asked(guarded, "POST", "/api/batch", key("reader"), json={"requests": items})
    assert [one["code"] for one in body["data"]["results"]] == [403, 200]


async def test_secrets_are_never_in_the_output(guarded):
    assert SECRET not in guarded.output
    assert "bridge-pa55" not in guarded.output


@pytest.mark.parametrize("transport", MQTT)
async def test_mqtt_is_guarded_by_the_broker_and_never_answers_401(
    guarded, connect_caller, transport
):
    broker = Endpoint(guarded.settings["MQTT_BROKER"], int(guarded.settings["MQTT_PORT"]))
    call = await connect_caller(transport, of=guarded, broker=broker)
    assert (await call.ask("sensor-data", READING))["code"] == 200
