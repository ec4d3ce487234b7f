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
from typing import Any

import pytest

from bridge import wire
from bridge.link import BrokerAddress, Link
from bridge.mqtt import outbound
from bridge.mqtt.outbound import Outbound
from bridge.settings import Settings
from tests.lab.board import Board
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


# ---- in a flood ---------------------------------------------------------------------------------


async def flood_until(broker: Broker, condition: Callable[[], bool]) -> None:
    """Ask for more and more, until the condition holds; everything is answered."""
    async with asyncio.timeout(60):
        for number in count():
            assert set(await flood(broker, b"plugin/reply/%d" % number)) <= {200, 429}
            if await asyncio.to_thread(condition):
                return


@pytest.mark.parametrize("at_a_time", [20, 0], ids=["few at a time", "any number"])
async def test_flood_is_answered_by_further_connections(
    private_bridge, private_mosquitto, at_a_time
):
    broker = await asyncio.to_thread(private_mosquitto, f"max_inflight_messages {at_a_time}")
    bridge = await asyncio.to_thread(private_bridge, broker=broker)
    expected = {f"{bridge.instance}-out-{number}" for number in range(1, 9)}
    await flood_until(broker, lambda: further(broker, bridge.instance) == expected)
    assert await asyncio.to_thread(bridge.stop) == 0
    assert bridge.output.count("messages leave by further connections") == 1


def pwm(board: Board, frequency: int) -> bytes:
    """A command that is told from others by its frequency."""
    command = {"device_uuid": board.uuid, "port_type": "pwm", "port_id": 1, "action": "set"}
    return json.dumps({**command, "value": 50, "frequency": frequency}).encode()


async def test_commands_for_a_device_stay_in_order_in_a_flood(
    private_bridge, private_mosquitto, board
):
    broker = await asyncio.to_thread(private_mosquitto, "log_type all")
    bridge = await asyncio.to_thread(private_bridge, broker=broker, MAX_IN_FLIGHT="4000")
    boards = [await board(uuid, broker) for uuid in (BOARD_A, BOARD_B)]
    codes: Counter[int] = Counter()
    raw = await Raw(
        broker, lambda reply: codes.update([json.loads(reply.payload)["code"]])
    ).connect()
    await raw.subscribe(b"plugin/reply/order")
    asked = 0
    left_further = f"PUBLISH from {bridge.instance}-out-"

    def some_left_further() -> bool:
        return any(
            left_further in line and "devices/" in line for line in broker.output.splitlines()
        )

    async def keep_commanding() -> None:
        nonlocal asked
        to = wire.properties(response_topic=b"plugin/reply/order")
        for frequency in count(1):
            for one in boards:
                asked += 1
                await raw.publish(b"plugin/request/control", pwm(one, frequency), to)

    commanding = asyncio.create_task(keep_commanding())
    await flood_until(broker, some_left_further)
    commanding.cancel()
    async with asyncio.timeout(20):
        while (
            codes.total() < asked - 1 or len(boards[0].commands + boards[1].commands) < codes[200]
        ):
            await asyncio.sleep(0.02)
    for one in boards:
        frequencies = [command.json["frequency"] for command in one.commands]
        assert frequencies == sorted(set(frequencies))
    await raw.close()


async def test_broker_that_lets_only_the_main_connection_publish_gets_all_by_that(
    private_bridge, private_mosquitto
):
    """Its ACL knows clients by their ids."""
    acl = (
        "topic read plugin/#\ntopic write plugin/request/#\ntopic write plugin/status/#\n"
        "pattern write plugin/reply/%c/#\n"
    )
    broker = await asyncio.to_thread(private_mosquitto, acl=acl)
    bridge = await asyncio.to_thread(private_bridge, broker=broker)
    warning = "the broker lets only our first connection publish"
    reply_topic = f"plugin/reply/{bridge.instance}/x".encode()
    async with asyncio.timeout(60):
        while warning not in bridge.output:
            assert set(await flood(broker, reply_topic)) <= {200, 429}
    assert set(await flood(broker, reply_topic)) <= {200, 429}
    assert bridge.output.count(warning) == 1


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
    await flood_until(requesters, lambda: warning in bridge.output)
    assert bridge.output.count(warning) == 1
    assert "another client connects" not in bridge.output


# ---- opening and closing ------------------------------------------------------------------------


@pytest.fixture
async def connect(
    private_mosquitto,
) -> AsyncIterator[Callable[..., Awaitable[tuple[Outbound, Link]]]]:
    """A main connection, and what chooses between it and further ones."""
    async with AsyncExitStack() as stack:

        async def open_main(
            elsewhere: Broker | None = None, **settings: str
        ) -> tuple[Outbound, Link]:
            broker = await asyncio.to_thread(private_mosquitto)
            address = BrokerAddress.of(settings_for(broker, **settings))
            main = Link(address, identifier="main", on_message=lambda *_: None)
            await main.open()
            stack.push_async_callback(main.close)
            chooser = Outbound(settings_for(elsewhere or broker, **settings), "main")
            stack.push_async_callback(chooser.close)
            return chooser, main

        yield open_main


def settings_for(broker: Broker, **settings: Any) -> Settings:
    return Settings(mqtt_broker=broker.host, mqtt_port=broker.port, _env_file=None, **settings)


def clog(link: Link) -> None:
    """Have more wait for the broker than it takes in one round trip."""
    for _ in range(400):
        link.publish("to/nobody", b"", qos=1)


async def test_further_connections_are_closed_when_they_are_idle(connect, monkeypatch):
    monkeypatch.setattr(outbound, "_IDLE_SECONDS", 0.2)
    monkeypatch.setattr(outbound, "_LOOK_SECONDS", 0.05)
    chooser, main = await connect()
    helper = await with_further(chooser, main)
    assert (await asyncio.wait_for(helper.lost, 10)).args == ("closed",)
    assert chooser.for_reply(main) is main


async def test_on_3_1_1_there_are_none(connect):
    """There a broker can't say that it lets only the main one publish."""
    chooser, main = await connect(mqtt_protocol="3.1.1")
    clog(main)
    assert main.backlog > 256
    assert chooser.for_reply(main) is main
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "mqtt outbound"]


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


async def with_further(chooser: Outbound, main: Link) -> Link:
    """A further connection, once there is one."""
    async with asyncio.timeout(10):
        while (chosen := chooser.for_reply(main)) is main:
            clog(main)
            await asyncio.sleep(0)
    return chosen


async def test_command_follows_the_one_before_it_to_the_same_topic(connect):
    chooser, main = await connect()
    settled = chooser.under_way("devices/a/control", main)
    await with_further(chooser, main)
    assert chooser.for_command(main, "devices/b/control") is not main
    assert chooser.for_command(main, "devices/a/control") is main
    settled(0)
    assert chooser.for_command(main, "devices/a/control") is not main


async def test_refused_command_has_those_after_it_go_by_the_main_connection(connect):
    chooser, main = await connect()
    chooser.under_way("devices/a/control", main)(0x87)
    another = await with_further(chooser, main)
    assert chooser.for_command(main, "devices/a/control") is not main
    chooser.under_way("devices/a/control", another)(0x87)
    assert chooser.for_command(main, "devices/a/control") is main
    assert chooser.for_reply(main) is not main


async def test_lost_connection_is_not_chosen(connect):
    chooser, main = await connect()
    for _ in range(8):
        further = await with_further(chooser, main)
        await further.drop()
        assert chooser.for_reply(main) is not further
        assert chooser.for_command(main, "devices/a/control") is not further
