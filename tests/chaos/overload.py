"""Overload over HTTP: more than the bridge can do, closed loop and open, and the database stopped.

Load generator, broker and database share the machine with the bridge, and the more they take, the
less it can do: so the generator is a small program in C. Every run has a watch beside it, whose
commands expire soon; a tap sees those that leave.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from urllib.parse import urlencode

from tests.chaos.findings import Findings, in_ms
from tests.chaos.load import Outcome, Times, http_request
from tests.chaos.native import http_load, http_load_in_phases
from tests.chaos.site import Site, open_site
from tests.chaos.watch import ask_anew, watch
from tests.lab.platform import BOARD_A

MAX_IN_FLIGHT = 64
# By the name that people use.
READING = http_request(
    "GET", f"/api/sensor-data?{urlencode({'device_uuid': BOARD_A, 'sensor': '温度'})}"
)

CROWDS = (4 * MAX_IN_FLIGHT, 1000)
# A request of an open loop waits for a place for at most 0.25 s, on a connection of its own.
# The bridge keeps 4096 connections; some are the watch's.
_OPEN_LOOP_CONNECTIONS = 3500
_OPEN_LOOP_SHARE = 1.5

_BASELINE_SECONDS = 5.0
_WARM_UP_SECONDS = 2.0

# What is promised, in seconds and as shares.
_LONGEST_ACCEPTED = 0.5
_LONGEST_REFUSED = 0.5
_LONGEST_LIVEZ = 0.25
_LEAST_THROUGHPUT = 0.8
_MOST_GROWTH = 0.1
# After the database has gone on: how soon all is as before, and how near to that it has to be.
_RECOVERY = 5.0
_SAME_THROUGHPUT, _SAME_P50 = 0.8, 1.25

_ACCEPTABLE = frozenset({200, 429})
_WITHOUT_DATABASE = _ACCEPTABLE | {503, 504}


async def closed_loop(*, seconds: float = 30.0, strict: bool = True) -> Findings:
    """Connections that ask again as soon as they are answered, several times as many as places.

    Unless it is ``strict``, only what holds on the busiest of machines is judged.
    """
    findings = Findings()
    async with _open_site() as site:
        baseline = await _baseline(site, seconds, findings)
        for connections in CROWDS:
            name = f"{connections} connections"
            outcome = await _flood(site, findings, name, seconds, strict, connections)
            share = outcome.per_second / baseline
            findings.figures[f"{name}: accepted, of the baseline"] = f"{share:.0%}"
            if strict:
                findings.expect(
                    share >= _LEAST_THROUGHPUT, f"{name}: accepted {share:.0%} of the baseline"
                )
        await _expect_well(site, findings)
    return findings


async def open_loop(*, seconds: float = 30.0, strict: bool = True) -> Findings:
    """Requests that come at 1.5 times the capacity, however many are unanswered."""
    findings = Findings()
    async with _open_site() as site:
        rate = _OPEN_LOOP_SHARE * await _baseline(site, seconds, findings)
        name = f"{rate:.0f}/s"
        outcome = await _flood(
            site, findings, name, seconds, strict, _OPEN_LOOP_CONNECTIONS, per_second=rate
        )
        share = outcome.per_second / rate
        findings.figures[f"{name}: accepted, of what was asked"] = f"{share:.0%}"
        findings.figures[f"{name}: never sent, for want of a connection"] = outcome.unsent
        findings.figures[f"{name}: left late, for want of a connection (p99)"] = in_ms(outcome.late)
        await _expect_well(site, findings)
    return findings


async def stopped_database(*, seconds: float = 10.0, strict: bool = True) -> Findings:
    """A closed loop with four times as many connections as places, while the database stops."""
    findings = Findings()
    connections = 4 * MAX_IN_FLIGHT
    around = min(5.0, seconds)
    phases = (around, seconds, _RECOVERY, around)
    async with _open_site() as site:
        await http_load(site.bridges[0].url, READING, connections=connections, seconds=around)
        memory = site.bridges[0].rss_bytes
        async with watch(site) as seen:
            begun = asyncio.Event()
            loading = asyncio.create_task(
                http_load_in_phases(
                    site.bridges[0].url, READING, phases, connections=connections, begun=begun
                )
            )
            await begun.wait()
            await asyncio.sleep(around)
            await asyncio.to_thread(site.database.pause)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(site.database.resume)
            before, stopped, recovering, after = await loading
        for name, phase, acceptable in (
            ("before", before, _ACCEPTABLE),
            (f"database stopped for {seconds:.0f} s", stopped, _WITHOUT_DATABASE),
            (f"the next {_RECOVERY:.0f} s", recovering, _WITHOUT_DATABASE),
            ("afterwards", after, _ACCEPTABLE),
        ):
            _tell(findings, name, phase, acceptable)
        _judge_refusals(findings, "database stopped", stopped, strict)
        most_growth = _MOST_GROWTH if strict else 0.5
        seen.judge_memory(findings, "all along", memory, most_growth)
        seen.judge_livez(findings, "all along", _LONGEST_LIVEZ if strict else None)
        seen.judge_deadlines(findings, "all along")
        findings.expect(after.unanswered == 0, f"{after.unanswered} unanswered")
        if strict:
            _judge_recovery(findings, before, after)
        await _expect_well(site, findings)
    return findings


@asynccontextmanager
async def _open_site() -> AsyncIterator[Site]:
    settings = {"LOG_LEVEL": "ERROR", "MAX_IN_FLIGHT": str(MAX_IN_FLIGHT)}
    async with open_site(**settings) as site:
        yield site


async def _baseline(site: Site, seconds: float, findings: Findings) -> float:
    """What as many connections as there are places get, a second."""
    url = site.bridges[0].url
    await http_load(url, READING, connections=MAX_IN_FLIGHT, seconds=min(_WARM_UP_SECONDS, seconds))
    outcome = await http_load(
        url, READING, connections=MAX_IN_FLIGHT, seconds=min(_BASELINE_SECONDS, seconds)
    )
    _tell(findings, f"{MAX_IN_FLIGHT} connections (the baseline)", outcome, _ACCEPTABLE)
    return outcome.per_second


async def _flood(
    site: Site,
    findings: Findings,
    name: str,
    seconds: float,
    strict: bool,
    connections: int,
    per_second: float = 0,
) -> Outcome:
    url = site.bridges[0].url
    # What the flood itself keeps (connections, buffers) is there before it is measured.
    warm_up = min(_WARM_UP_SECONDS, seconds)
    await http_load(url, READING, connections=connections, seconds=warm_up, per_second=per_second)
    memory = site.bridges[0].rss_bytes
    async with watch(site) as seen:
        outcome = await http_load(
            url, READING, connections=connections, seconds=seconds, per_second=per_second
        )
    _tell(findings, name, outcome, _ACCEPTABLE)
    findings.expect(outcome.unanswered == 0, f"{name}: {outcome.unanswered} unanswered")
    seen.judge_memory(findings, name, memory, _MOST_GROWTH if strict else 0.5)
    seen.judge_livez(findings, name, None)
    seen.judge_deadlines(findings, name)
    if strict and 200 in outcome.times:
        p99 = outcome.times[200].p99
        findings.expect(p99 < _LONGEST_ACCEPTED, f"{name}: p99 of the accepted {in_ms(p99)}")
    return outcome


def _tell(findings: Findings, name: str, outcome: Outcome, acceptable: Collection[int]) -> None:
    per_second = {code: f"{n / outcome.elapsed:.0f}/s" for code, n in outcome.codes.items()}
    findings.figures[f"{name}: codes"] = f"{outcome.codes} in {outcome.elapsed:.1f} s, {per_second}"
    for code, times in outcome.times.items():
        findings.figures[f"{name}: {code} after"] = told(times)
    findings.expect(set(outcome.codes) <= set(acceptable), f"{name}: answered {outcome.codes}")
    findings.expect(200 in outcome.codes or 503 in acceptable, f"{name}: nothing was accepted")
    if outcome.closed:
        findings.figures[f"{name}: connections closed amid a request"] = outcome.closed


def _judge_refusals(findings: Findings, name: str, outcome: Outcome, strict: bool) -> None:
    findings.expect(429 in outcome.codes, f"{name}: nobody was refused for want of a place")
    if strict and 429 in outcome.times:
        longest = outcome.times[429].longest
        findings.expect(longest <= _LONGEST_REFUSED, f"{name}: 429 came after {in_ms(longest)}")


def _judge_recovery(findings: Findings, before: Outcome, after: Outcome) -> None:
    if not before.per_second or not after.per_second:
        return
    throughput = after.per_second / before.per_second
    p50 = after.times[200].p50 / before.times[200].p50
    findings.figures["afterwards, of before"] = f"accepted {throughput:.0%}, their p50 {p50:.0%}"
    findings.expect(throughput >= _SAME_THROUGHPUT, f"afterwards accepted {throughput:.0%}")
    findings.expect(p50 <= _SAME_P50, f"afterwards the p50 of the accepted is {p50:.0%}")


def told(times: Times) -> str:
    """The times of answers, for people."""
    return f"p50 {in_ms(times.p50)}, p99 {in_ms(times.p99)}, max {in_ms(times.longest)}"


async def _expect_well(site: Site, findings: Findings) -> None:
    status, seconds = await ask_anew(site.bridges[0].url, READING)
    findings.expect(
        status == 200 and seconds < _LONGEST_ACCEPTED,
        f"afterwards a reading was answered {status} after {in_ms(seconds)}",
    )
    findings.expect(await asyncio.to_thread(lambda: site.bridges[0].ready), "not ready afterwards")
