"""What an attempt promises of its commands, with a publisher that the test holds back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
import pytest

from bridge.core.attempt import NO_MATCHING_SUBSCRIBERS, CommandAttempt
from bridge.core.context import Drain, Services
from bridge.core.deadlines import Deadlines
from bridge.core.ordering import DeviceQueues
from bridge.devices.errors import DeviceUnreachable
from bridge.devices.models import DeviceProfile
from bridge.errors import RequestTimeout
from bridge.settings import Settings

DEVICE = DeviceProfile("d", "a device", True, None, None, None)
COMMAND = {"cmd": "led"}


class SlowBroker:
    """Takes no command until it is told to."""

    def __init__(self) -> None:
        self.handed = asyncio.Event()
        self.waiting: list[asyncio.Future[int]] = []
        self.expires: list[float] = []
        self.on_left: list[Any] = []

    def publish_command(self, topic: str, payload: bytes, expires: float, on_left: Any) -> Any:
        assert topic == "devices/d/control"
        assert orjson.loads(payload) == COMMAND
        self.waiting.append(asyncio.get_running_loop().create_future())
        self.expires.append(expires)
        self.on_left.append(on_left)
        self.handed.set()
        return self.waiting[-1]


@pytest.fixture
async def broker() -> SlowBroker:
    return SlowBroker()


@pytest.fixture
async def services(broker: SlowBroker) -> Services:
    nothing: Any = None
    return Services(
        Settings(_env_file=None),
        nothing,
        broker,
        nothing,
        DeviceQueues(),
        Drain(),
        Deadlines(),
    )


def attempt_of(services: Services, seconds: float) -> CommandAttempt:
    return CommandAttempt(services, time.monotonic() + seconds)


async def test_command_that_is_cancelled_as_its_turn_comes_never_leaves(services, broker):
    """Else it would leave after its requester was told that nothing was sent."""
    attempt = attempt_of(services, 10)
    with services.queues.place("d") as first, services.queues.place("d") as second:
        attempt.prepare(second, None)
        sending = asyncio.create_task(attempt.send(DEVICE, COMMAND))
        await asyncio.sleep(0)
        first.give_up()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    assert [waiting.cancelled() for waiting in broker.waiting] == [True]
    assert not attempt.has_left


@pytest.mark.parametrize(("seconds", "least", "most"), [(5, 4, 5), (1000, 29, 30)])
async def test_command_expires_with_its_request_or_earlier(services, broker, seconds, least, most):
    sending = asyncio.create_task(attempt_of(services, seconds).send(DEVICE, COMMAND))
    await broker.handed.wait()
    assert least < broker.expires[0] - time.monotonic() <= most
    broker.waiting[0].set_result(0)
    assert await sending == 0


async def test_nothing_is_handed_over_past_the_deadline(services, broker):
    with pytest.raises(RequestTimeout):
        await attempt_of(services, -1).send(DEVICE, COMMAND)
    assert not broker.waiting


async def test_command_that_reached_nobody_has_not_left(services, broker):
    attempt = attempt_of(services, 5)
    sending = asyncio.create_task(attempt.send(DEVICE, COMMAND))
    await broker.handed.wait()
    broker.on_left[0]()
    assert attempt.has_left
    broker.waiting[0].set_result(NO_MATCHING_SUBSCRIBERS)
    with pytest.raises(DeviceUnreachable):
        attempt.check(await sending, DEVICE)
    assert not attempt.has_left
