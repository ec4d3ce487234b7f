"""What this process answered in the last five minutes, for people who watch it.

Observing a request costs a microsecond: it is counted in its second, with its duration in a bucket,
and appended to a bounded list. Everything else is computed when a snapshot is made.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import frexp, ldexp
from typing import NamedTuple, TypeVar

from .observations import RequestAnswered

WINDOW_SECONDS = 300
LISTED_REQUESTS = 200
# Those that failed are kept beside them: open consoles read more than 200 times in some minutes.
LISTED_ERRORS = 100

# A duration is m * 2**e with m in [0.5, 1): m is kept as one of the upper half of so many
# buckets, and so a quantile is within 1/16 of the true one.
_FINENESS = 16
_SHORTEST = 1e-6
# Longer texts would let callers fill our memory: what is longer is no device's UUID, and a sentence
# may list all of a device's sensors, and repeat what was asked for.
_LONGEST_UUID = 36
_LONGEST_DETAIL = 400
_LONGEST_WHO = 128


@dataclass(slots=True)
class Aggregate:
    """Requests answered in a span of time; `refused` were answered 4xx, `failed` 5xx."""

    requests: int = 0
    refused: int = 0
    failed: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None


@dataclass(slots=True)
class SecondAggregate(Aggregate):
    """The requests answered in one second; seconds are numbered, see `Snapshot.second`."""

    second: int = 0


_Summary = TypeVar("_Summary", bound=Aggregate)


@dataclass(slots=True)
class AnsweredRequest:
    """One request answered; `at` in Unix seconds, `number` counts them since the start."""

    number: int
    at: float
    transport: str
    operation: str
    device_uuid: str | None
    code: int
    # "ok", or the reply's error.
    outcome: str
    # The reply's sentence, if it is an error.
    detail: str | None
    who: str
    ms: float


@dataclass(slots=True)
class Snapshot:
    """The last five minutes; seconds in which nothing was answered are left out."""

    # The number of the last second that is over, and the Unix time at which it ended.
    second: int
    time: float
    window: Aggregate
    seconds: list[SecondAggregate]
    requests: list[AnsweredRequest]


@dataclass(slots=True)
class _Second:
    number: int
    requests: int = 0
    refused: int = 0
    failed: int = 0
    durations: dict[int, int] = field(default_factory=dict)


class _Noted(NamedTuple):
    number: int
    at: float
    seen: RequestAnswered


class Activity:
    """The last five minutes, second by second, the last 200 requests, and the last 100 errors."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._current = _Second(-1)
        self._seconds: deque[_Second] = deque(maxlen=WINDOW_SECONDS + 1)
        self._recent: deque[_Noted] = deque(maxlen=LISTED_REQUESTS)
        # Errors that are no longer among them.
        self._errors: deque[_Noted] = deque(maxlen=LISTED_ERRORS)
        self._noted = 0

    def observe(self, seen: RequestAnswered) -> None:
        now = self._clock()
        number = int(now)
        second = self._current
        if second.number != number:
            second = self._current = _Second(number)
            self._seconds.append(second)
        second.requests += 1
        if seen.code >= 400:
            if seen.code >= 500:
                second.failed += 1
            else:
                second.refused += 1
        bucket = _bucket(seen.seconds)
        second.durations[bucket] = second.durations.get(bucket, 0) + 1
        self._noted += 1
        if len(self._recent) == LISTED_REQUESTS and self._recent[0].seen.code >= 400:
            self._errors.append(self._recent[0])
        self._recent.append(_Noted(self._noted, now, _shortened(seen)))

    def snapshot(self) -> Snapshot:
        """The window's seconds and requests, both with the oldest first."""
        now = self._clock()
        last = int(now) - 1
        first = last - WINDOW_SECONDS + 1
        within = [second for second in self._seconds if first <= second.number <= last]
        offset = time.time() - now
        return Snapshot(
            second=last,
            time=last + 1 + offset,
            window=_summed(within, Aggregate()),
            seconds=[_summed([each], SecondAggregate(second=each.number)) for each in within],
            requests=[
                _answered(number, at + offset, seen)
                for number, at, seen in (*self._errors, *self._recent)
            ],
        )


def _shortened(seen: RequestAnswered) -> RequestAnswered:
    uuid, detail, who = seen.device_uuid, seen.detail, seen.who
    if detail is not None and len(detail) > _LONGEST_DETAIL:
        seen = seen._replace(detail=detail[:_LONGEST_DETAIL] + "…")
    if uuid is not None and len(uuid) > _LONGEST_UUID:
        seen = seen._replace(device_uuid=uuid[:_LONGEST_UUID] + "…")
    if len(who) > _LONGEST_WHO:
        seen = seen._replace(who=who[:_LONGEST_WHO] + "…")
    return seen


def _answered(number: int, at: float, seen: RequestAnswered) -> AnsweredRequest:
    return AnsweredRequest(
        number,
        round(at, 3),
        seen.transport,
        seen.operation,
        seen.device_uuid,
        seen.code,
        seen.outcome,
        seen.detail,
        seen.who,
        round(seen.seconds * 1000, 2),
    )


def _summed(seconds: Iterable[_Second], into: _Summary) -> _Summary:
    durations: dict[int, int] = {}
    for second in seconds:
        into.requests += second.requests
        into.refused += second.refused
        into.failed += second.failed
        for bucket, count in second.durations.items():
            durations[bucket] = durations.get(bucket, 0) + count
    ascending = sorted(durations.items())
    into.p50_ms = _quantile_ms(ascending, into.requests, 0.5)
    into.p99_ms = _quantile_ms(ascending, into.requests, 0.99)
    return into


def _quantile_ms(ascending: list[tuple[int, int]], total: int, quantile: float) -> float | None:
    wanted = quantile * total
    counted = 0
    for bucket, count in ascending:
        counted += count
        if counted >= wanted:
            return round(_middle(bucket) * 1000, 3)
    return None


def _bucket(seconds: float) -> int:
    mantissa, exponent = frexp(max(seconds, _SHORTEST))
    return exponent * _FINENESS + int(mantissa * _FINENESS)


def _middle(bucket: int) -> float:
    exponent, mantissa = divmod(bucket, _FINENESS)
    return ldexp((mantissa + 0.5) / _FINENESS, exponent)
