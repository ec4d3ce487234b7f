"""A bridge without its database, beside another one of its share, and alone."""

from __future__ import annotations

import asyncio

from tests.conftest import ConnectRequester, StartBridge
from tests.lab.platform import BOARD_A

READING = {"device_uuid": BOARD_A, "sensor": "temperature"}


async def test_bridge_without_its_database_leaves_its_turns_to_another_until_none_is_there(
    private_bridge: StartBridge,
    private_mariadb,
    connect_requester: ConnectRequester,
):
    database = private_mariadb()
    able = private_bridge(MQTT_SESSION_EXPIRY="0")
    shared = {"MQTT_SESSION_EXPIRY": "0", "MQTT_INSTANCE": "unable"}
    unable = private_bridge(broker=able.broker, database=database, **shared)
    requester = await connect_requester(able.broker)
    await requester.subscribe("plugin/status/unable")

    await asyncio.to_thread(database.kill)
    line = await asyncio.to_thread(unable.wait_for_line, "requests are left to")
    assert line.rstrip().endswith(f"plugin/status/{able.instance}")
    codes = {(await requester.ask("sensor-data", READING)).code for _ in range(10)}
    assert codes == {200}

    # Alone, it answers that it can't.
    await asyncio.to_thread(able.stop)
    await asyncio.to_thread(unable.wait_for_line, "requests are taken again")
    assert (await requester.ask("sensor-data", READING)).code == 503

    await asyncio.to_thread(able.start)
    await asyncio.to_thread(
        unable.wait_for, lambda: unable.output.count("are left to") == 2, "leaving again"
    )
    await asyncio.to_thread(database.start)
    await asyncio.to_thread(
        unable.wait_for, lambda: unable.output.count("taken again") == 2, "coming back"
    )
    statuses = [
        (await requester.next_message(topic="plugin/status/unable")).json["status"]
        for _ in range(5)
    ]
    assert statuses == ["online", "offline", "online", "offline", "online"]
