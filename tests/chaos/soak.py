"""Soak: mixed requests for long; memory and open files stay where they were."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

from tests.chaos.findings import Findings
from tests.chaos.load import HttpLoad, MqttLoad, http_request
from tests.chaos.site import open_site
from tests.lab.bridge import Bridge
from tests.lab.platform import BOARD_A, BOARD_B, BOARD_E, ORDINARY_PRESET

_AT_ONCE = 32
_SAMPLES = 10
_MIB = 1024 * 1024
# Ids are kept for the longest of these, and rightly take memory: they are to expire on the way.
_FORGETFUL = {"DEDUP_TTL": "1", "REQUEST_TIMEOUT": "2", "PRESET_TIMEOUT": "2"}


class Sample(NamedTuple):
    """What the bridge holds, while nothing is asked of it."""

    rss: int
    files: int
    threads: int
    in_flight: int


async def soak(*, requests: int = 500_000, most_growth: float = 0.1) -> Findings:
    """So many mixed requests over both transports, in ten parts with a look after each.

    ``most_growth`` is what memory may grow by, from the first part to the last.
    """
    findings = Findings()
    async with (
        open_site(tapped=False, LOG_LEVEL="ERROR", **_FORGETFUL) as site,
        HttpLoad(site.bridges[0].url) as http,
        AsyncExitStack() as connections,
    ):
        bridge = site.bridges[0]
        mqtt = [await connections.enter_async_context(MqttLoad(site.broker)) for _ in range(4)]
        codes: dict[int, int] = {}
        samples = []
        started = time.monotonic()
        each = max(1, requests // _SAMPLES)
        for part in range(_SAMPLES):
            await _part(range(part * each, (part + 1) * each), http, mqtt, codes)
            samples.append(await _look(bridge, http))
        took = time.monotonic() - started
    first, last = samples[0], samples[-1]
    growth = last.rss / first.rss - 1
    findings.figures |= {
        "requests": f"{each * _SAMPLES} in {took:.0f} s ({each * _SAMPLES / took:.0f}/s)",
        "codes": dict(sorted(codes.items())),
        "RSS in MiB": " ".join(f"{sample.rss / _MIB:.1f}" for sample in samples),
        "open files": " ".join(str(sample.files) for sample in samples),
        "threads": " ".join(str(sample.threads) for sample in samples),
    }
    findings.expect(set(codes) <= {200, 400, 404, 422}, f"answered {codes}")
    findings.expect(sum(codes.values()) == each * _SAMPLES, "some were not answered")
    findings.expect(growth < most_growth, f"RSS grew by {growth:.1%}")
    findings.expect(last.files <= first.files, f"open files: {first.files} to {last.files}")
    findings.expect(last.threads <= first.threads, f"threads: {first.threads} to {last.threads}")
    findings.expect(not any(s.in_flight for s in samples), "something stays in flight")
    return findings


async def _part(
    numbers: range, http: HttpLoad, mqtt: list[MqttLoad], codes: dict[int, int]
) -> None:
    left = iter(numbers)

    async def over_http() -> None:
        for number in left:
            method, path, fields = _http_mix(number)
            code, _ = await http.ask(http_request(method, path, fields))
            codes[code] = codes.get(code, 0) + 1

    async def over_mqtt(load: MqttLoad) -> None:
        for number in left:
            reply = await load.ask(*_mix(number))
            codes[reply["code"]] = codes.get(reply["code"], 0) + 1

    await asyncio.gather(
        *(over_http() for _ in range(_AT_ONCE)),
        *(over_mqtt(mqtt[number % len(mqtt)]) for number in range(_AT_ONCE)),
    )


def _mix(number: int) -> tuple[str, dict[str, object]]:
    """What the n-th asks: mostly readings, commands with ids, some mistakes."""
    request_id = {"request_id": f"soak-{number}"}
    light = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
    reading = {"device_uuid": BOARD_B, "sensor": "temperature"}
    kinds: tuple[tuple[str, dict[str, object]], ...] = (
        ("sensor-data", reading),
        ("sensor-data", {"device_uuid": BOARD_A, "sensor": "湿度"}),
        ("control", {**light, **request_id}),
        ("sensor-data", reading),
        ("batch", {"requests": [{"operation": "sensor-data", **reading}] * 5}),
        ("device", {"device_uuid": BOARD_E}),
        ("preset", {"device_uuid": BOARD_A, "preset_key": ORDINARY_PRESET, **request_id}),
        ("sensor-data", {"device_uuid": f"nobody-{number}", "sensor": "rain"}),
        ("control", {**light, "action": f"mistake-{number}"}),
        ("sensor-data", {"device_uuid": BOARD_A}),
    )
    return kinds[number % len(kinds)]


def _http_mix(number: int) -> tuple[str, str, dict[str, object] | None]:
    operation, fields = _mix(number)
    if operation == "device":
        return "GET", f"/api/devices/{fields['device_uuid']}", None
    if operation == "sensor-data":
        # Chinese as curl sends it.
        query = "&".join(f"{name}={value}" for name, value in fields.items())
        return "GET", f"/api/sensor-data?{query}", None
    return "POST", f"/api/{operation}", fields


async def _look(bridge: Bridge, http: HttpLoad) -> Sample:
    _, health = await http.ask(http_request("GET", "/health"))
    status = Path(f"/proc/{bridge.pid}/status").read_text()
    threads = re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)
    assert threads is not None
    in_flight = json.loads(health)["in_flight"]
    return Sample(bridge.rss_bytes, bridge.open_files, int(threads[1]), in_flight)
