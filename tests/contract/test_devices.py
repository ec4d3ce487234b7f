"""The list of devices: what is found, in which order and page by page, and who may see it."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.contract.callers import MQTT, TRANSPORTS, Caller
from tests.contract.test_refusals import check_refusal
from tests.lab.bridge import Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import (
    BOARD_A,
    BOARD_B,
    BOARD_C,
    BOARD_D,
    BOARD_E,
    BOARDS,
    NAMES,
    Platform,
)

DEVICE_FIELDS = {
    "device_uuid", "name", "online", "last_seen", "room", "group", "floor", "product",
}  # fmt: skip
RETIRED = "ffffffff-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def open_bridge(mariadb: MariaDb) -> Iterator[Bridge]:
    """A bridge whose list is open to all."""
    with Mosquitto() as broker, Bridge(broker, mariadb, DEVICE_LIST="open") as process:
        yield process


@pytest.fixture(params=TRANSPORTS)
async def ask(request, connect_caller, open_bridge: Bridge) -> Caller:
    """A caller of that bridge; the test runs once a transport."""
    return await connect_caller(request.param, open_bridge, open_bridge.broker)


@pytest.fixture
def school(platform: Platform) -> Platform:
    """The classroom in several rooms, and a retired device."""
    platform.update_device(BOARD_B, room="实验室", group_name="二班", floor=None)
    platform.update_device(BOARD_C, room=None, group_name=None, floor="2")
    platform.update_device(BOARD_D, name="100%_门禁")
    platform.add_device(RETIRED, "一号教室旧板", active=False)
    return platform


async def listed(ask: Caller, **fields: object) -> list[str]:
    """The UUIDs of one page."""
    body = await ask.ask("devices", fields)
    assert body["code"] == 200, body
    return [device["device_uuid"] for device in body["data"]["devices"]]


async def test_active_devices_are_listed_by_name_with_all_that_is_told_of_each(ask, school):
    body = await ask.ask("devices")
    data = body["data"]
    assert set(data) == {"devices", "next_cursor"}
    assert data["next_cursor"] is None
    assert all(set(device) == DEVICE_FIELDS for device in data["devices"])
    found = {device["device_uuid"]: device for device in data["devices"]}
    assert set(found) == set(BOARDS)
    assert found[BOARD_A] | {"last_seen": None} == {
        "device_uuid": BOARD_A,
        "name": NAMES[BOARD_A],
        "online": True,
        "last_seen": None,
        "room": "101",
        "group": "一班",
        "floor": "1",
        "product": "教室套件",
    }
    unseen = found[BOARD_C]
    assert [unseen[name] for name in ("online", "last_seen", "room", "group", "product")] == [
        False, None, None, None, None,
    ]  # fmt: skip


async def test_pages_join_to_the_whole_list_in_one_order(ask, school):
    whole = await listed(ask)
    assert whole[0] == BOARD_D  # its name begins with a digit
    for limit in (1, 2, 5):
        joined, cursor = [], None
        while True:
            data = (await ask.ask("devices", _sent(limit=limit, cursor=cursor)))["data"]
            assert len(data["devices"]) <= limit
            joined += [device["device_uuid"] for device in data["devices"]]
            cursor = data["next_cursor"]
            if cursor is None:
                break
        assert joined == whole


async def test_devices_of_one_name_are_ordered_by_uuid(ask, school):
    for board in BOARDS:
        school.update_device(board, name="灯")
    assert await listed(ask) == sorted(BOARDS)
    first = (await ask.ask("devices", {"limit": 3}))["data"]
    assert await listed(ask, cursor=first["next_cursor"]) == sorted(BOARDS)[3:]


async def test_device_added_between_two_pages_shifts_nothing(ask, school):
    whole = await listed(ask)
    first = (await ask.ask("devices", {"limit": 2}))["data"]
    school.add_device("00000000-0000-4000-8000-000000000000", "0 号")
    assert await listed(ask, cursor=first["next_cursor"]) == whole[2:]


FOUND = [
    ({"query": "教室"}, [BOARD_A]),
    ({"query": " 水温 "}, [BOARD_B]),
    ({"query": "B0000000-0000"}, [BOARD_B]),
    ({"query": "没有"}, []),
    ({"query": "%"}, [BOARD_D]),
    ({"query": "0%_"}, [BOARD_D]),
    ({"query": "_"}, [BOARD_D]),
    ({"query": "|"}, []),
    ({"query": "\\"}, []),
    ({"query": "'"}, []),
    ({"room": "实验室"}, [BOARD_B]),
    ({"room": "实验"}, []),
    ({"group": "二班"}, [BOARD_B]),
    ({"group": "一班", "query": "开发"}, [BOARD_E]),
    ({"online": False}, [BOARD_C]),
    ({"online": "true", "room": "实验室"}, [BOARD_B]),
    ({"online": "0", "room": "实验室"}, []),
    ({"limit": "1", "query": "a0000000"}, [BOARD_A]),
    ({"query": "", "room": " ", "group": "", "online": "", "limit": "", "cursor": "",
      "unknown": "x"}, list(BOARDS)),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "boards"), FOUND, ids=[str(fields) for fields, _ in FOUND])
async def test_search_and_filters_narrow_the_list(ask, school, fields, boards):
    sent = {name: str(value).lower() if value is False else value for name, value in fields.items()}
    assert set(await listed(ask, **sent)) == set(boards)


@pytest.mark.parametrize("transport", MQTT)
async def test_null_counts_as_not_sent(connect_caller, open_bridge, transport):
    caller = await connect_caller(transport, open_bridge, open_bridge.broker)
    nothing = dict.fromkeys(("query", "room", "group", "online", "limit", "cursor"))
    assert set(await listed(caller, **nothing)) == set(BOARDS)


def _cursor(*parts: object) -> str:
    return urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


WRONG = [
    *(("limit", limit) for limit in (0, 101, -1, "many", "1.5", 10**30)),
    *(("online", online) for online in ("perhaps", 7)),
    *((name, "x" * 101) for name in ("query", "room", "group")),
    *(
        ("cursor", cursor)
        for cursor in (
            "x", "灯", "====", "A" * 2000, _cursor("only one"), _cursor("a", 5), _cursor("a", "b"),
            urlsafe_b64encode(b'{"a":"b"}').decode(), urlsafe_b64encode(b"\xff\xfe").decode(),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{f}-{v!s:.12}" for f, v in WRONG])
async def test_wrong_field_is_answered_422(ask, field, value):
    body = await ask.ask("devices", {field: value})
    check_refusal(body, 422, "validation_error")
    assert [fault["loc"][0] for fault in body["errors"]] == [field]


async def test_list_is_no_item_of_a_batch(ask):
    (item,) = (await ask.ask("batch", {"requests": [{"operation": "devices"}]}))["data"]["results"]
    check_refusal(item, 404, "operation_not_found")


# ---- who may see it -----------------------------------------------------------------------------


async def test_by_default_nobody_without_a_key_lists_devices(call):
    body = await call.ask("devices")
    check_refusal(body, 403, "forbidden")
    assert "DEVICE_LIST" in body["detail"]


async def test_off_means_nobody(private_bridge, connect_caller):
    process = private_bridge(DEVICE_LIST="off", API_KEYS="all:open-sesame")
    over_mqtt = await connect_caller("mqtt5", process, process.broker)
    body = await over_mqtt.ask("devices")
    check_refusal(body, 403, "forbidden")
    assert "DEVICE_LIST" in body["detail"]
    assert await over_http(process, "open-sesame") == (403, "forbidden")


KEYS = f"""
all:open-sesame
reader:just-looking operations=sensor-data
lister:only-lists operations=devices
warden:my-boards devices={BOARD_B},{BOARD_E.upper()}
"""


@pytest.fixture(scope="module")
def guarded(mariadb: MariaDb, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    keys: Path = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEYS)
    settings = {"API_KEYS_FILE": str(keys), "API_TRUSTED": "127.0.0.2/32"}
    with Mosquitto() as broker, Bridge(broker, mariadb, **settings) as process:
        yield process


async def over_http(bridge: Bridge, key: str, **fields: str) -> tuple[int, object]:
    """The status, and the error or the UUIDs that are listed."""
    async with (
        aiohttp.ClientSession(headers={"X-API-Key": key}) as session,
        session.get(f"{bridge.url}/api/devices", params=fields) as response,
    ):
        body = await response.json()
        if response.status != 200:
            return response.status, body["error"]
        return 200, {device["device_uuid"] for device in body["data"]["devices"]}


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("open-sesame", (200, set(BOARDS))),
        ("only-lists", (200, set(BOARDS))),
        ("my-boards", (200, {BOARD_B, BOARD_E})),
        ("just-looking", (403, "forbidden")),
        ("guessed", (401, "unauthorized")),
    ],
)
async def test_key_lists_what_it_allows(guarded, key, answer):
    assert await over_http(guarded, key) == answer


async def test_limits_of_a_key_hold_for_search_and_pages(guarded):
    assert await over_http(guarded, "my-boards", query="0000") == (200, {BOARD_B, BOARD_E})
    assert await over_http(guarded, "my-boards", query="a000") == (200, set())
    assert len((await over_http(guarded, "my-boards", limit="1"))[1]) == 1


@pytest.mark.parametrize("transport", MQTT)
async def test_keys_open_the_list_to_nobody_over_mqtt(guarded, connect_caller, transport):
    caller = await connect_caller(transport, guarded, guarded.broker)
    check_refusal(await caller.ask("devices"), 403, "forbidden")


async def test_trusted_address_lists_nothing_without_a_key(guarded):
    connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    async with aiohttp.ClientSession(guarded.url, connector=connector) as session:
        async with session.get("/api/devices") as response:
            assert response.status == 403
        async with session.get("/api/devices", headers={"X-API-Key": "only-lists"}) as response:
            assert response.status == 200


async def test_open_waives_nothing_that_keys_demand(private_bridge, connect_caller, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(KEYS)
    process = private_bridge(DEVICE_LIST="open", API_KEYS_FILE=str(keys))
    assert await over_http(process, "guessed") == (401, "unauthorized")
    assert await over_http(process, "just-looking") == (403, "forbidden")
    assert await over_http(process, "my-boards") == (200, {BOARD_B, BOARD_E})
    over_mqtt = await connect_caller("mqtt5", process, process.broker)
    assert set(await listed(over_mqtt)) == set(BOARDS)


# ---- what it may cost ---------------------------------------------------------------------------


async def test_one_list_at_a_time_is_read_and_all_end_within_db_timeout(
    private_mariadb, private_bridge
):
    database = private_mariadb()
    process = private_bridge(database=database, DEVICE_LIST="open", DB_TIMEOUT="1")
    async with aiohttp.ClientSession(process.url) as session:
        with database._connection() as locking, locking.cursor() as cursor:
            cursor.execute("LOCK TABLES device_main WRITE")
            began = time.monotonic()
            lists = [asyncio.create_task(_status(session, "/api/devices")) for _ in range(12)]
            reading = set()
            while not all(task.done() for task in lists):
                reading.add(await asyncio.to_thread(_lists_being_read, database))
            assert set(await asyncio.gather(*lists)) == {504}
            assert time.monotonic() - began < 2
            assert max(reading) == 1
            cursor.execute("UNLOCK TABLES")
        assert await _status(session, "/api/devices") == 200


def _lists_being_read(database: MariaDb) -> int:
    statements = [str(process["Info"]) for process in database.query("SHOW FULL PROCESSLIST")]
    return sum("d.group_name" in statement for statement in statements)


async def _status(session: aiohttp.ClientSession, path: str) -> int:
    async with session.get(path) as response:
        return response.status


def _sent(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}
