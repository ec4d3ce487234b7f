"""Chaos: servers restarted, killed and frozen at random moments, bridges killed, under load."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from tests.chaos.findings import Findings, in_ms
from tests.chaos.questions import Askers, Question, Questions
from tests.chaos.site import WALK_STEPS, Site, mark_of, open_site
from tests.lab.requester import Requester
from tests.lab.servers import Server

SETTINGS = {
    "DEDUP_STORE": "mysql",
    "DB_TIMEOUT": "1",
    "REQUEST_TIMEOUT": "4",
}
_AFTERWARDS = 60.0
# Beside the tap's own lag: what the clocks of two processes and a socket may differ by.
_CLOCKS = 0.05


async def chaos(
    *,
    rounds: int = 20,
    bridges: int = 1,
    rate: float = 40.0,
    longest: float = 8.0,
    seed: int | None = None,
) -> Findings:
    """Run it: so many faults, one after the other, under so many new requests a second.

    ``longest`` is how long a server is frozen at the most, in seconds: by itself longer than the
    bridge waits for a silent broker.
    """
    seed = random.randrange(1_000_000) if seed is None else seed
    rng = random.Random(seed)
    # Of two, a dead one shall not keep its share of the requests waiting for it.
    more = {"MQTT_SESSION_EXPIRY": "0"} if bridges > 1 else {}
    walkers = int(rounds * rate / 2)
    async with (
        open_site(bridges=bridges, walkers=min(walkers, 400), **SETTINGS, **more) as site,
        aiohttp.ClientSession() as http,
        Requester(site.broker) as mqtt,
    ):
        askers = Askers(site, http, mqtt, rng)
        loading = asyncio.create_task(_load(askers, Questions(rng, site.walkers), rate))
        faults = []
        for _ in range(rounds):
            await asyncio.sleep(rng.uniform(0.5, 2.5))
            fault = rng.choice(list(_FAULTS))
            await _FAULTS[fault](_Strike(site, rng, longest))
            faults.append(fault)
        await asyncio.sleep(1)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await askers.finish(_AFTERWARDS)
        return _judge(site, askers.questions, {"seed": seed, "faults": ", ".join(faults)})


async def _load(askers: Askers, questions: Questions, rate: float) -> None:
    for question in questions:
        askers.begin(question)
        await asyncio.sleep(askers.rng.expovariate(rate))


# ---- faults -------------------------------------------------------------------------------------


@dataclass
class _Strike:
    """One fault, from its beginning until all run again."""

    site: Site
    rng: random.Random
    longest: float

    async def restart(self, server: Server) -> None:
        await asyncio.to_thread(server.restart)

    async def kill(self, server: Server) -> None:
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(self.rng.uniform(0.0, min(2.0, self.longest)))
        await asyncio.to_thread(server.start)

    async def freeze(self, server: Server) -> None:
        server.pause()
        await asyncio.sleep(self.rng.uniform(0.3, self.longest))
        server.resume()

    async def kill_bridge(self) -> None:
        bridge = self.rng.choice(self.site.bridges)
        await asyncio.to_thread(bridge.kill)
        await asyncio.sleep(self.rng.uniform(0.0, 1.0))
        # It starts whatever state the others are in.
        await asyncio.to_thread(bridge.start, "live")

    async def kill_bridge_while_frozen(self, server: Server) -> None:
        await asyncio.gather(self.kill_bridge(), self.freeze(server))


_FAULTS: dict[str, Callable[[_Strike], Awaitable[None]]] = {
    "broker restarted": lambda strike: strike.restart(strike.site.broker),
    "broker killed": lambda strike: strike.kill(strike.site.broker),
    "broker frozen": lambda strike: strike.freeze(strike.site.broker),
    "database restarted": lambda strike: strike.restart(strike.site.database),
    "database killed": lambda strike: strike.kill(strike.site.database),
    "database frozen": lambda strike: strike.freeze(strike.site.database),
    "bridge killed": lambda strike: strike.kill_bridge(),
    "bridge killed while the broker was frozen": (
        lambda strike: strike.kill_bridge_while_frozen(strike.site.broker)
    ),
    "bridge killed while the database was frozen": (
        lambda strike: strike.kill_bridge_while_frozen(strike.site.database)
    ),
}


# ---- judgement ----------------------------------------------------------------------------------


def _judge(site: Site, questions: list[Question], figures: dict[str, object]) -> Findings:
    findings = Findings(figures)
    left, arrived = site.left(), site.arrived()
    findings.figures |= {
        "requests": len(questions),
        "of which commands": sum(question.mark is not None for question in questions),
        "asked again": sum(question.asked - 1 for question in questions),
        "outcomes": _outcomes(questions),
        "commands that left": sum(left.values()),
        "commands that arrived": sum(arrived.values()),
    }
    findings.expect_none(
        [question for question in questions if question.answer is None], "never answered"
    )
    findings.expect_none(
        [question for question in questions if question.outcome == "internal_error"],
        "answered 500",
    )
    findings.expect_none([key for key, count in left.items() if count > 1], "left twice")
    findings.expect_none([key for key, count in arrived.items() if count > 1], "arrived twice")
    _judge_deadlines(findings, site, questions)
    _judge_truth(findings, site, questions)
    return findings


def _judge_deadlines(findings: Findings, site: Site, questions: list[Question]) -> None:
    deadlines = {q.mark: q.expires_at for q in questions if q.expires_at is not None}
    allowed = site.tap.lag + _CLOCKS
    margins = [
        (one.at - deadlines[mark], mark)
        for one in site.tap.departures
        if (mark := mark_of(one.topic, one.command)[0]) in deadlines
    ]
    findings.figures["commands with a deadline that left"] = len(margins)
    if margins:
        findings.figures["closest to its deadline"] = in_ms(-max(margins)[0])
    findings.figures["this process was late by"] = in_ms(site.tap.lag)
    findings.expect_none(
        [f"{mark} by {in_ms(margin)}" for margin, mark in margins if margin > allowed],
        "left after its deadline",
    )


def _judge_truth(findings: Findings, site: Site, questions: list[Question]) -> None:
    """What the answers say against what left. `expired` may be said of a retry alone."""
    left = {mark for mark, _ in site.left()}
    commands = [question for question in questions if question.mark is not None]
    findings.expect_none(
        [
            q
            for q in commands
            # What a sequence says of its steps is judged below.
            if q.outcome == "ok" and q.mark not in left and q.mark not in site.walkers
        ],
        "answered 200 though nothing left",
    )
    findings.expect_none(
        [
            q
            for q in commands
            if q.mark in left
            and q.outcome not in ("ok", "outcome_unknown", "device_unreachable", "expired")
        ],
        "left though the answer denies it",
    )
    findings.figures["left, and a later attempt was answered 408 expired"] = sum(
        q.mark in left and q.outcome == "expired" for q in commands
    )
    findings.expect_none(
        [q for q in commands if not sequence_is_truthful(q, site)], "sequence told wrongly"
    )


def sequence_is_truthful(question: Question, site: Site, steps: int = WALK_STEPS) -> bool:
    """Whether the answer to a walker's sequence tells what left; other answers always are."""
    if question.mark not in site.walkers or question.outcome != "ok":
        return True
    assert question.answer is not None
    data = question.answer["data"]
    executed = data["executed_steps"]
    sure = sum(step["status"] == "success" for step in executed)
    left = sum(count for (mark, _), count in site.left().items() if mark == question.mark)
    complete = len(executed) == data["total_steps"] == steps and sure == steps
    return sure <= left <= len(executed) and data["success"] == complete


def _outcomes(questions: list[Question]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for question in questions:
        counted[question.outcome] = counted.get(question.outcome, 0) + 1
    return dict(sorted(counted.items(), key=lambda item: -item[1]))
