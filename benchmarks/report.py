"""The results as Markdown: one table with ratios, what is required, memory, and CPU."""

import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks import contenders
from benchmarks.rows import COMMON, STORED, YARDSTICK, Footprint, Measured, Metric, Plan
from benchmarks.servers import MOSQUITTO

BRIDGE, VERSION_1 = contenders.BRIDGE.name, contenders.V1.name

# Row, case, in flight, contender.
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


def _reading(title: str, transport: str, in_flight: int, contender: str) -> Place:
    return (
        f"reading-{transport.lower()}",
        f"reading by {title}, {transport}",
        in_flight,
        contender,
    )


def _control(transport: str, contender: str) -> Place:
    return (f"control-{transport.lower()}", f"control, {transport}", 64, contender)


def _batch(transport: str) -> tuple[Place, Place]:
    return (
        ("batch", f"100 readings a batch, {transport}", 4, BRIDGE),
        ("batch", f"readings one by one, {transport}", 64, BRIDGE),
    )


def _growth(transport: str) -> tuple[Place, Place]:
    case = f"growth: reading by {COMMON}, {transport}"
    return ("growth", case, 64, "bridge-grown"), ("growth", case, 64, BRIDGE)


def _to(place: Callable[..., Place], *which: object, other: str) -> tuple[Place, Place]:
    """The bridge's place and the other contender's, under the same load."""
    return place(*which, BRIDGE), place(*which, other)


_NAMED = f"{COMMON}, a name of the product"
REQUIREMENTS = (
    Requirement(
        f"reading by {COMMON}, HTTP, 64 in flight: processor time to the empty application's",
        "own_cpu_us",
        *_to(_reading, COMMON, "HTTP", 64, other="empty"),
        1.5,
        at_most=True,
    ),
    Requirement(
        "… where it is a name of the product",
        "own_cpu_us",
        *_to(_reading, _NAMED, "HTTP", 64, other="empty"),
        1.5,
        at_most=True,
    ),
    Requirement(
        "… by the stored name",
        "own_cpu_us",
        *_to(_reading, STORED, "HTTP", 64, other="empty"),
        1.4,
        at_most=True,
    ),
    Requirement(
        f"reading by {COMMON}, HTTP, 64 in flight: throughput to the conventional service",
        "per_second",
        *_to(_reading, COMMON, "HTTP", 64, other="conventional"),
        30,
    ),
    Requirement(
        "… p99 to the conventional service",
        "p99_ms",
        *_to(_reading, COMMON, "HTTP", 64, other="conventional"),
        0.04,
        at_most=True,
    ),
    Requirement(
        f"reading by {COMMON}, HTTP, alone: p50 to the empty application",
        "p50_ms",
        *_to(_reading, COMMON, "HTTP", 1, other="empty"),
        3,
        at_most=True,
    ),
    Requirement(
        f"reading by {COMMON}, MQTT, 64 in flight: throughput to FastStream + asyncmy",
        "per_second",
        *_to(_reading, COMMON, "MQTT", 64, other="faststream"),
        9,
    ),
    Requirement(
        "… to the bare echo in C",
        "per_second",
        *_to(_reading, COMMON, "MQTT", 64, other="c-echo"),
        0.75,
    ),
    Requirement(
        f"reading by {COMMON}, MQTT, alone: p50 to FastStream + asyncmy",
        "p50_ms",
        *_to(_reading, COMMON, "MQTT", 1, other="faststream"),
        0.5,
        at_most=True,
    ),
    Requirement(
        "control, MQTT, 64 in flight: throughput to FastStream + asyncmy",
        "per_second",
        *_to(_control, "MQTT", other="faststream"),
        6,
    ),
    Requirement(
        "control, HTTP, 64 in flight: throughput to the conventional service",
        "per_second",
        *_to(_control, "HTTP", other="conventional"),
        10,
    ),
    Requirement(
        "processor time of a reading in a batch of 100, to one alone, HTTP",
        "own_cpu_us",
        *_batch("HTTP"),
        0.15,
        at_most=True,
    ),
    Requirement("… MQTT", "own_cpu_us", *_batch("MQTT"), 0.15, at_most=True),
    Requirement("many devices to 10,000, HTTP: throughput", "per_second", *_growth("HTTP"), 0.9),
    Requirement("… MQTT", "per_second", *_growth("MQTT"), 0.9),
)
MEMORY_BOUND_MIB = 60
START_BOUND_SECONDS = 0.5


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
        _to_version_1(measured),
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
        "contenders in turn. Every figure is the median of its rounds, with (lowest–highest); the "
        "yardstick is the empty aiohttp application for HTTP, FastStream + asyncmy for MQTT; over "
        "MQTT all is QoS 1. The figures of a batch are those of one reading, but for p50 and p99. "
        f"Every answer was checked. Before the run, the machine used {others:.2f} of its cores."
    )


def _results(measured: Sequence[Measured]) -> str:
    if not measured:
        return ""
    lines = [
        "| load | in flight | contender | a second | p50, ms | p99, ms | own processor time, µs"
        " | … to the yardstick | the bridge's throughput |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for one in measured:
        wrong = f" **WRONG: {'; '.join(one.faults)}**" if one.faults else ""
        name = f"**{one.label}**" if one.contender == BRIDGE else one.label
        yardstick = _beside(one, measured, YARDSTICK[one.load.transport].name)
        bridge = _beside(one, measured, BRIDGE)
        lines.append(
            f"| {one.case} | {one.load.in_flight} | {name}{wrong} | {_spread(one, 'per_second', 0)}"
            f" | {_spread(one, 'p50_ms', 2)} | {_spread(one, 'p99_ms', 2)}"
            f" | {_spread(one, 'own_cpu_us', 1)}"
            f" | {_ratio(one, yardstick, 'own_cpu_us')}"
            f" | {'' if one.contender == BRIDGE else _ratio(bridge, one, 'per_second')} |"
        )
    return "\n".join(lines)


def _to_version_1(measured: Sequence[Measured]) -> str:
    """Each of the bridge's rows over version 1.0's, and what is slower by more than the spread."""
    lines = [
        "| the bridge to version 1.0 | in flight | a second | p50 | p99 | own processor time | |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for one in measured:
        before = _beside(one, measured, _as_version_1(one.contender))
        if before is None or before is one:
            continue
        ratios = " | ".join(
            _ratio(one, before, metric, spread=True)
            for metric in ("per_second", "p50_ms", "p99_ms", "own_cpu_us")
        )
        slower = "**slower**" if _slower(one, before) else ""
        # Of a case with several databases, which one.
        case = one.case if one.contender == BRIDGE else f"{one.case} ({one.label})"
        lines.append(f"| {case} | {one.load.in_flight} | {ratios} | {slower} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _slower(one: Measured, before: Measured) -> bool:
    """Less throughput, or more processor time, by more than either's rounds differ."""
    if len(one.rounds) == 1:
        return False
    less = before.median("per_second") - one.median("per_second")
    more = one.median("own_cpu_us") - before.median("own_cpu_us")
    return less > max(_width(one, "per_second"), _width(before, "per_second")) or more > max(
        _width(one, "own_cpu_us"), _width(before, "own_cpu_us")
    )


def _width(one: Measured, metric: Metric) -> float:
    return max(one.each(metric)) - min(one.each(metric))


def _as_version_1(contender: str) -> str:
    return contender.replace(BRIDGE, VERSION_1)


def _requirements(measured: Sequence[Measured], footprints: Sequence[Footprint]) -> str:
    rows = []
    for requirement in REQUIREMENTS:
        over, under = _find(measured, requirement.over), _find(measured, requirement.under)
        if over is None or under is None:
            continue
        before = _ratio(
            _find(measured, _before(requirement.over)),
            _find(measured, _before(requirement.under)),
            requirement.metric,
        )
        now = _ratio(over, under, requirement.metric, spread=True)
        rows.append(
            f"| {requirement.text} | {'at most' if requirement.at_most else 'at least'} "
            f"{_number(requirement.bound)} | {before} | {now or 'wrong answers'} | "
            f"{_yes(bool(now) and _reached(requirement, over, under))} |"
        )
    rows += _footprint_requirements(footprints)
    if not rows:
        return ""
    return "\n".join(
        (
            "| it must reach | bound | version 1.0 | the bridge | reached |",
            "|---|--:|--:|--:|---|",
            *rows,
        )
    )


def _before(place: Place) -> Place:
    return (*place[:3], _as_version_1(place[3]))


def _reached(requirement: Requirement, over: Measured, under: Measured) -> bool:
    ratio = over.median(requirement.metric) / under.median(requirement.metric)
    return ratio <= requirement.bound if requirement.at_most else ratio >= requirement.bound


def _footprint_requirements(footprints: Sequence[Footprint]) -> list[str]:
    by_name = {footprint.contender: footprint for footprint in footprints}
    if BRIDGE not in by_name:
        return []
    one, before = by_name[BRIDGE], by_name.get(VERSION_1)
    memory, start = statistics.median(one.idle_largest), statistics.median(one.start_seconds)
    return [
        f"| memory after start, MiB | at most {MEMORY_BOUND_MIB}"
        f" | {_of(before.idle_largest, 1) if before else ''} | {_of(one.idle_largest, 1)}"
        f" | {_yes(memory <= MEMORY_BOUND_MIB)} |",
        f"| start to first right answer, s | at most {START_BOUND_SECONDS}"
        f" | {_of(before.start_seconds, 2) if before else ''} | {_of(one.start_seconds, 2)}"
        f" | {_yes(start <= START_BOUND_SECONDS)} |",
    ]


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
    """Who used the processor, in cores (CPU seconds a second)."""
    busy = [one for one in measured if one.load.in_flight > 1]
    if not busy:
        return ""
    names = ("contender", "mosquitto", "mariadbd", "devices", "load", "others")
    lines = [
        "| cores used, more than 1 in flight | contender | its processes | mosquitto | mariadbd"
        " | devices | load generator | others |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for one in busy:
        requests = statistics.median(result.per_second for result in one.rounds)
        cores = (
            statistics.median(result.cpu_us[name] for result in one.rounds) * requests / 1e6
            for name in names
        )
        lines.append(
            f"| {one.case}, {one.load.in_flight} in flight | {one.label}"
            f" | {' | '.join(f'{each:.2f}' for each in cores)} |"
        )
    return "\n".join(lines)


def _find(measured: Sequence[Measured], place: Place) -> Measured | None:
    for one in measured:
        if (one.row, one.case, one.load.in_flight, one.contender) == place:
            return one
    return None


def _beside(one: Measured, measured: Sequence[Measured], contender: str) -> Measured | None:
    """Another contender under the same load."""
    return _find(measured, (one.row, one.case, one.load.in_flight, contender))


def _ratio(
    over: Measured | None, under: Measured | None, metric: Metric, *, spread: bool = False
) -> str:
    """The ratio of the medians, and the range of the rounds' own ratios; "" where there is none.

    Neighbours in time make a pair: what slows a round slows both.
    """
    if over is None or under is None or over.faults or under.faults:
        return ""
    pairs = list(zip(over.each(metric), under.each(metric), strict=True))
    if not all(divisor for _, divisor in pairs):
        return ""
    middle = _number(over.median(metric) / under.median(metric))
    if not spread or len(pairs) == 1:
        return middle
    ratios = [value / divisor for value, divisor in pairs]
    return f"{middle} ({_number(min(ratios))}–{_number(max(ratios))})"


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
