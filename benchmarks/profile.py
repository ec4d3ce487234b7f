"""``./benchmarks/run --profile``: where the time of one request goes, by room and by library.

py-spy samples the bridge while it is loaded; each sample counts for the innermost frame of Python,
so that what C code does (a system call, a JSON parser, the event loop) counts for its caller. The
shares are turned into microseconds by the CPU time that the process used for each answer.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks.contenders import BRIDGE, Lab, Running
from benchmarks.load import ControlCounter, Load, measure

_SECONDS = 6
_SAMPLES_A_SECOND = 500


def profile(lab: Lab, counter: ControlCounter) -> str:
    """The profiles of the usual requests, as Markdown tables."""
    loads = (
        ("reading by 温度, HTTP, 64 in flight", Load("sensor", "http", 64)),
        ("reading by 温度, MQTT, 64 in flight", Load("sensor", "mqtt", 64)),
        ("control, HTTP, 64 in flight", Load("control", "http", 64)),
        ("control, MQTT, 64 in flight", Load("control", "mqtt", 64)),
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
            parts[_part(frames.split(";")[-1])] += int(count)
    return parts


def _part(innermost: str) -> str:
    """The room of the bridge, or the library, that a frame belongs to: "function (file:line)"."""
    path = innermost.rpartition("(")[2].rpartition(":")[0]
    room = re.search(r"\bbridge/\w+", path)
    if room:
        return room[0].removesuffix(".py")
    library = re.search(r"site-packages/(\w+)|\b(asyncio|logging|concurrent)/", path)
    return next(filter(None, library.groups())) if library else path.split("/")[0]
