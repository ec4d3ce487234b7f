"""Mixed requests with ids, and a requester that asks again until it is answered."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from tests.chaos.site import WALK, Site
from tests.lab.platform import BOARD_A, BOARD_B, ORDINARY_PRESET
from tests.lab.requester import Requester

Transport = Literal["http", "mqtt"]
Body = dict[str, Any]

# Nothing was done, and it may go better the next time.
TRANSIENT = frozenset(
    {
        "busy",
        "database_timeout",
        "database_unavailable",
        "draining",
        "mqtt_unavailable",
        "timeout",
    }
)
PLACES = {
    "sensor-data": ("GET", "/api/sensor-data"),
    "control": ("POST", "/api/control"),
    "preset": ("POST", "/api/preset"),
    "batch": ("POST", "/api/batch"),
}


@dataclass(eq=False)
class Question:
    """One request under one id, however often it is asked; ``mark`` as `site.mark_of` has it."""

    request_id: str
    transport: Transport
    operation: str
    fields: Body
    mark: str | None = None
    # Unix seconds.
    expires_at: float | None = None
    asked: int = 0
    answer: Body | None = None
    # What came of the attempts that brought no answer.
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def body(self) -> Body:
        """What is sent."""
        more = {} if self.expires_at is None else {"expires_at": self.expires_at}
        return {**self.fields, **more, "request_id": self.request_id}

    @property
    def outcome(self) -> str:
        """`ok`, the error of the command (of a batch: of its command), or `silence`."""
        return "silence" if self.answer is None else outcome_of(self.answer)

    def __str__(self) -> str:
        told = f"{self.operation} {self.request_id} ({self.transport}): {self.outcome}"
        return told if self.answer is not None else f"{told} after {dict(self.failures)}"


def outcome_of(answer: Body) -> str:
    """`ok`, or the error; a batch's is the first of its items'."""
    items = [answer]
    if answer.get("data") and "results" in answer["data"]:
        items += answer["data"]["results"]
    return next((str(item["error"]) for item in items if "error" in item), "ok")


class Questions:
    """An endless mix: half reads, half commands, of which some expire soon."""

    def __init__(self, rng: random.Random, walkers: Sequence[str] = ()) -> None:
        self._rng = rng
        self._walkers = list(walkers)
        self._numbers = itertools.count(1)

    def __iter__(self) -> Iterator[Question]:
        while True:
            yield self.next()

    def next(self) -> Question:
        number = next(self._numbers)
        kind = self._rng.choices(("read", "control", "preset", "batch", "walk"), (8, 6, 2, 2, 1))[0]
        if kind == "walk" and not self._walkers:
            kind = "control"
        operation, fields, mark = self._asked(kind, number)
        question = Question(
            f"q{number}", self._rng.choice(("http", "mqtt")), operation, fields, mark
        )
        if mark is not None and self._rng.random() < 0.4:
            question.expires_at = time.time() + self._rng.uniform(0.2, 6.0)
        return question

    def _asked(self, kind: str, number: int) -> tuple[str, Body, str | None]:
        if kind == "read":
            return "sensor-data", _read(), None
        if kind == "control":
            return "control", _pwm(number), f"pwm {number}"
        if kind == "preset":
            preset = {"device_uuid": BOARD_A, "preset_key": ORDINARY_PRESET}
            return "preset", {**preset, "parameters": {"count": number}}, f"preset {number}"
        if kind == "batch":
            items = [
                {"operation": "sensor-data", **_read()},
                {"operation": "control", **_pwm(number)},
            ]
            return "batch", {"requests": items}, f"pwm {number}"
        walker = self._walkers.pop()
        return "preset", {"device_uuid": walker, "preset_key": WALK}, walker


def _read() -> Body:
    return {"device_uuid": BOARD_B, "sensor": "temperature"}


def _pwm(number: int) -> Body:
    return {
        "device_uuid": BOARD_A,
        "port_type": "pwm",
        "port_id": 1,
        "action": "set",
        "value": 50,
        "frequency": number,
    }


@dataclass
class Askers:
    """Asks over both transports, each question again with the same id until it is answered."""

    site: Site
    http: aiohttp.ClientSession
    mqtt: Requester
    rng: random.Random
    questions: list[Question] = field(default_factory=list)
    _asking: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self, question: Question) -> None:
        """Ask from now on."""
        self.questions.append(question)
        task = asyncio.create_task(self._until_answered(question), name=question.request_id)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def finish(self, timeout: float) -> None:
        """Wait until all are answered; those that are not by then stay unanswered."""
        if self._asking:
            await asyncio.wait(set(self._asking), timeout=timeout)
        for task in set(self._asking):
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    async def _until_answered(self, question: Question) -> None:
        while question.answer is None:
            question.asked += 1
            try:
                answer = await self._ask(question)
            except (TimeoutError, OSError, aiohttp.ClientError) as error:
                question.failures[type(error).__name__] += 1
            else:
                if outcome_of(answer) not in TRANSIENT:
                    question.answer = answer
                    return
                question.failures[outcome_of(answer)] += 1
            await asyncio.sleep(self.rng.uniform(0.1, 0.5))

    async def _ask(self, question: Question) -> Body:
        # Some stop waiting before the bridge answers, and meet their own first attempt.
        timeout = self.rng.uniform(1.0, 6.0)
        if question.transport == "mqtt":
            reply = await self.mqtt.ask(question.operation, question.body, timeout=timeout)
            return reply.body
        bridge = self.rng.choice(self.site.bridges)
        return await ask_http(self.http, bridge.url, question, timeout)


async def ask_http(
    session: aiohttp.ClientSession, url: str, question: Question, timeout: float
) -> Body:
    """Ask once; the body of the answer.

    Raises:
        aiohttp.ClientError, TimeoutError: no answer came.
    """
    method, path = PLACES[question.operation]
    content = {"params": question.body} if method == "GET" else {"json": question.body}
    async with (
        asyncio.timeout(timeout),
        session.request(method, url + path, **content) as response,
    ):
        body: Body = await response.json()
        return body
