"""More connections than one, by which replies and commands leave in a flood.

What the bridge does with them is seen from the broker's log.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count

import pytest

from bridge import wire
from bridge.link import BrokerAddress, Link
from bridge.mqtt import outbound
from bridge.mqtt.outbound import Outbound
from bridge.settings import Settings
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Broker, Endpoint
from tests.lab.platform import BOARD_A, BOARD_B
from tests.lab.raw import Raw
from tests.lab.servers import LOOPBACK, free_port

READING = json.dumps({"device_uuid": BOARD_B, "sensor": "temperature"}).encode()
FLOOD = 3000


async def flood(broker: Broker, reply_topic: bytes) -> Counter[int]:
    """Ask for so many readings at once; how often each code was the answer."""
    answers: dict[bytes, int] = {}
    all_there = asyncio.Event()

    def note(reply: wire.Message) -> None:
        assert reply.correlation is not None
        answers[reply.correlation] = json.loads(reply.payload)["code"]
        if len(answers) == FLOOD:
            all_there.set()

    raw = await Raw(broker, note).connect()
    await raw.subscribe(reply_topic)
    for number in range(FLOOD):
        properties = wire.properties(response_topic=reply_topic, correlation=b"%d" % number)
        raw.publish(b"plugin/request/sensor-data", READING, properties)
    async with asyncio.timeout(30):
        await all_there.wait()
    await raw.close()
    return Counter(answers.values())


def further(broker: Mosquitto, instance: str) -> set[str]:
    """The further connections that the broker has seen of a bridge."""
    return set(re.findall(rf" as ({instance}-out-\d+) ", broker.output))


async def seen(broker: Mosquitto, instance: str, expected: set[str] | None = None) -> None:
    """Wait until the broker has seen these, or any."""

    def there() -> bool:
        found = further(broker, instance)
        return bool(found) if expected is None else found == expected

    await asyncio.to_thread(broker.wait_for, there, "further connections")


# ---- in a flood ---------------------------------------------------------------------------------


@pytest.mark.parametrize("at_a_time", [20, 0], ids=["few at a time", "any number"])
async def test_flood_is_answered_by_further_connections(
    private_bridge, private_mosquitto, at_a_time
):
    broker = await asyncio.to_thread(private_mosquitto, f"max_inflight_messages {at_a_time}")
    bridge = await asyncio.to_thread(private_bridge, broker=broker)
    assert set(await flood(broker, b"plugin/reply/x")) <= {200, 429}
    expected = {f"{bridge.instance}-out-{number}" for number in range(1, 9)}
    await seen(broker, bridge.instance, expected)
    assert await asyncio.to_thread(bridge.stop) == 0
    assert bridge.output.count("messages leave by further connections") == 1


async def test_commands_for_a_device_stay_in_order_in_a_flood(private_bridge, board):
    bridge = await asyncio.to_thread(private_bridge, MAX_IN_FLIGHT="4000")
    boards = [await board(uuid, bridge.broker) for uuid in (BOARD_A, BOARD_B)]
    raw = await Raw(bridge.broker).connect()
    flooding = asyncio.create_task(flood(bridge.broker, b"plugin/reply/x"))
    for frequency in range(1, 501):
        for one in boards:
            command = {
                "device_uuid": one.uuid,
                "port_type": "pwm",
                "port_id": 1,
                "action": "set",
                "value": 50,
                "frequency": frequency,
            }
            raw.publish(b"plugin/request/control", json.dumps(command).encode())
    await flooding
    await seen(bridge.broker, bridge.instance)
    for one in boards:
        async with asyncio.timeout(10):
            commands = [(await one.next_command()).json["frequency"] for _ in range(500)]
        assert commands == list(range(1, 501))
    await raw.close()


async def test_reply_refused_on_a_further_connection_goes_by_the_main_one(
    private_bridge, private_mosquitto
):
    """A broker whose ACL knows clients by their ids."""
    acl = "topic read plugin/#\ntopic write plugin/request/#\npattern write plugin/reply/%c\n"
    broker = await asyncio.to_thread(private_mosquitto, acl=acl)
    bridge = await asyncio.to_thread(private_bridge, broker=broker)
    assert set(await flood(broker, b"plugin/reply/" + bridge.instance.encode())) <= {200, 429}
    await seen(broker, bridge.instance)


async def test_broker_that_takes_all_of_ours_for_one_client_loses_no_request(
    private_bridge, private_mosquitto
):
    requesters = Endpoint(LOOPBACK, free_port())
    broker = await asyncio.to_thread(
        private_mosquitto,
        "use_username_as_clientid true",
        f"listener {requesters.port} {requesters.host}",
        passwords={"bridge": "secret"},
    )
    bridge = await asyncio.to_thread(
        private_bridge, broker=broker, MQTT_USERNAME="bridge", MQTT_PASSWORD="secret"
    )
    warning = "the broker ends our connection when we open further ones"
    async with asyncio.timeout(60):
        for number in count():
            assert set(await flood(requesters, b"plugin/reply/%d" % number)) <= {200, 429}
            if warning in bridge.output:
                break
    assert bridge.output.count(warning) == 1
    assert "another client connects" not in bridge.output


# ---- opening and closing ------------------------------------------------------------------------


@pytest.fixture
async def connect(
    private_mosquitto,
) -> AsyncIterator[Callable[..., Awaitable[tuple[Outbound, Link]]]]:
    """A main connection, and what chooses between it and further ones."""
    async with AsyncExitStack() as stack:

        async def open_main(elsewhere: Broker | None = None) -> tuple[Outbound, Link]:
            broker = await asyncio.to_thread(private_mosquitto)
            address = BrokerAddress.of(settings_for(broker))
            main = Link(address, identifier="main", on_message=lambda *_: None)
            await main.open()
            stack.push_async_callback(main.close)
            chooser = Outbound(settings_for(elsewhere or broker), "main")
            stack.push_async_callback(chooser.close)
            return chooser, main

        yield open_main


def settings_for(broker: Broker) -> Settings:
    return Settings(mqtt_broker=broker.host, mqtt_port=broker.port, _env_file=None)


def clog(link: Link) -> None:
    """Have more wait for the broker than it takes in one round trip."""
    for _ in range(400):
        link.publish("to/nobody", b"", qos=1)


async def test_further_connections_are_closed_when_they_are_idle(connect, monkeypatch):
    monkeypatch.setattr(outbound, "_IDLE_SECONDS", 0.2)
    monkeypatch.setattr(outbound, "_LOOK_SECONDS", 0.05)
    chooser, main = await connect()
    clog(main)
    assert chooser.for_reply(main) is main
    async with asyncio.timeout(10):
        while chooser.for_reply(main) is main:
            clog(main)
            await asyncio.sleep(0)
    helper = chooser.for_reply(main)
    assert (await asyncio.wait_for(helper.lost, 10)).args == ("closed",)
    assert chooser.for_reply(main) is main


async def test_where_further_connections_fail_the_main_one_does_all(connect, caplog):
    chooser, main = await connect(elsewhere=Endpoint(LOOPBACK, free_port()))
    async with asyncio.timeout(10):
        while "a further connection to the broker failed" not in caplog.text:
            clog(main)
            assert chooser.for_reply(main) is main
            await asyncio.sleep(0)
    for _ in range(20):
        clog(main)
        assert chooser.for_reply(main) is main
        await asyncio.sleep(0)
    assert caplog.text.count("a further connection to the broker failed") == 1
    assert not main.lost.done()


async def test_command_follows_the_one_before_it_to_the_same_topic(connect):
    chooser, main = await connect()
    under_way: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    chooser.under_way("devices/a/control", main, under_way)
    async with asyncio.timeout(10):
        while chooser.for_command(main, "devices/b/control") is main:
            clog(main)
            chooser.for_reply(main)
            await asyncio.sleep(0)
    assert chooser.for_command(main, "devices/a/control") is main
    under_way.set_result(0)
    await asyncio.sleep(0)
    clog(main)
    assert chooser.for_command(main, "devices/a/control") is not main
