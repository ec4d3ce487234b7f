"""Tables that were converted several times: nobody's hostile request harms another's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.contract.callers import TRANSPORTS
from tests.contract.cases import on_port, switch
from tests.contract.test_bodies import data_of
from tests.contract.test_refusals import check_refusal
from tests.database.test_odd_tables import ODD
from tests.lab.bridge import Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A, BOARD_B, NAMES, seed_classroom

HOSTILE = ("\U0001f600", "漢" * 36, "\U0001f600" * 36, "é", "\x7f")
CONVERTED = ("utf8mb3", "collations differ", "character sets differ", "one column in latin1")


@pytest.fixture(scope="module", params=CONVERTED)
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Mosquitto, Bridge]]:
    with Mosquitto() as broker, MariaDb() as database:
        seed_classroom(database)
        for change in ODD[request.param]:
            database.execute(change)
        with Bridge(broker, database) as bridge:
            yield broker, bridge


@pytest.fixture(params=TRANSPORTS)
async def call(request, connect_caller, place):
    broker, bridge = place
    return await connect_caller(request.param, of=bridge, broker=broker)


async def test_requests_with_hostile_names_harm_nobody(call, place, board):
    broker, bridge = place
    device = await board(BOARD_A, broker=broker)
    uuids = (BOARD_A, *HOSTILE, BOARD_B) * 5
    asked = [{"device_uuid": uuid, "sensor": "温度"} for uuid in uuids]
    # On 3.1.1 the replies share a topic, and are told apart by nothing.
    bodies = await asyncio.gather(*(call.ask("sensor-data", one) for one in asked))
    assert Counter(body["code"] for body in bodies) == {200: 10, 404: 25}
    items = [{"operation": "sensor-data", **one} for one in asked]
    lights = [
        {"operation": "control", "device_uuid": uuid, **on_port("led", 1)} for uuid in uuids[:7]
    ]
    results = data_of(await call.ask("batch", {"requests": [*items, *lights]}))["results"]
    assert [one["code"] for one in results] == [200, *[404] * 5, 200] * 5 + [200, *[404] * 5, 409]
    assert (await device.next_command()).json == switch("led", 1)
    described = data_of(await call.ask("device", {"device_uuid": BOARD_A}))
    assert described["name"] == NAMES[BOARD_A]
    assert len(described["sensors"]) == 4
    body = await call.ask("sensor-data", {"device_uuid": BOARD_A, "sensor": "\U0001f600"})
    check_refusal(body, 404, "sensor_not_found")
    assert bridge.ready
    assert "database unavailable" not in bridge.output
