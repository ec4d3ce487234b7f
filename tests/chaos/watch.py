"""Watched beside an HTTP load: /livez, the memory of the bridge, the deadlines of commands."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.findings import Findings, in_ms, percentile
from tests.chaos.load import HttpConnection, http_request
from tests.chaos.site import Site, mark_of
from tests.lab.platform import BOARD_A

LIVEZ = http_request("GET", "/livez")

_LIVEZ_EVERY, _CONTROL_EVERY, _MEMORY_EVERY = 0.1, 0.05, 0.25
# An answer that takes longer counts as none.
_LONGEST = 10.0
# time.time() is read on both sides, in microseconds.
_CLOCKS = 0.002


async def ask_anew(url: str, request: bytes) -> tuple[int, float]:
    """Ask over a connection of its own: the status (0 for no answer), and how long it all took."""
    began = time.monotonic()
    connection = HttpConnection()
    status = 0
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_LONGEST):
            await connection.connect(url)
            status, _ = await connection.ask(request)
    connection.close()
    return status, time.monotonic() - began


@dataclass
class Watch:
    """What was seen since it began. Status 0 is no answer."""

    site: Site
    livez: list[tuple[int, float]] = field(default_factory=list)
    controls: Counter[int] = field(default_factory=Counter)
    # By the mark that a command bears: Unix seconds.
    deadlines: dict[str, float] = field(default_factory=dict)
    most_memory: int = 0

    def judge_livez(self, findings: Findings, name: str, most: float | None) -> None:
        """Tell how long /livez took; it is to be answered 200 within ``most`` seconds."""
        times = [seconds for _, seconds in self.livez]
        findings.figures[f"{name}: /livez, {len(times)} new connections"] = (
            f"p50 {in_ms(percentile(times, 0.5))}, max {in_ms(max(times, default=0.0))}"
        )
        if most is not None:
            findings.expect_none(
                [
                    f"{status} after {in_ms(seconds)}"
                    for status, seconds in self.livez
                    if status != 200 or seconds > most
                ],
                f"{name}: /livez not answered 200 within {in_ms(most)}",
            )

    def judge_memory(self, findings: Findings, name: str, before: int, most: float) -> None:
        """The memory may grow by that share."""
        growth = self.most_memory / before - 1
        findings.figures[f"{name}: memory"] = f"{before / 2**20:.1f} MiB, at most {growth:+.1%}"
        findings.expect(growth <= most, f"{name}: memory grew by {growth:.1%}")

    def judge_deadlines(self, findings: Findings, name: str) -> None:
        """No command with a deadline left after it."""
        margins = [
            (one.at - self.deadlines[mark], mark)
            for one in self.site.tap.departures
            if (mark := mark_of(one.topic, one.command)[0]) in self.deadlines
        ]
        findings.figures[f"{name}: controls that expire soon"] = (
            f"{sum(self.controls.values())} answered {dict(sorted(self.controls.items()))}"
            f", {len(margins)} left"
        )
        allowed = self.site.tap.lag + _CLOCKS
        findings.figures[f"{name}: the tap was late by at most"] = in_ms(self.site.tap.lag)
        findings.expect_none(
            [f"{mark} by {in_ms(margin)}" for margin, mark in margins if margin > allowed],
            f"{name}: commands that left after their deadline",
        )


@asynccontextmanager
async def watch(site: Site) -> AsyncIterator[Watch]:
    """Watch from here to the end of the block."""
    seen = Watch(site)
    async with asyncio.TaskGroup() as group:
        repeated = [
            group.create_task(_repeat(group, every, look, seen), name=look.__name__)
            for look, every in (
                (_ask_livez, _LIVEZ_EVERY),
                (_ask_control, _CONTROL_EVERY),
                (_look_at_memory, _MEMORY_EVERY),
            )
        ]
        try:
            yield seen
        finally:
            for task in repeated:
                task.cancel()


async def _repeat(
    group: asyncio.TaskGroup,
    every: float,
    look: Callable[[Watch], Coroutine[Any, Any, None]],
    seen: Watch,
) -> None:
    while True:
        group.create_task(look(seen))
        await asyncio.sleep(every)


async def _ask_livez(seen: Watch) -> None:
    seen.livez.append(await ask_anew(seen.site.bridges[0].url, LIVEZ))


async def _ask_control(seen: Watch) -> None:
    number = next(_numbers)
    expires_at = time.time() + random.uniform(0.02, 1.0)
    seen.deadlines[f"pwm {number}"] = expires_at
    fields = {
        "device_uuid": BOARD_A,
        "port_type": "pwm",
        "port_id": 1,
        "action": "set",
        "value": 50,
        "frequency": number,
        "expires_at": expires_at,
    }
    request = http_request("POST", "/api/control", fields)
    status, _ = await ask_anew(seen.site.bridges[0].url, request)
    seen.controls[status] += 1


async def _look_at_memory(seen: Watch) -> None:
    seen.most_memory = max(seen.most_memory, seen.site.bridges[0].rss_bytes)


# A command's number tells it from all others of this process.
_numbers = itertools.count(1)
