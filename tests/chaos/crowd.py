"""Connections that cost: heads as long as they may be, and thousands that never finish theirs."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack

from tests.chaos.findings import Findings, in_ms, percentile
from tests.chaos.load import http_request
from tests.chaos.native import http_load_in_phases
from tests.chaos.overload import MAX_IN_FLIGHT, READING, told
from tests.chaos.site import Site, open_site
from tests.chaos.watch import LIVEZ, ask_anew
from tests.lab.servers import Server, raise_descriptor_limit

# Without a key, and longer than a head may be.
QUESTION_MARKS = http_request("GET", "/api/sensor-data?" + 60_000 * "?")
_HALF_SENT = b"GET /api/sensor-data?device_uuid="

_LONGEST = 0.5
_LONGEST_LIVEZ = 1.0
_SPARE_DESCRIPTORS = 500


async def question_marks(*, times: int = 20, strict: bool = True) -> Findings:
    """60,000 question marks in a request line, again and again, while the bridge is full."""
    findings = Findings()
    async with open_site(tapped=False, LOG_LEVEL="ERROR", MAX_IN_FLIGHT=str(MAX_IN_FLIGHT)) as site:
        url = site.bridges[0].url
        begun = asyncio.Event()
        # One a half second, and time for the last of them.
        phases = (1.0, 0.5 * times, 1.0)
        loading = asyncio.create_task(
            http_load_in_phases(url, READING, phases, connections=4 * MAX_IN_FLIGHT, begun=begun)
        )
        await begun.wait()
        await asyncio.sleep(phases[0])
        marks, good = [], []
        for _ in range(times):
            answers = await asyncio.gather(
                ask_anew(url, QUESTION_MARKS), ask_anew(url, READING), asyncio.sleep(0.5)
            )
            marks.append(answers[0])
            good.append(answers[1])
        _, meanwhile, _ = await loading
    for name, asked in (("question marks", marks), ("a reading beside", good)):
        slowest = max(seconds for _, seconds in asked)
        codes = sorted({status for status, _ in asked})
        findings.figures[name] = (
            f"{len(asked)} answered {codes}, the slowest after {in_ms(slowest)}"
        )
        if strict:
            findings.expect(slowest <= _LONGEST, f"{name}: answered after {in_ms(slowest)}")
    refused = {status for status, _ in marks}
    findings.expect(
        all(400 <= status < 500 for status in refused), f"question marks: answered {refused}"
    )
    findings.expect({status for status, _ in good} <= {200, 429}, "a reading was not answered")
    for code, taken in meanwhile.times.items():
        findings.figures[f"the load meanwhile: {meanwhile.codes[code]} x {code} after"] = told(
            taken
        )
    findings.expect(set(meanwhile.codes) <= {200, 429}, f"the load got {meanwhile.codes}")
    findings.expect(meanwhile.unanswered == 0, f"{meanwhile.unanswered} of the load unanswered")
    if strict:
        longest = meanwhile.longest
        findings.expect(longest <= _LONGEST, f"the load was answered after {in_ms(longest)}")
    return findings


async def idle_connections(*, count: int = 4300, tries: int = 20) -> Findings:
    """So many connections that are idle or have sent half a head, and /livez on a new one."""
    findings = Findings()
    raise_descriptor_limit(count + _SPARE_DESCRIPTORS)
    async with open_site(tapped=False, LOG_LEVEL="ERROR") as site:
        url = site.bridges[0].url
        with ExitStack() as crowd:
            opened = await asyncio.to_thread(_open_connections, crowd, site.bridges[0], count)
            asked = await _ask_livez(url, tries)
            still = sum(map(_is_open, opened))
            # As long as idle connections are kept, or half a head is waited for.
            findings.figures["connections"] = f"{count}, {still} still open after {tries} requests"
            _judge_livez(findings, "/livez with all of them", asked)
            findings.figures["the bridge's memory"] = f"{site.bridges[0].rss_bytes / 2**20:.1f} MiB"
        await _expect_back(site, findings)
    return findings


async def _expect_back(site: Site, findings: Findings) -> None:
    """Once they are gone, all is as before."""
    url = site.bridges[0].url
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (status := (await ask_anew(url, READING))[0]) != 200 and loop.time() < began + 5:
        await asyncio.sleep(0.05)
    findings.figures["a reading after they were closed"] = (
        f"answered {status} after {in_ms(loop.time() - began)}"
    )
    findings.expect(status == 200, f"after they were closed a reading was answered {status}")
    _judge_livez(findings, "/livez after they were closed", await _ask_livez(url, 5))


def _open_connections(crowd: ExitStack, bridge: Server, count: int) -> list[socket.socket]:
    """Every other one sends half a head."""
    opened = []
    for number in range(count):
        one = crowd.enter_context(socket.create_connection((bridge.host, bridge.port), timeout=10))
        if number % 2:
            one.sendall(_HALF_SENT)
        one.setblocking(False)
        opened.append(one)
    return opened


def _is_open(one: socket.socket) -> bool:
    try:
        return one.recv(65536) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


async def _ask_livez(url: str, tries: int) -> list[tuple[int, float]]:
    asked = []
    for _ in range(tries):
        asked.append(await ask_anew(url, LIVEZ))
        # Beyond the second in which a connection above the cap has to send its head.
        await asyncio.sleep(2 / tries)
    return asked


def _judge_livez(findings: Findings, name: str, asked: list[tuple[int, float]]) -> None:
    times = [seconds for _, seconds in asked]
    findings.figures[name] = f"p50 {in_ms(percentile(times, 0.5))}, max {in_ms(max(times))}"
    findings.expect_none(
        [
            f"{status} after {in_ms(seconds)}"
            for status, seconds in asked
            if status != 200 or seconds > _LONGEST_LIVEZ
        ],
        f"{name}, not answered 200 within {in_ms(_LONGEST_LIVEZ)}",
    )
