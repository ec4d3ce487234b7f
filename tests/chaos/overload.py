"""Overload: twice what the bridge can do, on both transports, and a flood behind a stalled one.

Load generator, broker, database and device share the machine with the bridge, and the more they
take, the less it can do: so the generators are small programs in C, and the device is not ours.
"""

from __future__ import annotations

import asyncio
import json
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlencode

from tests.chaos.findings import Findings, in_ms
from tests.chaos.load import MqttLoad, Outcome, Times, http_request
from tests.chaos.native import http_load, mqtt_load
from tests.chaos.site import Site, open_site
from tests.lab.platform import BOARD_A
from tests.lab.servers import program

MAX_IN_FLIGHT = 256
CONTROL = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
READING = {"device_uuid": BOARD_A, "sensor": "temperature"}
# The cheapest of all, the dearest, and one that waits for the broker.
REQUESTS: dict[str, dict[str, Any]] = {
    "sensor-data": READING,
    "control": CONTROL,
    "batch": {"requests": [{"operation": "sensor-data", **READING}] * 100},
}
# Over MQTT each command has an id; the outcomes that are kept under them are no growth.
_FORGETFUL = {"DEDUP_TTL": "1", "REQUEST_TIMEOUT": "3"}

# More than max_inflight_messages (20) and max_queued_messages (1000) of a broker as it comes.
FLOOD = 3000
GENEROUS = ("max_inflight_messages 0", "max_queued_messages 0")
_PATIENCE = 30.0
_ACCEPTABLE = {200, 429}


async def overload(
    *,
    seconds: float = 30.0,
    operation: str = "batch",
    strict: bool = True,
    broker_lines: Sequence[str] = (),
) -> Findings:
    """Twice the measured capacity over HTTP, then over MQTT, for so long each.

    Unless it is ``strict``, only what holds on the busiest of machines is judged.
    """
    fields = REQUESTS[operation]
    findings = Findings()
    settings = {"LOG_LEVEL": "ERROR", "MAX_IN_FLIGHT": str(MAX_IN_FLIGHT), **_FORGETFUL}
    async with (
        open_site(tapped=False, broker_lines=broker_lines, **settings) as site,
        _cheap_devices(site),
    ):
        url, request = site.bridges[0].url, _over_http(operation, fields)

        async def over_http(seconds: float, per_second: float = 0) -> Outcome:
            connections = 4 * MAX_IN_FLIGHT if per_second else 64
            return await http_load(
                url, request, connections=connections, seconds=seconds, per_second=per_second
            )

        await _twice("HTTP", over_http, site, findings, seconds, strict)

        async def over_mqtt(seconds: float, per_second: float = 0) -> Outcome:
            payload = json.dumps(fields).encode()
            return await mqtt_load(
                site.broker, operation, payload, seconds=seconds, per_second=per_second
            )

        if operation == "sensor-data" and not broker_lines:
            # Mosquitto has no time left for us then: see docs/guarantees.md.
            return findings
        await _twice("MQTT", over_mqtt, site, findings, seconds, strict)
        await _expect_well(site, findings)
    return findings


class Generator(Protocol):
    """Loads the bridge for so long, at a pace or as fast as 64 can."""

    async def __call__(self, seconds: float, per_second: float = 0) -> Outcome: ...


def _over_http(operation: str, fields: dict[str, Any]) -> bytes:
    if operation == "sensor-data":
        return http_request("GET", f"/api/sensor-data?{urlencode(fields)}")
    return http_request("POST", f"/api/{operation}", fields)


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


async def _twice(
    name: str, load: Generator, site: Site, findings: Findings, seconds: float, strict: bool
) -> None:
    bridge = site.bridges[0]
    await load(min(2, seconds))
    capacity = (await load(min(5, seconds))).per_second
    # What the flood itself keeps (connections, buffers) is there before it is measured.
    await load(min(2, seconds), 2 * capacity)
    before = bridge.rss_bytes
    outcome = await load(seconds, 2 * capacity)
    growth = bridge.rss_bytes / before - 1
    findings.figures |= {
        f"{name}: capacity": f"{capacity:.0f}/s",
        f"{name}: asked": f"{2 * capacity:.0f}/s for {seconds} s, late by {in_ms(outcome.late)}",
        f"{name}: codes": outcome.codes,
        f"{name}: accepted": _told(outcome.times.get(200)),
        f"{name}: refused": _told(outcome.times.get(429)),
        f"{name}: RSS grew by": f"{growth:.1%}",
    }
    findings.expect(set(outcome.codes) <= _ACCEPTABLE, f"{name}: answered {outcome.codes}")
    findings.expect(outcome.unanswered == 0, f"{name}: {outcome.unanswered} unanswered")
    # Over MQTT the broker hands over all it has: what waits for its turn waits with us.
    most = 0.1 if strict and name == "HTTP" else 0.5
    findings.expect(growth < most, f"{name}: RSS grew by {growth:.1%}")
    if strict and name == "HTTP":
        _judge_times(outcome, capacity, findings)


def _judge_times(outcome: Outcome, capacity: float, findings: Findings) -> None:
    bound = 2 * MAX_IN_FLIGHT / capacity
    findings.figures["HTTP: bound on the p99 of what is accepted"] = in_ms(bound)
    accepted, refused = outcome.times[200].p99, outcome.times.get(429)
    findings.expect(accepted <= bound, f"accepted p99 {in_ms(accepted)} > {in_ms(bound)}")
    if refused is not None:
        late = refused.p99
        findings.expect(late <= 0.05, f"429 came after {in_ms(late)} (p99)")


def _told(times: Times | None) -> str:
    if times is None:
        return "none"
    return f"p50 {in_ms(times.p50)}, p99 {in_ms(times.p99)}, max {in_ms(times.longest)}"


async def _expect_well(site: Site, findings: Findings) -> None:
    async with asyncio.timeout(10), MqttLoad(site.broker) as load:
        reply = await load.ask("sensor-data", READING)
    findings.expect(reply["code"] == 200, f"afterwards a reading was answered {reply}")
    findings.expect(await asyncio.to_thread(lambda: site.bridges[0].ready), "not ready afterwards")


async def flood_behind_a_stalled_request(
    *, seconds: float = 5.0, broker_lines: Sequence[str] = (), count: int = FLOOD
) -> Findings:
    """A flood while the database stands still: whatever is asked is answered, 200 or 429."""
    findings = Findings()
    patient = {"DB_TIMEOUT": str(seconds + 10), "REQUEST_TIMEOUT": str(seconds + 10)}
    async with (
        open_site(broker_lines=broker_lines, tapped=False, LOG_LEVEL="ERROR", **patient) as site,
        MqttLoad(site.broker) as load,
    ):
        site.database.pause()
        frozen = time.monotonic()
        stalled = asyncio.create_task(load.ask("sensor-data", READING))
        asking = [asyncio.create_task(load.ask("sensor-data", READING)) for _ in range(count)]
        asking += [asyncio.create_task(load.ask("health", {})) for _ in range(count)]
        # All but those that the bridge holds are answered while the database stands.
        while sum(task.done() for task in asking) < 2 * count - MAX_IN_FLIGHT:
            await asyncio.sleep(0.02)
            if time.monotonic() - frozen > seconds + 5:
                break
        took = time.monotonic() - frozen
        findings.expect(not stalled.done(), "the request that was to stall did not")
        await asyncio.sleep(max(0.0, seconds - took))
        site.database.resume()
        await asyncio.wait([stalled, *asking], timeout=_PATIENCE)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        codes = [task.result()["code"] for task in asking if not task.cancelled()]
        counted = {code: codes.count(code) for code in sorted(set(codes))}
        findings.figures |= {
            "flood": f"{2 * count} requests behind one that stalled for {seconds} s",
            "answered before it went on": f"{2 * count - MAX_IN_FLIGHT} within {took:.2f} s",
            "codes": counted,
        }
        findings.expect(len(codes) == 2 * count, f"{2 * count - len(codes)} unanswered")
        findings.expect(set(counted) <= _ACCEPTABLE, f"answered {counted}")
        findings.expect(stalled.done() and stalled.result()["code"] == 200, "the stalled one fell")
        findings.expect(load.unexpected == 0, f"{load.unexpected} answers too many")
    return findings
