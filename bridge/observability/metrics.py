"""Counters and timings, in Prometheus' terms. No label that a caller can choose."""

import os
import platform
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    multiprocess,
    values,
)

from .. import __version__
from .observations import CommandExecuted, RequestAnswered

# The environment variable that tells a worker its number, from 1.
WORKER_NUMBER = "BRIDGE_WORKER_NUMBER"


if WORKER_NUMBER in os.environ:
    # A worker's files are named by its number, not by its process, so that its successor goes on
    # with its counters. To be set before the first metric is made.
    values.ValueClass = values.MultiProcessValue(lambda: os.environ[WORKER_NUMBER])  # type: ignore[no-untyped-call]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class WorkersState(NamedTuple):
    """Whether every worker is connected, and how many requests they have in flight."""

    database: bool
    mqtt: bool
    in_flight: int


class Metrics:
    """All metrics of one process; over several workers they are summed when they are read."""

    def __init__(self, in_flight: Callable[[], int] = int) -> None:
        self.registry = CollectorRegistry()
        self._count_requests()
        self._count_rejections()
        self._watch_connections()
        self._describe_process()
        # Asked when it is read: counting up and down would cost every request.
        self._count_in_flight = in_flight
        self._pool_size = 0
        self._count_pool_in_use: Callable[[], int] = int
        # Children are looked up once: labels() takes a lock and builds a key each time.
        self._answered: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}

    def _count_requests(self) -> None:
        self._requests = Counter(
            "bridge_requests",
            "Requests answered, by outcome: ok, or the error of the reply",
            ("transport", "operation", "outcome"),
            registry=self.registry,
        )
        self._duration = Histogram(
            "bridge_request_duration_seconds",
            "From the request's arrival to its reply being ready",
            ("transport", "operation"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._in_flight = self._gauge("bridge_in_flight", "Requests in flight", "livesum")
        self.batch_size = Histogram(
            "bridge_batch_size",
            "Devices read by one statement",
            buckets=_SIZES,
            registry=self.registry,
        )

    def _count_rejections(self) -> None:
        self._dropped = Counter(
            "bridge_dropped",
            "Requests that got no reply, by the rule that dropped them",
            ("reason",),
            registry=self.registry,
        )
        self._duplicates = Counter(
            "bridge_duplicates",
            "Requests answered from the outcome of an earlier one with the same id",
            registry=self.registry,
        )
        self._wrong_keys = Counter(
            "bridge_wrong_keys",
            "HTTP requests that showed an API key which is none of ours",
            registry=self.registry,
        )

    def _watch_connections(self) -> None:
        self._connected = self._gauge(
            "bridge_connected",
            "1 while connected; over several workers, the least of theirs",
            "livemin",
            ("to",),
        )
        self._reconnects = Counter(
            "bridge_reconnects",
            "Connections made anew after one was lost",
            ("to",),
            registry=self.registry,
        )
        for peer in ("database", "mqtt"):
            self._connected.labels(peer).set(0)
            self._reconnects.labels(peer)
        self._size = self._gauge("bridge_pool_size", "Database connections at most", "livesum")
        self._in_use = self._gauge(
            "bridge_pool_in_use", "Database connections that execute a statement", "livesum"
        )

    def _describe_process(self) -> None:
        info = self._gauge(
            "bridge_build_info", "1; the version is in the label", "livemax", ("version", "python")
        )
        info.labels(__version__, platform.python_version()).set(1)
        ProcessCollector(registry=self.registry)

    def _gauge(
        self,
        name: str,
        words: str,
        over_workers: Literal["livesum", "livemin", "livemax"],
        labels: Sequence[str] = (),
    ) -> Gauge:
        return Gauge(name, words, labels, multiprocess_mode=over_workers, registry=self.registry)

    def request_answered(self, request: RequestAnswered) -> None:
        key = (request.transport, request.operation, request.outcome)
        children = self._answered.get(key)
        if children is None:
            children = self._answered[key] = (
                self._requests.labels(*key),
                self._duration.labels(request.transport, request.operation),
            )
        count, duration = children
        count.inc()
        duration.observe(request.seconds)

    def command_executed(self, command: CommandExecuted) -> None:
        if command.duplicate:
            self._duplicates.inc()

    def dropped(self, reason: str) -> None:
        """One request was dropped; `reason` is one of our own words, never what a caller sent."""
        self._dropped.labels(reason).inc()

    def wrong_key(self) -> None:
        self._wrong_keys.inc()

    def watch_pool(self, size: int, in_use: Callable[[], int]) -> None:
        """Show the pool of database connections; `in_use` is asked when metrics are read."""
        self._pool_size = size
        self._count_pool_in_use = in_use

    def connected(self, to: str, connected: bool) -> None:
        """Whether we are connected; `to` is `database` or `mqtt`."""
        self._connected.labels(to).set(1 if connected else 0)

    def reconnected(self, to: str) -> None:
        """A lost connection was made anew; `to` is `database` or `mqtt`."""
        self._reconnects.labels(to).inc()

    @property
    def shared(self) -> bool:
        """Whether we are one of several workers, whose metrics meet in files."""
        return "PROMETHEUS_MULTIPROC_DIR" in os.environ

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format, summed over the workers.

        The process's own are those of the worker that is asked.
        """
        self._tell_current()
        if not self.shared:
            return generate_latest(self.registry)
        summed = _summed()
        ProcessCollector(registry=summed)
        return generate_latest(summed)

    def _tell_current(self) -> None:
        self._in_flight.set(self._count_in_flight())
        self._size.set(self._pool_size)
        self._in_use.set(self._count_pool_in_use())

    def all_workers(self) -> WorkersState:
        """The state of all workers together; tells them ours, so that it is to be called often."""
        self._tell_current()
        least = {"database": 0.0, "mqtt": 0.0}
        in_flight = 0.0
        for metric in _summed().collect():
            for sample in metric.samples:
                if sample.name == "bridge_connected":
                    least[sample.labels["to"]] = sample.value
                elif sample.name == "bridge_in_flight":
                    in_flight = sample.value
        return WorkersState(least["database"] > 0, least["mqtt"] > 0, int(in_flight))


def _summed() -> CollectorRegistry:
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry
