"""What is measured: rows of cases, each case the same load on several contenders in turn."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks import contenders, dataset, processes
from benchmarks.contenders import Contender, Lab, Running
from benchmarks.load import BATCH, ControlCounter, Load, Result, measure


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

    def each(self, metric: str) -> list[float]:
        """One figure of every round: ``per_second`` (of readings), ``p50_ms`` or ``p99_ms``."""
        factor = self.readings if metric == "per_second" else 1
        return [getattr(result, metric) * factor for result in self.rounds]

    def median(self, metric: str) -> float:
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


def all_rows(plan: Plan) -> tuple[Row, ...]:
    """Every measured row, in the order of the report."""
    bridge, bridge_2 = contenders.BRIDGE, contenders.BRIDGE_2
    over_http = (bridge, contenders.CONVENTIONAL, contenders.AIOHTTP_NOTHING)
    over_mqtt = (bridge, contenders.FASTSTREAM, contenders.AIOMQTT_ECHO, contenders.C_ECHO)
    grown = contenders.bridge(
        "bridge-grown", f"the bridge, {plan.grown_devices:,} devices", 1, plan.grown_devices
    )
    return (
        Row(
            "sensor-http",
            tuple(
                Case("sensor query, HTTP", Load("sensor", "http", in_flight), over_http)
                for in_flight in (1, 64)
            ),
        ),
        Row(
            "sensor-mqtt",
            tuple(
                Case(
                    f"sensor query, MQTT QoS {qos}",
                    Load("sensor", "mqtt", in_flight, qos),
                    over_mqtt,
                )
                for qos in (0, 1)
                for in_flight in (1, 64)
            ),
        ),
        Row(
            "control-http",
            tuple(
                Case("control, HTTP", Load("control", "http", in_flight), over_http[:2])
                for in_flight in (1, 64)
            ),
        ),
        Row(
            "control-mqtt",
            tuple(
                Case(
                    f"control, MQTT QoS {qos}",
                    Load("control", "mqtt", in_flight, qos),
                    over_mqtt[:2],
                )
                for qos, in_flight in ((0, 64), (1, 1), (1, 64))
            ),
        ),
        Row(
            "batch",
            (
                Case("readings one by one, HTTP", Load("sensor", "http", 64), (bridge,)),
                Case("100 readings a batch, HTTP", Load("batch", "http", 1), (bridge,)),
                Case("100 readings a batch, HTTP", Load("batch", "http", 4), (bridge,)),
                Case("readings one by one, MQTT QoS 1", Load("sensor", "mqtt", 64, 1), (bridge,)),
                Case("100 readings a batch, MQTT QoS 1", Load("batch", "mqtt", 1, 1), (bridge,)),
                Case("100 readings a batch, MQTT QoS 1", Load("batch", "mqtt", 4, 1), (bridge,)),
            ),
        ),
        Row(
            "mixed",
            (
                Case("80 % reads, 20 % controls, HTTP", Load("mixed", "http", 64), over_http[:2]),
                Case(
                    "80 % reads, 20 % controls, MQTT QoS 1",
                    Load("mixed", "mqtt", 64, 1),
                    over_mqtt[:2],
                ),
            ),
        ),
        Row(
            "growth",
            (
                Case("growth: sensor query, HTTP", Load("sensor", "http", 64), (bridge, grown)),
                Case(
                    "growth: sensor query, MQTT QoS 1",
                    Load("sensor", "mqtt", 64, 1),
                    (bridge, grown),
                ),
            ),
        ),
        Row(
            "workers",
            (
                Case("workers: sensor query, HTTP", Load("sensor", "http", 64), (bridge, bridge_2)),
                Case(
                    "workers: sensor query, MQTT QoS 1",
                    Load("sensor", "mqtt", 64, 1),
                    (bridge, bridge_2),
                ),
                Case(
                    "workers: control, MQTT QoS 1",
                    Load("control", "mqtt", 64, 1),
                    (bridge, bridge_2),
                ),
            ),
        ),
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
                        Load("sensor", transport, 64, 1),
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
    return [contender for contender in wanted if contender.name not in plan.without]


def _start(contender: Contender, lab: Lab, at_end: Callable[..., object]) -> Running:
    running = Running(contender, lab)
    at_end(running.stop)
    return running


def _line(case: Case, contender: Contender, result: Result) -> str:
    faults = f"  WRONG: {', '.join(result.faults)}" if result.faults else ""
    return (
        f"{case.title}, {case.load.in_flight} in flight: {contender.name} "
        f"{result.per_second * case.readings:,.0f}/s "
        f"p50 {result.p50_ms:.2f} p99 {result.p99_ms:.2f} ms{faults}"
    )


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
