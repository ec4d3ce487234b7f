"""``./benchmarks/run --profile``: where the time of one request goes, by parts of the program.

py-spy samples the bridge while it is loaded; each sample counts for the innermost frame of Python,
so that what C code does (a system call, a JSON parser, the event loop) counts for its caller. The
shares are turned into microseconds by the CPU time that the process used for each answer.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.contenders import BRIDGE, Lab, Running
from benchmarks.load import ControlCounter, Load, measure

_SECONDS = 6
_SAMPLES_A_SECOND = 500

# What a frame belongs to, by its file; the first that matches.
_PARTS = (
    ("bridge/sidecar.py", "HTTP: cut into requests, the answer's head and body, writing them"),
    ("bridge/framing.py", "HTTP: cut into requests, the answer's head and body, writing them"),
    ("bridge/connections.py", "HTTP: cut into requests, the answer's head and body, writing them"),
    ("bridge/shedding.py", "HTTP: admit, read the query, choose the answer"),
    ("bridge/bodies.py", "HTTP: admit, read the query, choose the answer"),
    ("bridge/http.py", "HTTP: admit, read the query, choose the answer"),
    ("aiohttp/", "HTTP: aiohttp (parse, route, a task a request)"),
    ("yarl/", "HTTP: aiohttp (parse, route, a task a request)"),
    ("multidict/", "HTTP: aiohttp (parse, route, a task a request)"),
    ("bridge/link/", "MQTT: reading and writing the socket"),
    ("bridge/wire.py", "MQTT: packets"),
    ("bridge/mqtt/", "MQTT: address, deliver, acknowledge"),
    ("bridge/topics.py", "MQTT: address, deliver, acknowledge"),
    ("bridge/database.py", "database: send a statement, turn the rows to Python (asyncmy)"),
    ("asyncmy/", "database: send a statement, turn the rows to Python (asyncmy)"),
    ("bridge/store.py", "database: collect requests, rows to models"),
    ("bridge/models.py", "database: collect requests, rows to models"),
    ("bridge/metrics.py", "observe: metrics, console, log"),
    ("bridge/activity.py", "observe: metrics, console, log"),
    ("bridge/logs.py", "observe: metrics, console, log"),
    ("prometheus_client/", "observe: metrics, console, log"),
    ("logging/", "observe: metrics, console, log"),
    ("bridge/", "the operation: open, validate, deadline, run, envelope"),
    ("pydantic/", "the operation: open, validate, deadline, run, envelope"),
    ("asyncio/", "the event loop, and what it waits for"),
)
_ELSE = "other"


def profile(lab: Lab, counter: ControlCounter) -> str:
    """The profiles of the three usual requests, as Markdown tables."""
    loads = (
        ("sensor query, HTTP, 64 in flight", Load("sensor", "http", 64)),
        ("sensor query, MQTT QoS 1, 64 in flight", Load("sensor", "mqtt", 64, 1)),
        ("control, MQTT QoS 1, 64 in flight", Load("control", "mqtt", 64, 1)),
    )
    running = Running(BRIDGE, lab)
    try:
        return "\n".join(_table(name, load, running, lab, counter) for name, load in loads)
    finally:
        running.stop()


def _table(name: str, load: Load, running: Running, lab: Lab, counter: ControlCounter) -> str:
    plain = measure(load, running, lab, counter, warm_up=1, seconds=_SECONDS / 2)
    samples = _sampled(load, running, lab, counter)
    total = sum(samples.values())
    each = plain.cpu_us["contender"]
    lines = [
        f"| {name}: {plain.per_second:,.0f}/s, {each:.0f} µs of CPU each | share | µs |",
        "|---|--:|--:|",
    ]
    lines += [
        f"| {part} | {count / total:.0%} | {each * count / total:.1f} |"
        for part, count in samples.most_common()
    ]
    return "\n".join(lines) + "\n"


def _sampled(load: Load, running: Running, lab: Lab, counter: ControlCounter) -> Counter[str]:
    with tempfile.NamedTemporaryFile(prefix="profile-", suffix=".txt") as file:
        sampler = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("py-spy")), "record"),
                *("--pid", str(running.process.pid), "--duration", str(_SECONDS)),
                *("--rate", str(_SAMPLES_A_SECOND), "--format", "raw", "--output", file.name),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        measure(load, running, lab, counter, warm_up=0.5, seconds=_SECONDS + 1)
        sampler.wait()
        return _by_part(Path(file.name).read_text().splitlines())


def _by_part(stacks: Iterable[str]) -> Counter[str]:
    """Samples by part: a line is the frames, outermost first, and how often they were seen."""
    parts: Counter[str] = Counter()
    for line in stacks:
        frames, _, count = line.rpartition(" ")
        # A thread of the executor that waits for work is no work.
        if "concurrent/futures/thread.py" not in frames:
            parts[_part(frames.split(";"))] += int(count)
    return parts


def _part(frames: Sequence[str]) -> str:
    innermost = frames[-1]
    return next((part for path, part in _PARTS if path in innermost), _ELSE)
