"""Floods over MQTT: twice what the bridge can do, and one behind a request that is stalled.

What the broker keeps for a slow client is limited, and what is beyond that it drops, although it
has acknowledged it to its sender. So each flood is told with the broker that it was sent to: a
Mosquitto with the limits of the sample configuration, or one as it comes.
"""

from __future__ import annotations

import asyncio
import json
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.chaos.findings import Findings, in_ms
from tests.chaos.load import MqttLoad, Outcome
from tests.chaos.native import mqtt_load
from tests.chaos.overload import told
from tests.chaos.site import Site, open_site
from tests.lab.bridge import PROJECT
from tests.lab.platform import BOARD_A
from tests.lab.servers import program

AS_IT_COMES = ()
SAMPLE = tuple(
    line
    for line in (PROJECT / "deploy/mosquitto/mosquitto.conf").read_text().splitlines()
    if line.startswith("max_")
)
"""The limits of the sample configuration; who may log in is no matter here."""

CONTROL = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
READING = {"device_uuid": BOARD_A, "sensor": "温度"}
# One that waits for the broker, the dearest, and the cheapest of all.
REQUESTS: dict[str, dict[str, Any]] = {
    "control": CONTROL,
    "batch": {"requests": [{"operation": "sensor-data", **READING}] * 100},
    "sensor-data": READING,
}
# Each command has an id; the outcomes that are kept under them are no growth.
_FORGETFUL = {"DEDUP_TTL": "1", "REQUEST_TIMEOUT": "3"}

# More than max_inflight_messages (20) and max_queued_messages (1000) of a broker as it comes.
FLOOD = 3000
_MAX_IN_FLIGHT = 256
_LAST_WAIT = 30.0
_ACCEPTABLE = frozenset({200, 429})
# Over MQTT the broker hands over all it has: what waits for its turn waits with us.
_MOST_GROWTH = 0.5
# How many halvings of the rate that holds; the first step is twice the capacity.
_HALVINGS = 4


async def flood(
    *, operation: str, broker_lines: Sequence[str] = SAMPLE, seconds: float = 30.0
) -> Findings:
    """Twice the measured capacity for so long: every request is answered 200 or 429."""
    findings = Findings()
    async with _open_site(broker_lines) as site:
        ask = _Asking(site, operation)
        capacity = await ask.capacity(min(5, seconds), findings)
        # What the flood itself keeps (buffers) is there before it is measured.
        await ask.at(2 * capacity, min(2, seconds))
        before = site.bridges[0].rss_bytes
        outcome = await ask.at(2 * capacity, seconds)
        growth = site.bridges[0].rss_bytes / before - 1
        findings.figures |= {
            "asked": f"{2 * capacity:.0f}/s for {seconds:.0f} s, late by {in_ms(outcome.late)}",
            "codes": outcome.codes,
            **{f"{code} after": told(times) for code, times in outcome.times.items()},
            "accepted": f"{outcome.per_second:.0f}/s, {outcome.per_second / capacity:.0%}",
            "memory": f"{before / 2**20:.1f} MiB, then {growth:+.1%}",
        }
        findings.expect(set(outcome.codes) <= _ACCEPTABLE, f"answered {outcome.codes}")
        findings.expect(outcome.unanswered == 0, f"{outcome.unanswered} unanswered")
        findings.expect(growth < _MOST_GROWTH, f"memory grew by {growth:.1%}")
        await _expect_well(site, findings)
    return findings


async def highest_rate(
    *, operation: str, broker_lines: Sequence[str] = AS_IT_COMES, seconds: float = 10.0
) -> Findings:
    """The rate up to which every request is answered 200 or 429, by halving; told, not judged."""
    findings = Findings()
    async with _open_site(broker_lines) as site:
        ask = _Asking(site, operation)
        capacity = await ask.capacity(min(5, seconds), findings)
        held, failed = 0.0, 4 * capacity
        rate = 2 * capacity
        for _ in range(_HALVINGS):
            outcome = await ask.at(rate, seconds)
            holds = outcome.unanswered == 0 and set(outcome.codes) <= _ACCEPTABLE
            findings.figures[f"{rate:.0f}/s for {seconds:.0f} s"] = (
                f"{'holds' if holds else 'DROPPED'}: {outcome.codes}, "
                f"{outcome.unanswered} unanswered, the slowest after {in_ms(outcome.longest)}"
            )
            held, failed = (rate, failed) if holds else (held, rate)
            rate = (held + failed) / 2
            await _expect_well(site, findings)
        findings.figures["holds up to"] = f"{held:.0f}/s, {held / capacity:.2f} x the capacity"
    return findings


class _Asking:
    """Asks one thing, again and again."""

    def __init__(self, site: Site, operation: str) -> None:
        self._broker = site.broker
        self._operation = operation
        self._payload = json.dumps(REQUESTS[operation]).encode()

    async def capacity(self, seconds: float, findings: Findings) -> float:
        """What is answered a second with 64 at a time."""
        await self.at(0, min(2, seconds))
        capacity = (await self.at(0, seconds)).per_second
        findings.figures["capacity"] = f"{capacity:.0f}/s, 64 at a time"
        return capacity

    async def at(self, rate: float, seconds: float) -> Outcome:
        return await mqtt_load(
            self._broker, self._operation, self._payload, seconds=seconds, per_second=rate
        )


@asynccontextmanager
async def _open_site(broker_lines: Sequence[str]) -> AsyncIterator[Site]:
    settings = {"LOG_LEVEL": "ERROR", "MAX_IN_FLIGHT": str(_MAX_IN_FLIGHT), **_FORGETFUL}
    async with (
        open_site(tapped=False, broker_lines=broker_lines, **settings) as site,
        _cheap_devices(site),
    ):
        yield site


@asynccontextmanager
async def _cheap_devices(site: Site) -> AsyncIterator[None]:
    """All devices in a process that costs next to nothing, in place of the site's own."""
    await site.classroom.unsubscribe("devices/+/control")
    address = ["-h", site.broker.host, "-p", str(site.broker.port)]
    devices = await asyncio.create_subprocess_exec(
        program("mosquitto_sub"), *address, "-q", "1", "-t", "devices/+/control", stdout=DEVNULL
    )
    try:
        await _until_heard(site)
        yield
    finally:
        devices.terminate()
        await devices.wait()


async def _until_heard(site: Site) -> None:
    async with asyncio.timeout(10), MqttLoad(site.broker) as load:
        while (await load.ask("control", CONTROL))["code"] != 200:
            await asyncio.sleep(0.05)


async def _expect_well(site: Site, findings: Findings) -> None:
    async with asyncio.timeout(10), MqttLoad(site.broker) as load:
        reply = await load.ask("sensor-data", READING)
    findings.expect(reply["code"] == 200, f"afterwards a reading was answered {reply}")
    findings.expect(await asyncio.to_thread(lambda: site.bridges[0].ready), "not ready afterwards")


async def flood_behind_a_stalled_request(
    *, seconds: float = 5.0, broker_lines: Sequence[str] = SAMPLE, count: int = FLOOD
) -> Findings:
    """A flood while the database stands still: whatever is asked is answered, 200 or 429."""
    findings = Findings()
    long_limits = {"DB_TIMEOUT": str(seconds + 10), "REQUEST_TIMEOUT": str(seconds + 10)}
    async with (
        open_site(
            broker_lines=broker_lines, tapped=False, LOG_LEVEL="ERROR", **long_limits
        ) as site,
        MqttLoad(site.broker) as load,
    ):
        site.database.pause()
        frozen = time.monotonic()
        stalled = asyncio.create_task(load.ask("sensor-data", READING))
        asking = [asyncio.create_task(load.ask("sensor-data", READING)) for _ in range(count)]
        asking += [asyncio.create_task(load.ask("health", {})) for _ in range(count)]
        # All but those that the bridge holds are answered while the database stands.
        while sum(task.done() for task in asking) < 2 * count - _MAX_IN_FLIGHT:
            await asyncio.sleep(0.02)
            if time.monotonic() - frozen > seconds + 5:
                break
        took = time.monotonic() - frozen
        findings.expect(not stalled.done(), "the request that was to stall did not")
        await asyncio.sleep(max(0.0, seconds - took))
        site.database.resume()
        await asyncio.wait([stalled, *asking], timeout=_LAST_WAIT)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        codes = [task.result()["code"] for task in asking if not task.cancelled()]
        counted = {code: codes.count(code) for code in sorted(set(codes))}
        findings.figures |= {
            "flood": f"{2 * count} requests behind one that stalled for {seconds} s",
            "answered before it went on": f"{2 * count - _MAX_IN_FLIGHT} within {took:.2f} s",
            "codes": counted,
        }
        findings.expect(len(codes) == 2 * count, f"{2 * count - len(codes)} unanswered")
        findings.expect(set(counted) <= _ACCEPTABLE, f"answered {counted}")
        findings.expect(stalled.done() and stalled.result()["code"] == 200, "the stalled one fell")
        findings.expect(load.unexpected == 0, f"{load.unexpected} answers too many")
    return findings
