"""What the promises depend on: each case takes one thing away, and counts what no longer holds."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.chaos.findings import Findings
from tests.chaos.load import MqttLoad, http_request
from tests.chaos.site import FORGETFUL, Site, open_site
from tests.chaos.watch import ask_anew
from tests.lab.mqtt import Connection, Message
from tests.lab.platform import BOARD_A

_MEMORY, _MYSQL = "memory", "mysql"
_READING = {"device_uuid": BOARD_A, "sensor": "temperature"}
# Longer than any answer takes that comes at all.
_LONGEST = 3.0


async def limits() -> Findings:
    """Told, but for what holds by the advice that stands beside it."""
    findings = Findings()
    for store in (_MEMORY, _MYSQL):
        findings.figures[f"two bridges without a share, {store}"] = await _without_share(store)
        counted = await _two_workers(store)
        findings.figures[f"two workers, 30 ids asked four times each, {store}"] = counted
        counted = await _killed_bridge(store)
        findings.figures[f"bridge killed, 5 ids asked again, {store}"] = counted
        findings.expect(store == _MEMORY or "5 left once" in counted, f"{store}: {counted}")
    for name, lines in (("0", (FORGETFUL,)), ("1", ())):
        counted = await _killed_database(lines)
        findings.figures[f"database and bridge killed, flush_log_at_trx_commit={name}"] = counted
        findings.expect(name == "0" or "5 left once" in counted, f"durable: {counted}")
    for protocol in ("5", "3.1.1"):
        findings.figures[f"command to a device that is absent, MQTT {protocol}"] = await _absent(
            protocol
        )
    for expiry in ("30", "0"):
        counted = await _dead_member(expiry)
        findings.figures[f"one of two bridges killed, MQTT_SESSION_EXPIRY={expiry}"] = counted
        findings.expect(expiry != "0" or counted == "20 of 20 answered", f"expiry 0: {counted}")
    return findings


async def _without_share(store: str) -> str:
    async with _asking(bridges=2, DEDUP_STORE=store, MQTT_SHARE="") as (site, mqtt):
        await asyncio.gather(*(mqtt.ask("control", _command(number)) for number in range(10)))
        # The second replies may still be on their way.
        await asyncio.sleep(1)
        return f"10 commands: {_departures(site)}; {mqtt.unexpected} second replies"


async def _two_workers(store: str) -> str:
    async with _asking(DEDUP_STORE=store, WORKERS="2") as (site, _):
        asked = [
            ask_anew(site.bridges[0].url, http_request("POST", "/api/control", _command(number)))
            for number in range(30)
            for _ in range(4)
        ]
        codes = Counter(status for status, _ in await asyncio.gather(*asked))
        return f"{_departures(site)}; answered {dict(codes)}"


async def _killed_bridge(store: str) -> str:
    async with _asking(DEDUP_STORE=store) as (site, mqtt):
        await _ask_five(mqtt)
        await asyncio.to_thread(site.bridges[0].kill)
        await asyncio.to_thread(site.bridges[0].start)
        await _ask_five(mqtt)
        return _departures(site)


async def _killed_database(lines: Sequence[str]) -> str:
    async with _asking(database_lines=lines, DEDUP_STORE=_MYSQL) as (site, mqtt):
        await _ask_five(mqtt)
        for server in (site.database, site.bridges[0]):
            await asyncio.to_thread(server.kill)
        for server in (site.database, site.bridges[0]):
            await asyncio.to_thread(server.start)
        await _ask_five(mqtt)
        return _departures(site)


async def _absent(protocol: str) -> str:
    # The tap reads MQTT 5.
    async with open_site(tapped=False, MQTT_PROTOCOL=protocol) as site:
        url = site.bridges[0].url
        await site.classroom.unsubscribe("devices/+/control")
        alone, _ = await ask_anew(url, http_request("POST", "/api/control", _command(1)))
        async with _Logger(site.broker) as logger:
            await logger.subscribe("devices/#")
            beside, _ = await ask_anew(url, http_request("POST", "/api/control", _command(2)))
        return f"{alone}; with a logger on devices/#: {beside}"


class _Logger(Connection):
    """Hears everything, and says nothing."""

    def received(self, message: Message) -> None:
        del message


async def _dead_member(expiry: str) -> str:
    async with _asking(bridges=2, MQTT_SESSION_EXPIRY=expiry) as (site, mqtt):
        await asyncio.to_thread(site.bridges[0].kill)
        asking = [asyncio.create_task(mqtt.ask("sensor-data", _READING)) for _ in range(20)]
        answered, unanswered = await asyncio.wait(asking, timeout=_LONGEST)
        for task in unanswered:
            task.cancel()
        await asyncio.gather(*unanswered, return_exceptions=True)
        return f"{len(answered)} of {len(asking)} answered"


@asynccontextmanager
async def _asking(**options: Any) -> AsyncIterator[tuple[Site, MqttLoad]]:
    async with open_site(**options) as site, MqttLoad(site.broker) as mqtt:
        yield site, mqtt


async def _ask_five(mqtt: MqttLoad) -> None:
    await asyncio.gather(*(mqtt.ask("control", _command(number)) for number in range(5)))


def _command(number: int) -> dict[str, object]:
    """Under an id of its own, and told from others by its frequency."""
    port = {"port_type": "pwm", "port_id": 1, "action": "set", "value": 50}
    return {
        "device_uuid": BOARD_A,
        **port,
        "frequency": 1000 + number,
        "request_id": f"limit-{number}",
    }


def _departures(site: Site) -> str:
    times = Counter(site.left().values())
    names = {1: "once", 2: "twice"}
    return ", ".join(
        f"{count} left {names.get(often, f'{often} times')}"
        for often, count in sorted(times.items())
    )
