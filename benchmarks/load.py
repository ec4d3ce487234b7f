"""The load generators: wrk for HTTP, ``load/mqtt_load.c`` for MQTT; and the counter of commands."""

import json
import math
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import processes
from benchmarks.contenders import Lab, Running, Transport
from benchmarks.servers import LOOPBACK

SOURCES = Path(__file__).resolve().parent / "load"
TOOLS = ("mqtt_load", "control_counter", "echo")
# Requesters share this many MQTT connections: one would hide what the broker does with several.
CONNECTIONS = 8
BATCH = 100

Kind = Literal["sensor", "control", "batch"]
# Which devices are asked: those whose product defines the sensor name 温度, those whose product
# does not, or all (see dataset.py).
Products = Literal["naming", "plain", "any"]
_PARITIES: dict[Products, int] = {"naming": 0, "plain": 1, "any": -1}


class LoadError(RuntimeError):
    """A load generator failed; the text is what it said."""


@dataclass(frozen=True)
class Load:
    """One way of asking. Over MQTT requests and replies are QoS 1."""

    kind: Kind
    transport: Transport
    in_flight: int
    sensor: str = "温度"
    products: Products = "any"


@dataclass
class Result:
    """One measurement. ``faults`` is empty when every answer was right and every command arrived.

    ``cpu_us`` is the CPU time of one request, in µs: of all processes of the ``contender``, of
    ``mosquitto``, ``mariadbd``, the ``devices``, the ``load`` generator, and of what ``others`` on
    this machine did meanwhile.
    """

    per_second: float
    p50_ms: float
    p99_ms: float
    measured: int
    cpu_us: dict[str, float]
    faults: list[str] = field(default_factory=list)


def compile_tools(folder: Path) -> None:
    """Build the C programs into ``folder``."""
    for name in TOOLS:
        command = ["gcc", "-O2", "-Wall", "-std=gnu11", "-o", str(folder / name)]
        subprocess.run([*command, str(SOURCES / f"{name}.c"), "-lmosquitto"], check=True)


class ControlCounter:
    """Subscribed for every device, so that each command has a receiver; counts what arrives."""

    def __init__(self, lab: Lab) -> None:
        self.process = subprocess.Popen(
            [str(lab.tools / "control_counter"), LOOPBACK, str(lab.broker.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.count()

    def count(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def at_rest(self) -> int:
        """The count once nothing arrives any more of what an earlier load has left behind."""
        count = -1
        while count != (count := self.count()):
            time.sleep(0.3)
        return count

    def settled(self, at_least: int) -> int:
        """The count once it has reached ``at_least``, and what came soon after; or after 2 s."""
        deadline = time.monotonic() + 2
        while self.count() < at_least and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        return self.count()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(
    load: Load,
    running: Running,
    lab: Lab,
    counter: ControlCounter,
    *,
    warm_up: float,
    seconds: float,
) -> Result:
    """Load one contender, checking its answers and what reached the devices."""
    commands = load.kind == "control"
    before = counter.at_rest() if commands else 0
    right_controls = 0
    # wrk has no warm-up of its own, and knows whole seconds only; the MQTT generator drops its
    # warm-up from what it measures.
    if load.transport == "http" and warm_up >= 1:
        right_controls += _run(_wrk(load, running, warm_up))["controls"]
    watched = _watched(running, lab, counter)
    cpu_before = {name: _cpu(pids) for name, pids in watched.items()}
    children_before, busy_before = _children_cpu(), processes.busy_seconds()
    if load.transport == "http":
        said = _run(_wrk(load, running, seconds))
    else:
        said = _run(_mqtt_load(load, running, lab, warm_up, seconds))
    running.require_alive()
    used = {name: _cpu(pids) - cpu_before[name] for name, pids in watched.items()}
    used["load"] = _children_cpu() - children_before
    used["others"] = max(processes.busy_seconds() - busy_before - sum(used.values()), 0)
    right_controls += said["controls"]
    arrived = (
        counter.settled(before + right_controls) - before
        if commands and running.contender.answers == "reply"
        else 0
    )
    return Result(
        per_second=said["per_second"],
        p50_ms=said["p50_ms"],
        p99_ms=said["p99_ms"],
        measured=said["measured"],
        # All that was answered while the CPU was watched, a warm-up included.
        cpu_us={name: seconds * 1e6 / max(said["right"], 1) for name, seconds in used.items()},
        faults=_faults(said) + _command_faults(load, right_controls, arrived),
    )


def _wrk(load: Load, running: Running, seconds: float) -> list[str]:
    devices = running.contender.devices
    return [
        "wrk",
        *("--threads", "1", "--connections", str(load.in_flight)),
        *("--duration", f"{math.ceil(seconds)}s", "--timeout", "10s"),
        *("--script", str(SOURCES / "http.lua")),
        f"http://{LOOPBACK}:{running.http_port}",
        "--",
        load.kind,
        str(devices),
        # Each run begins elsewhere: no device is asked again soon.
        str(time.monotonic_ns() % devices),
        running.contender.answers,
        str(load.in_flight),
        load.sensor,
        str(_PARITIES[load.products]),
    ]


def _mqtt_load(load: Load, running: Running, lab: Lab, warm_up: float, seconds: float) -> list[str]:
    return [
        str(lab.tools / "mqtt_load"),
        *("--host", LOOPBACK, "--port", str(lab.broker.port), "--prefix", running.prefix),
        *("--load", load.kind, "--check", running.contender.answers),
        *("--sensor", load.sensor, "--parity", str(_PARITIES[load.products])),
        *("--in-flight", str(load.in_flight)),
        *("--connections", str(min(CONNECTIONS, load.in_flight))),
        *("--devices", str(running.contender.devices)),
        *("--warm-up", str(warm_up), "--seconds", str(seconds)),
    ]


def _run(command: list[str]) -> dict[str, Any]:
    """Run a generator; its last line is a JSON object of numbers."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.stderr:
        print(done.stderr.rstrip(), file=sys.stderr, flush=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        raise LoadError(f"{Path(command[0]).name} failed: {done.stdout}{done.stderr}")
    said: dict[str, Any] = json.loads(lines[-1])
    return said


def _watched(running: Running, lab: Lab, counter: ControlCounter) -> dict[str, list[int]]:
    return {
        "contender": running.pids(),
        "mosquitto": [lab.broker.process.pid],
        "mariadbd": [lab.database.process.pid],
        "devices": [counter.process.pid],
    }


def _cpu(pids: list[int]) -> float:
    return sum(processes.cpu_seconds(pid) for pid in pids)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _faults(said: dict[str, Any]) -> list[str]:
    faults = [f"{said[kind]} {kind}" for kind in ("wrong", "lost") if said[kind]]
    if not said["right"]:
        faults.append("no right answer")
    return faults


def _command_faults(load: Load, answered: int, arrived: int) -> list[str]:
    """Compare the controls answered with success with the commands that reached a device.

    wrk stops in the middle: what it had in flight (in its warm-up and in its run) may have been
    carried out unanswered.
    """
    unanswered = 2 * load.in_flight if load.transport == "http" else 0
    if answered <= arrived <= answered + unanswered:
        return []
    return [f"{answered} controls answered, {arrived} arrived"]
