"""SIGTERM under load: what was accepted is answered, and the answers tell what left.

The session is kept: what the broker takes while the bridge is away is answered on its return.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import aiohttp

from tests.chaos.chaos import sequence_is_truthful
from tests.chaos.findings import Findings
from tests.chaos.load import MqttLoad, outcomes
from tests.chaos.questions import Question, Questions, Transport, ask_http
from tests.chaos.site import MARCH, MARCH_STEPS, Site, departures_of, open_site

DRAIN_TIMEOUT = 5.0
_MARCHES = 4
# Until what waited at the broker is answered.
_RETURN_SECONDS = 10
# To be started, and to be seen gone.
_OURS = 0.25
# When all is answered, HTTP goes down. A request on a connection that is being closed may go unread
# then, as on any HTTP server; its client knows that from the connection and may ask again.
_GOING_DOWN = 0.5


async def drain(*, rounds: int = 10, rate: float = 150.0, seed: int | None = None) -> Findings:
    """So many times: load and sequences, SIGTERM amidst them, and a look at what came of all."""
    rng = random.Random(seed)
    findings = Findings()
    walkers = rounds * (_MARCHES + int(rate / 4))
    async with open_site(walkers=walkers, DRAIN_TIMEOUT=str(DRAIN_TIMEOUT)) as site:
        bridge = site.bridges[0]
        questions = Questions(rng, site.walkers[rounds * _MARCHES :])
        took = []
        outcome: Counter[str] = Counter()
        for number in range(rounds):
            marchers = site.walkers[number * _MARCHES : (number + 1) * _MARCHES]
            seconds, asked = await _round(site, questions, marchers, rng, rate, findings)
            took.append(seconds)
            outcome += Counter(question.outcome for question in asked)
        findings.figures |= {
            "rounds": rounds,
            "from SIGTERM to the end": f"{max(took):.2f} s at the most",
            "outcomes": outcomes(outcome),
        }
        findings.expect(max(took) <= DRAIN_TIMEOUT + _OURS, f"it took {max(took):.2f} s to end")
        findings.expect("Traceback" not in bridge.output, "a traceback in the log")
    return findings


async def _round(
    site: Site,
    questions: Questions,
    marchers: list[str],
    rng: random.Random,
    rate: float,
    findings: Findings,
) -> tuple[float, list[Question]]:
    bridge = site.bridges[0]
    # `refused` are those that the broker or the bridge's port did not take.
    asked: list[Question] = []
    refused: set[Question] = set()
    unread: dict[Question, float] = {}
    async with aiohttp.ClientSession() as http, MqttLoad(site.broker) as mqtt:
        asking = []

        async def ask(question: Question) -> None:
            began_to_ask = time.monotonic()
            try:
                if question.transport == "mqtt":
                    question.answer = await mqtt.ask(question.operation, question.body)
                else:
                    question.answer = await ask_http(http, bridge.url, question, 30)
            except aiohttp.ClientConnectorError:
                refused.add(question)
            except aiohttp.ClientConnectionError:
                unread[question] = began_to_ask
                return
            if question.answer is None:
                refused.add(question)

        def begin(question: Question) -> None:
            asked.append(question)
            asking.append(asyncio.create_task(ask(question), name=question.request_id))

        for place, walker in enumerate(marchers):
            begin(_march(walker, ("http", "mqtt")[place % 2]))
        term_at = time.monotonic() + rng.uniform(0.5, 1.5)
        stopping: asyncio.Task[int] | None = None
        began = 0.0
        for question in questions:
            now = time.monotonic()
            if stopping is None and now >= term_at:
                began = now
                stopping = asyncio.create_task(asyncio.to_thread(bridge.stop))
            if stopping is not None and stopping.done():
                break
            begin(question)
            await asyncio.sleep(rng.expovariate(rate))
        assert stopping is not None
        seconds = time.monotonic() - began
        findings.expect(await stopping == 0, f"exit status {stopping.result()}")
        await asyncio.to_thread(bridge.start)
        _, late = await asyncio.wait(asking, timeout=_RETURN_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    refused |= {q for q, at in unread.items() if at > began + seconds - _GOING_DOWN}
    _judge(site, asked, refused, findings)
    return seconds, asked


def _march(walker: str, transport: Transport) -> Question:
    fields = {"device_uuid": walker, "preset_key": MARCH}
    return Question(f"march-{walker}", transport, "preset", fields, walker)


def _judge(site: Site, asked: list[Question], refused: set[Question], findings: Findings) -> None:
    left = {mark for mark, _ in site.left()}
    findings.expect_none(
        [q for q in asked if q.answer is None and q not in refused], "accepted and not answered"
    )
    findings.expect_none(
        [q for q in refused if q.mark in left], "left though nobody accepted the request"
    )
    findings.expect_none(
        [
            q
            for q in asked
            if q.answer is not None
            and q.mark is not None
            and (q.mark in left) != (q.outcome in ("ok", "outcome_unknown"))
        ],
        "left or not, against its answer",
    )
    findings.expect_none(
        [q for q in asked if not sequence_is_truthful(q, site, _steps(q))],
        "sequence told wrongly",
    )
    cut = [q for q in asked if q.fields.get("preset_key") == MARCH and q.outcome == "ok"]
    findings.expect(bool(cut), "no sequence was cut short")
    told = ", ".join(
        f"{len(q.answer['data']['executed_steps'])} told and "
        f"{departures_of(site.tap.departures, str(q.mark))} left of {MARCH_STEPS}"
        for q in cut
        if q.answer is not None
    )
    findings.figures["sequences cut short in the last round"] = told


def _steps(question: Question) -> int:
    return MARCH_STEPS if question.fields.get("preset_key") == MARCH else 3
