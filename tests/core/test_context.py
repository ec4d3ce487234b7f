"""What a call promises of the commands that it sends, with a publisher that the test holds back."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from bridge.core.context import Call, Services
from bridge.devices.models import DeviceProfile
from bridge.errors import RequestTimeout
from bridge.settings import Settings

DEVICE = DeviceProfile("d", "a device", True, None, None, None)
COMMAND = {"cmd": "led"}


class SlowBroker:
    """Takes no command until it is told to."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[int]] = []
        self.expires: list[float] = []

    def hand_over(self, topic: str, payload: bytes, expires: float, on_left: Any) -> Any:
        del topic, payload, on_left
        self.waiting.append(asyncio.get_running_loop().create_future())
        self.expires.append(expires)
        return self.waiting[-1]


@pytest.fixture
async def broker() -> SlowBroker:
    return SlowBroker()


@pytest.fixture
async def services(broker: SlowBroker) -> Services:
    nothing: Any = None
    return Services(Settings(_env_file=None), nothing, broker, nothing)


def call_of(services: Services, seconds: float) -> Call:
    nothing: Any = None
    return Call(services, time.monotonic() + seconds, nothing, nothing)


async def test_command_whose_call_is_cancelled_as_its_turn_comes_never_leaves(services, broker):
    """Else it would leave after its requester was told that nothing was sent."""
    call = call_of(services, 10)
    with services.lines.place("d") as first, services.lines.place("d") as second:
        sending = asyncio.create_task(call.send(DEVICE, COMMAND, second))
        await asyncio.sleep(0)
        first.give_up()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    assert [waiting.cancelled() for waiting in broker.waiting] == [True]
    assert not call.sent


async def test_command_expires_with_its_call_or_earlier(services, broker):
    for seconds in (5, 1000):
        await call_of(services, seconds).send(DEVICE, COMMAND, None)
    short, long = (expires - time.monotonic() for expires in broker.expires)
    assert 4 < short <= 5
    assert 29 < long <= services.settings.control_expiry


async def test_nothing_is_handed_over_past_the_deadline(services, broker):
    with pytest.raises(RequestTimeout):
        await call_of(services, -1).send(DEVICE, COMMAND, None)
    assert not broker.waiting
