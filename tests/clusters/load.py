"""Requests at a steady rate, asked again with the same id while no answer comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.lab.board import Board
from tests.lab.platform import BOARD_A
from tests.lab.requester import Requester

_FIRST_FREQUENCY = 1000
# Of commands that are not counted.
OTHER_FREQUENCY = 500
# Codes by which a request is asked again: nothing was executed.
_AGAIN = {429, 503}
# Seconds for an answer, longer each time: a cluster that has just lost a node is slow, and would
# drown in requests that are asked again.
_FIRST_WAIT, _LONGEST_WAIT = 3.0, 12.0


@dataclass
class Tally:
    """What became of the requests."""

    codes: Counter[object] = field(default_factory=Counter)
    # Asked more than once.
    retried: int = 0
    slowest: float = 0.0
    # Codes that were answered on the way to the last one.
    passing: Counter[object] = field(default_factory=Counter)

    def __str__(self) -> str:
        codes = ", ".join(f"{count} x {code}" for code, count in self.codes.items())
        passing = ", ".join(f"{count} x {code}" for code, count in self.passing.items())
        return (
            f"answers: {codes}; asked again: {self.retried}"
            + (f" (after {passing})" if passing else "")
            + f"; slowest {self.slowest:.1f} s"
        )


async def at_rate(rate: float, until: asyncio.Event, ask: Callable[[int], Awaitable[None]]) -> int:
    """Call `ask` with 0, 1, 2, … so many times a second, until told; wait for all; how many."""
    started = time.monotonic()
    number = 0
    async with asyncio.TaskGroup() as tasks:
        while not until.is_set():
            tasks.create_task(ask(number))
            number += 1
            await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
    return number


def commands(
    requester: Requester, tally: Tally, *, within: float = 45.0
) -> Callable[[int], Awaitable[None]]:
    """Commands to board A, each with an id and a frequency of its own."""
    run = os.urandom(4).hex()

    async def ask(number: int) -> None:
        fields = {
            "device_uuid": BOARD_A,
            "port_type": "pwm",
            "port_id": 1,
            "action": "set",
            "value": 50,
            "frequency": _FIRST_FREQUENCY + number,
            "request_id": f"{run}-{number}",
        }
        await _until_answered(requester, "control", fields, tally, within)

    return ask


async def _until_answered(
    requester: Requester, operation: str, fields: dict[str, object], tally: Tally, within: float
) -> None:
    started = time.monotonic()
    code: object = "none"
    tries = 0
    wait = _FIRST_WAIT
    while time.monotonic() - started < within:
        tries += 1
        try:
            reply = await requester.ask(operation, fields, timeout=wait)
            code = reply.code
            if code not in _AGAIN:
                break
            tally.passing[code] += 1
            await asyncio.sleep(0.3)
        except (TimeoutError, ConnectionError):
            tally.passing["no answer"] += 1
            wait = min(2 * wait, _LONGEST_WAIT)
            with contextlib.suppress(TimeoutError):
                await requester.online(within)
    tally.codes[code] += 1
    tally.retried += tries > 1
    tally.slowest = max(tally.slowest, time.monotonic() - started)


def executed(board: Board) -> Counter[int]:
    """How often each command of `commands` arrived, by its frequency."""
    frequencies = (json.loads(command.payload)["frequency"] for command in board.commands)
    return Counter(frequency for frequency in frequencies if frequency != OTHER_FREQUENCY)
