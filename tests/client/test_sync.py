"""The blocking client: the same calls as the other, from plain threads, against the real bridge."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest

from bridge.client import BridgeClient as AsyncClient
from bridge.client import CallError, DeviceList, NotConnected, Refused
from bridge.client.sync import BridgeClient
from bridge.devices.models import ControlResult, Reading, SequenceResult
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Broker, Endpoint
from tests.lab.platform import BOARD_A, NAMES, ORDINARY_PRESET, SEQUENCE, UNKNOWN_BOARD
from tests.lab.servers import LOOPBACK, free_port


def url_of(broker: Broker) -> str:
    return f"mqtt://{broker.host}:{broker.port}"


@pytest.fixture
def client(bridge, mosquitto: Mosquitto) -> Iterator[BridgeClient]:
    with BridgeClient(url_of(mosquitto)) as client:
        yield client


def public_calls(kind: type) -> dict[str, Callable[..., Any]]:
    return {
        name: call
        for name, call in vars(kind).items()
        if inspect.isfunction(call) and not name.startswith("_")
    }


def test_calls_and_arguments_are_those_of_the_other_client():
    ours, theirs = public_calls(BridgeClient), public_calls(AsyncClient)
    assert set(ours) == set(theirs)
    for name in ("__init__", *ours):
        assert inspect.signature(getattr(BridgeClient, name)) == inspect.signature(
            getattr(AsyncClient, name)
        )


def test_replies_are_typed(client):
    assert isinstance(client.sensor_data(BOARD_A, "温度"), Reading)
    assert client.device(BOARD_A).device_uuid == BOARD_A
    assert client.health().mqtt
    assert "control" in [row.operation for row in client.operations()]
    assert client.call("sensor-data", device_uuid=BOARD_A, sensor="湿度")["value"] == 61
    assert client.request("device")["code"] == 422
    batch = client.batch([{"operation": "device", "device_uuid": UNKNOWN_BOARD}])
    assert [result["code"] for result in batch.results] == [404]


def test_devices_are_listed_page_by_page(private_bridge):
    bridge = private_bridge(DEVICE_LIST="open")
    with BridgeClient(url_of(bridge.broker)) as client:
        found, cursor = [], None
        while True:
            page = client.devices(limit=2, cursor=cursor)
            assert isinstance(page, DeviceList)
            found += page.devices
            cursor = page.next_cursor
            if cursor is None:
                break
        assert {device.device_uuid: device.name for device in found} == NAMES
        (only,) = client.devices(NAMES[BOARD_A], room="101", group="一班", online=True).devices
        assert only.device_uuid == BOARD_A
        assert isinstance(only.last_seen, datetime)


def test_list_that_is_not_open_is_refused(client):
    with pytest.raises(Refused) as refused:
        client.devices()
    assert refused.value.error == "forbidden"


async def test_commands_reach_the_board(client, board):
    listening = await board(BOARD_A)

    def command() -> list[Any]:
        return [
            client.control(BOARD_A, port_type="led", port_id=1, action="on"),
            client.preset(BOARD_A, ORDINARY_PRESET, {"count": 5}),
            client.preset(BOARD_A, SEQUENCE),
        ]

    switched, _, sequence = await asyncio.to_thread(command)
    assert isinstance(switched, ControlResult)
    assert isinstance(sequence, SequenceResult)
    assert (await listening.next_command()).json["cmd"] == "led"


def test_refusal_is_raised_in_the_thread_that_asked(client):
    with pytest.raises(Refused) as refused:
        client.device(UNKNOWN_BOARD)
    assert refused.value.error == "device_not_found"
    for wrong in (0, "5", True):
        with pytest.raises(ValueError, match="timeout="):
            client.health(timeout=wrong)
        with pytest.raises(ValueError, match="timeout="):
            BridgeClient("mqtt://localhost", timeout=wrong)


def test_threads_share_one_connection(client):
    def detail(number: int) -> str:
        with pytest.raises(Refused) as refused:
            client.sensor_data(BOARD_A, f"sensor-{number}-é")
        return refused.value.detail

    with ThreadPoolExecutor(20) as threads:
        details = list(threads.map(detail, range(200)))
    assert all(f"sensor-{number}-é" in told for number, told in enumerate(details))


async def test_client_works_beside_a_running_loop(client):
    """As in a notebook, whose cells run in a loop."""
    assert client.health().mqtt


def test_absent_broker_fails_the_start_and_leaves_no_thread():
    before = threading.active_count()
    with (
        pytest.raises(NotConnected, match="check that it runs"),
        BridgeClient(url_of(Endpoint(LOOPBACK, free_port()))),
    ):
        pass
    assert threading.active_count() == before


def test_bad_argument_is_told_before_anything_is_started():
    with pytest.raises(ValueError, match="mqtt://"):
        BridgeClient("localhost")


def test_call_outside_with_says_so(bridge, mosquitto):
    client = BridgeClient(url_of(mosquitto))
    with pytest.raises(NotConnected, match="inside `with`"):
        client.health()
    with client:
        assert client.health()
    with pytest.raises(NotConnected, match="inside `with`"):
        client.health()


def test_interrupted_call_ends_and_the_client_stays(client, monkeypatch):
    """Ctrl-C while a call waits, which raises in the main thread."""

    def interrupted(future: Future[Any], timeout: float | None = None) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Future, "result", interrupted)
        client.health()
    assert client.health()


def test_leaving_ends_the_calls_of_other_threads(private_mosquitto):
    client = BridgeClient(url_of(private_mosquitto()), protocol="3.1.1")
    failed: list[CallError] = []

    def ask() -> None:
        try:
            client.health(timeout=60)
        except CallError as error:
            failed.append(error)

    started = time.monotonic()
    with client:
        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join(10)
    assert len(failed) == 5
    assert time.monotonic() - started < 10


def test_connection_comes_back(private_bridge):
    bridge = private_bridge()
    with BridgeClient(url_of(bridge.broker)) as client:
        assert client.health()
        bridge.broker.restart()
        assert client.health(timeout=20)
