"""A bridge without its database, beside another one of its share, and alone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

from bridge.link import Link
from bridge.link.topics import Topics
from bridge.mqtt.presence import Presence
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
    line = await asyncio.to_thread(unable.wait_for_line, "requests are left to", 20)
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
    # Each is said again and again.
    changes: list[str] = []
    async with asyncio.timeout(20):
        while len(changes) < 5:
            said = (await requester.next_message(topic="plugin/status/unable")).json["status"]
            changes += [said] if changes[-1:] != [said] else []
    assert changes == ["online", "offline", "online", "offline", "online"]


async def test_bridge_whose_presence_alone_is_left_is_left_no_requests(
    private_bridge: StartBridge, private_mariadb, connect_requester: ConnectRequester
):
    """As when a broker and a bridge lost their power together, and the bridge has another name."""
    database = private_mariadb()
    unable = private_bridge(database=database)
    requester = await connect_requester(unable.broker)
    await requester.subscribe("plugin/status/+")
    presence = await requester.next_message(topic=f"plugin/status/{unable.instance}")
    await requester.publish("plugin/status/ghost", presence.payload, qos=1, retain=True)
    await asyncio.to_thread(database.kill)
    async with asyncio.timeout(20):
        while (await requester.ask("sensor-data", READING)).code == 200:
            await asyncio.sleep(0.1)
    # Each of its looks lasts half a second, and it would have left after 4.5 s.
    deadline = asyncio.get_running_loop().time() + 7
    while asyncio.get_running_loop().time() < deadline:
        assert (await requester.ask("sensor-data", READING)).code in (503, 504)
        await asyncio.sleep(0.1)
    assert "are left to" not in unable.output


async def test_refusal_of_the_presence_is_logged_once_until_it_is_taken(caplog):
    """It is announced again and again."""
    reasons = iter([0x87, 0x87, 0x00, 0x87])

    async def puback() -> int:
        return next(reasons)

    link = cast("Link", SimpleNamespace(publish=lambda *_args, **_options: puback()))
    presence = Presence(Topics("plugin", "bridge", "b", ()), workers=1)
    logged = []
    for _ in range(4):
        await presence.announce(link, "online")
        logged.append(len(caplog.records))
    assert logged == [1, 1, 1, 2]
