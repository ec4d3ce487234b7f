"""What is measured: rows of cases, each case the same load on several contenders in turn."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

from benchmarks import contenders, dataset, processes
from benchmarks.contenders import Contender, Lab, Running, Transport
from benchmarks.load import BATCH, ControlCounter, Load, Products, Result, measure

Metric = Literal["per_second", "p50_ms", "p99_ms", "own_cpu_us"]


@dataclass(frozen=True)
class Plan:
    """How long, how often, on how much."""

    seconds: float = 3
    warm_up: float = 1
    rounds: int = 3
    grown_devices: int = dataset.GROWN_DEVICES
    without: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Case:
    """One load, and who is put under it."""

    title: str
    load: Load
    contenders: tuple[Contender, ...]

    @property
    def readings(self) -> int:
        """How many readings one request asks for."""
        return BATCH if self.load.kind == "batch" else 1


@dataclass(frozen=True)
class Row:
    """Cases whose contenders stand by together, and are measured in turn: A B A B."""

    name: str
    cases: tuple[Case, ...]


@dataclass
class Measured:
    """Every round of one contender under one case."""

    row: str
    case: str
    contender: str
    label: str
    load: Load
    readings: int
    rounds: list[Result] = field(default_factory=list)

    def each(self, metric: Metric) -> list[float]:
        """One figure of every round; throughput and processor time are those of one reading."""
        if metric == "own_cpu_us":
            return [result.cpu_us["contender"] / self.readings for result in self.rounds]
        factor = self.readings if metric == "per_second" else 1
        return [getattr(result, metric) * factor for result in self.rounds]

    def median(self, metric: Metric) -> float:
        return statistics.median(self.each(metric))

    @property
    def faults(self) -> list[str]:
        return [fault for result in self.rounds for fault in result.faults]


@dataclass
class Footprint:
    """Start and memory of one contender, a figure a round: seconds, and MiB.

    ``largest`` is the largest single process, a worker; ``total`` all processes together.
    """

    contender: str
    label: str
    start_seconds: list[float] = field(default_factory=list)
    idle_largest: list[float] = field(default_factory=list)
    idle_total: list[float] = field(default_factory=list)
    loaded_largest: list[float] = field(default_factory=list)
    loaded_total: list[float] = field(default_factory=list)


FOOTPRINT_ROW = "start"
STORED, COMMON = "temperature", "温度"
# A contender of the same load whose processor time for a request is the unit.
YARDSTICK: dict[Transport, Contender] = {
    "http": contenders.EMPTY,
    "mqtt": contenders.FASTSTREAM,
}
# Whose throughput is to be compared besides.
_PEER: dict[Transport, Contender] = {
    "http": contenders.CONVENTIONAL,
    "mqtt": contenders.C_ECHO,
}
_TITLE: dict[Transport, str] = {"http": "HTTP", "mqtt": "MQTT"}
_BRIDGES = (contenders.BRIDGE, contenders.V1)


def all_rows(plan: Plan) -> tuple[Row, ...]:
    """Every measured row, in the order of the report."""
    return (
        Row("reading-http", _readings("http")),
        Row("reading-mqtt", _readings("mqtt")),
        Row("statistics", _each_transport(_without_statistics)),
        Row(
            "control-http",
            _controls("http", (*_BRIDGES, contenders.CONVENTIONAL, contenders.EMPTY)),
        ),
        Row("control-mqtt", _controls("mqtt", (*_BRIDGES, contenders.FASTSTREAM))),
        Row("batch", _each_transport(_batches)),
        Row("growth", _each_transport(lambda transport: _growth(transport, plan.grown_devices))),
        Row("workers", _each_transport(_workers)),
    )


def _each_transport(cases: Callable[[Transport], tuple[Case, ...]]) -> tuple[Case, ...]:
    return cases("http") + cases("mqtt")


def _readings(transport: Transport) -> tuple[Case, ...]:
    few = (*_BRIDGES, YARDSTICK[transport])
    asked: tuple[tuple[str, str, Products, tuple[Contender, ...]], ...] = (
        (f"reading by {COMMON}", COMMON, "plain", (*few, _PEER[transport])),
        (f"reading by {COMMON}, a name of the product", COMMON, "naming", few),
        (f"reading by {STORED}", STORED, "plain", few),
    )
    return tuple(
        Case(
            f"{title}, {_TITLE[transport]}",
            Load("sensor", transport, in_flight, sensor, products),
            present,
        )
        for title, sensor, products, present in asked
        for in_flight in (1, 64)
    )


def _without_statistics(transport: Transport) -> tuple[Case, ...]:
    blind = tuple(contenders.without_statistics(each) for each in _BRIDGES)
    return tuple(
        Case(
            f"no statistics: reading by {sensor}, {_TITLE[transport]}",
            Load("sensor", transport, 64, sensor, "plain"),
            (contenders.BRIDGE, *blind),
        )
        for sensor in (COMMON, STORED)
    )


def _controls(transport: Transport, present: tuple[Contender, ...]) -> tuple[Case, ...]:
    return tuple(
        Case(f"control, {_TITLE[transport]}", Load("control", transport, in_flight), present)
        for in_flight in (1, 64)
    )


def _batches(transport: Transport) -> tuple[Case, ...]:
    title = _TITLE[transport]
    return (
        Case(f"readings one by one, {title}", Load("sensor", transport, 64), _BRIDGES),
        Case(f"100 readings a batch, {title}", Load("batch", transport, 1), _BRIDGES),
        Case(f"100 readings a batch, {title}", Load("batch", transport, 4), _BRIDGES),
    )


def _growth(transport: Transport, devices: int) -> tuple[Case, ...]:
    grown = tuple(contenders.grown(each, devices) for each in _BRIDGES)
    return (
        Case(
            f"growth: reading by {COMMON}, {_TITLE[transport]}",
            Load("sensor", transport, 64),
            (*_BRIDGES, *grown),
        ),
    )


def _workers(transport: Transport) -> tuple[Case, ...]:
    title = _TITLE[transport]
    pair = (contenders.BRIDGE, contenders.BRIDGE_2)
    return (
        Case(f"workers: reading by {COMMON}, {title}", Load("sensor", transport, 64), pair),
        Case(f"workers: control, {title}", Load("control", transport, 64), pair),
    )


def run_row(row: Row, plan: Plan, lab: Lab, counter: ControlCounter) -> list[Measured]:
    """Start the row's contenders, measure them in turn for every round, stop them."""
    present = _present(dict.fromkeys(c for case in row.cases for c in case.contenders), plan)
    measured = {
        (case, contender): Measured(
            row.name, case.title, contender.name, contender.label, case.load, case.readings
        )
        for case in row.cases
        for contender in case.contenders
        if contender in present
    }
    with ExitStack() as standing_by:
        running: dict[Contender, Running] = {}
        for contender in present:
            running[contender] = _start(contender, lab, standing_by.callback)
        for number in range(plan.rounds):
            for (case, contender), results in measured.items():
                result = measure(
                    case.load,
                    running[contender],
                    lab,
                    counter,
                    warm_up=plan.warm_up,
                    seconds=plan.seconds,
                )
                results.rounds.append(result)
                _say(f"{number + 1}/{plan.rounds} {_line(case, contender, result)}")
    return list(measured.values())


def run_footprints(plan: Plan, lab: Lab, counter: ControlCounter) -> list[Footprint]:
    """Start each contender alone, in turn for every round; weigh it idle and under load."""
    measured = {c: Footprint(c.name, c.label) for c in _present(contenders.ALL, plan)}
    for number in range(plan.rounds):
        for contender, footprint in measured.items():
            with ExitStack() as alone:
                running = _start(contender, lab, alone.callback)
                footprint.start_seconds.append(running.start_seconds)
                idle = [processes.resident_mib(pid) for pid in running.pids()]
                for transport in contender.transports:
                    measure(
                        Load("sensor", transport, 64),
                        running,
                        lab,
                        counter,
                        warm_up=plan.warm_up,
                        seconds=1,
                    )
                loaded = [processes.resident_mib(pid, peak=True) for pid in running.pids()]
            footprint.idle_largest.append(max(idle))
            footprint.idle_total.append(sum(idle))
            footprint.loaded_largest.append(max(loaded))
            footprint.loaded_total.append(sum(loaded))
            _say(
                f"{number + 1}/{plan.rounds} start: {contender.name} "
                f"{running.start_seconds:.2f} s, {sum(idle):.0f} MiB, loaded {sum(loaded):.0f} MiB"
            )
    return list(measured.values())


def _present(wanted: Sequence[Contender] | dict[Contender, None], plan: Plan) -> list[Contender]:
    # Without v1 is without v1-grown too.
    return [
        contender
        for contender in wanted
        if not {contender.name, contender.name.partition("-")[0]} & plan.without
    ]


def _start(contender: Contender, lab: Lab, at_end: Callable[..., object]) -> Running:
    running = Running(contender, lab)
    at_end(running.stop)
    return running


def _line(case: Case, contender: Contender, result: Result) -> str:
    faults = f"  WRONG: {', '.join(result.faults)}" if result.faults else ""
    return (
        f"{case.title}, {case.load.in_flight} in flight: {contender.name} "
        f"{result.per_second * case.readings:,.0f}/s "
        f"p50 {result.p50_ms:.2f} p99 {result.p99_ms:.2f} ms "
        f"{result.cpu_us['contender'] / case.readings:.1f} µs{faults}"
    )


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
