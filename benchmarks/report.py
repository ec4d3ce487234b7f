"""The results as Markdown: one table with ratios, what is required, memory, and CPU."""

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from benchmarks.rows import Footprint, Measured, Plan
from benchmarks.servers import MOSQUITTO

BRIDGE = "bridge"

Metric = Literal["per_second", "p50_ms", "p99_ms"]
# Row, part of the case's title, in flight, contender.
Place = tuple[str, str, int, str]


@dataclass(frozen=True)
class Requirement:
    """``metric`` at one place over the same at another is at least, or at most, ``bound``."""

    text: str
    metric: Metric
    over: Place
    under: Place
    bound: float
    at_most: bool = False


_HTTP = "sensor query, HTTP"
_QOS1 = "sensor query, MQTT QoS 1"

REQUIREMENTS = (
    Requirement(
        "sensor query, HTTP, 64 in flight, to the conventional service: throughput",
        "per_second",
        ("sensor-http", _HTTP, 64, BRIDGE),
        ("sensor-http", _HTTP, 64, "conventional"),
        25,
    ),
    Requirement(
        "… its p99",
        "p99_ms",
        ("sensor-http", _HTTP, 64, BRIDGE),
        ("sensor-http", _HTTP, 64, "conventional"),
        1 / 20,
        at_most=True,
    ),
    Requirement(
        "… to the aiohttp handler that does nothing: throughput",
        "per_second",
        ("sensor-http", _HTTP, 64, BRIDGE),
        ("sensor-http", _HTTP, 64, "aiohttp-nothing"),
        0.55,
    ),
    Requirement(
        "sensor query, HTTP, alone, to the handler that does nothing: p50",
        "p50_ms",
        ("sensor-http", _HTTP, 1, BRIDGE),
        ("sensor-http", _HTTP, 1, "aiohttp-nothing"),
        3,
        at_most=True,
    ),
    Requirement(
        "sensor query, MQTT QoS 1, 64 in flight, to FastStream + asyncmy: throughput",
        "per_second",
        ("sensor-mqtt", _QOS1, 64, BRIDGE),
        ("sensor-mqtt", _QOS1, 64, "faststream"),
        3,
    ),
    Requirement(
        "… to the bare echo with aiomqtt as its guide shows it: throughput",
        "per_second",
        ("sensor-mqtt", _QOS1, 64, BRIDGE),
        ("sensor-mqtt", _QOS1, 64, "aiomqtt-echo"),
        1,
    ),
    Requirement(
        "sensor query, MQTT QoS 1, alone, to FastStream + asyncmy: p50",
        "p50_ms",
        ("sensor-mqtt", _QOS1, 1, BRIDGE),
        ("sensor-mqtt", _QOS1, 1, "faststream"),
        0.6,
        at_most=True,
    ),
    Requirement(
        "control, MQTT QoS 1, 64 in flight, to FastStream doing the same: throughput",
        "per_second",
        ("control-mqtt", "control, MQTT QoS 1", 64, BRIDGE),
        ("control-mqtt", "control, MQTT QoS 1", 64, "faststream"),
        2.5,
    ),
    Requirement(
        "100 readings in one batch to one by one at 64 in flight, HTTP: readings a second",
        "per_second",
        ("batch", "100 readings a batch, HTTP", 1, BRIDGE),
        ("batch", "readings one by one, HTTP", 64, BRIDGE),
        5,
    ),
    Requirement(
        "… MQTT QoS 1",
        "per_second",
        ("batch", "100 readings a batch, MQTT QoS 1", 1, BRIDGE),
        ("batch", "readings one by one, MQTT QoS 1", 64, BRIDGE),
        5,
    ),
    Requirement(
        "many devices to 10,000, HTTP: throughput",
        "per_second",
        ("growth", "growth: sensor query, HTTP", 64, "bridge-grown"),
        ("growth", "growth: sensor query, HTTP", 64, BRIDGE),
        0.85,
    ),
    Requirement(
        "… MQTT QoS 1",
        "per_second",
        ("growth", "growth: sensor query, MQTT QoS 1", 64, "bridge-grown"),
        ("growth", "growth: sensor query, MQTT QoS 1", 64, BRIDGE),
        0.85,
    ),
)
MEMORY_BOUND_MIB = 80


def markdown(
    measured: Sequence[Measured],
    footprints: Sequence[Footprint],
    plan: Plan,
    database: str,
    others: float,
) -> str:
    """The whole report. ``others`` is how many cores were in use before anything was started."""
    parts = [
        _surroundings(plan, database, others),
        _results(measured),
        _requirements(measured, footprints),
        _footprints(footprints),
        _cores(measured),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _surroundings(plan: Plan, database: str, others: float) -> str:
    """What the figures depend on, and how to read them."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    broker = subprocess.run([MOSQUITTO, "-h"], capture_output=True, text=True, check=False)
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("aiohttp", "aiomqtt", "asyncmy", "uvloop", "fastapi", "sqlalchemy", "zmqtt")
    )
    return (
        f"{os.cpu_count()} cores ({cpu}), shared by contender, broker, database and load "
        f"generator; {broker.stdout.partition(chr(10))[0]}, MariaDB {database}, "
        f"Python {platform.python_version()}, FastStream {metadata.version('faststream')}, "
        f"{versions}. {plan.rounds} rounds of {plan.seconds} s after {plan.warm_up} s of warm-up, "
        "contenders in turn. Every figure is the median of its rounds, with (lowest–highest); "
        f"every answer was checked. Before the run, the machine used {others:.2f} of its cores."
    )


def _results(measured: Sequence[Measured]) -> str:
    if not measured:
        return ""
    lines = [
        "| load | in flight | contender | a second | p50, ms | p99, ms | the bridge is |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    for one in measured:
        wrong = f" **WRONG: {'; '.join(one.faults)}**" if one.faults else ""
        name = f"**{one.label}**" if one.contender == BRIDGE else one.label
        lines.append(
            f"| {one.case} | {one.load.in_flight} | {name}{wrong} | {_spread(one, 'per_second', 0)}"
            f" | {_spread(one, 'p50_ms', 2)} | {_spread(one, 'p99_ms', 2)} |"
            f" {_bridge_to(one, measured)} |"
        )
    return "\n".join(lines)


def _bridge_to(one: Measured, measured: Sequence[Measured]) -> str:
    """How many times this contender's throughput the bridge has under the same load."""
    if one.contender == BRIDGE or not one.median("per_second"):
        return ""
    bridge = _find(measured, (one.row, one.case, one.load.in_flight, BRIDGE))
    if bridge is None or bridge.faults or one.faults:
        return ""
    return f"{_number(bridge.median('per_second') / one.median('per_second'))} ×"


def _requirements(measured: Sequence[Measured], footprints: Sequence[Footprint]) -> str:
    rows = []
    for requirement in REQUIREMENTS:
        over, under = _find(measured, requirement.over), _find(measured, requirement.under)
        if over is None or under is None:
            continue
        # Neighbours in time make a pair: what slows a round slows both.
        pairs = list(
            zip(over.each(requirement.metric), under.each(requirement.metric), strict=True)
        )
        if over.faults or under.faults or not all(divisor for _, divisor in pairs):
            rows.append(f"| {requirement.text} | | wrong answers | **no** |")
            continue
        ratio = over.median(requirement.metric) / under.median(requirement.metric)
        ratios = [value / divisor for value, divisor in pairs]
        reached = ratio <= requirement.bound if requirement.at_most else ratio >= requirement.bound
        rows.append(
            f"| {requirement.text} | {'at most' if requirement.at_most else 'at least'} "
            f"{_number(requirement.bound)} | {_number(ratio)} "
            f"({_number(min(ratios))}–{_number(max(ratios))}) | {_yes(reached)} |"
        )
    for footprint in footprints:
        if footprint.contender in (BRIDGE, "bridge-2"):
            largest = max(footprint.idle_largest)
            rows.append(
                f"| memory after start, {footprint.label}: largest process | under "
                f"{MEMORY_BOUND_MIB} MiB | {largest:.0f} MiB | {_yes(largest < MEMORY_BOUND_MIB)} |"
            )
    if not rows:
        return ""
    return "\n".join(["| it must reach | bound | measured | reached |", "|---|--:|--:|---|", *rows])


def _footprints(footprints: Sequence[Footprint]) -> str:
    if not footprints:
        return ""
    lines = [
        "| contender | start to first right answer, s | memory after start, MiB"
        " | most under load, MiB | largest process after start, under load |",
        "|---|--:|--:|--:|--:|",
    ]
    lines.extend(
        f"| {one.label} | {_of(one.start_seconds, 2)} | {_of(one.idle_total, 0)}"
        f" | {_of(one.loaded_total, 0)}"
        f" | {statistics.median(one.idle_largest):.0f},"
        f" {statistics.median(one.loaded_largest):.0f} |"
        for one in footprints
    )
    return "\n".join(lines)


def _cores(measured: Sequence[Measured]) -> str:
    """Who used the processor: cores (CPU seconds a second), and what a request cost."""
    busy = [one for one in measured if one.load.in_flight > 1]
    if not busy:
        return ""
    lines = [
        "| cores used, more than 1 in flight | contender | its processes | mosquitto | mariadbd"
        " | devices | load generator | contender's CPU a request, µs |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for one in busy:
        cost = {
            name: statistics.median(result.cpu_us.get(name, 0.0) for result in one.rounds)
            for name in one.rounds[0].cpu_us
        }
        requests = statistics.median(result.per_second for result in one.rounds)
        cores = {name: microseconds * requests / 1e6 for name, microseconds in cost.items()}
        own = [name for name in cost if name.startswith("contender")]
        lines.append(
            f"| {one.case}, {one.load.in_flight} in flight | {one.label}"
            f" | {' + '.join(f'{cores[name]:.2f}' for name in own)}"
            f" | {cores['mosquitto']:.2f} | {cores['mariadbd']:.2f} | {cores['devices']:.2f}"
            f" | {cores['load']:.2f} | {sum(cost[name] for name in own):,.0f} |"
        )
    return "\n".join(lines)


def _find(measured: Sequence[Measured], place: Place) -> Measured | None:
    for one in measured:
        if (one.row, one.case, one.load.in_flight, one.contender) == place:
            return one
    return None


def _spread(one: Measured, metric: Metric, digits: int) -> str:
    return _of(one.each(metric), digits)


def _of(values: Sequence[float], digits: int) -> str:
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def _number(value: float) -> str:
    """Three digits that matter."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _yes(reached: bool) -> str:
    return "yes" if reached else "**no**"
