"""`http_load.c` and `mqtt_load.c`, compiled and run: load by processes that cost a fraction of what
the bridge does."""

from __future__ import annotations

import asyncio
import functools
import itertools
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.chaos.load import Outcome, Times
from tests.lab.mqtt import Broker
from tests.lab.servers import program, raise_descriptor_limit

_SPARE_DESCRIPTORS = 64


async def http_load(
    url: str, request: bytes, *, connections: int, seconds: float, per_second: float = 0
) -> Outcome:
    """Send one request again and again; ``per_second=0`` for each connection as soon as it can."""
    (outcome,) = await http_load_in_phases(
        url, request, (seconds,), connections=connections, per_second=per_second
    )
    return outcome


async def http_load_in_phases(
    url: str,
    request: bytes,
    phases: Sequence[float],
    *,
    connections: int,
    per_second: float = 0,
    begun: asyncio.Event | None = None,
) -> list[Outcome]:
    """The same, told for each phase of so many seconds; ``begun`` is set when the first begins."""
    # For the generator, which inherits it.
    raise_descriptor_limit(connections + _SPARE_DESCRIPTORS)
    address = urlsplit(url)
    server = (str(address.hostname), str(address.port))
    marks = itertools.accumulate(phases[:-1])
    numbers = (connections, per_second, sum(phases), *marks)
    return await _run("http_load", server, request, *numbers, begun=begun)


async def mqtt_load(
    broker: Broker,
    operation: str,
    payload: bytes,
    *,
    at_once: int = 64,
    seconds: float,
    per_second: float = 0,
) -> Outcome:
    """Ask one thing again and again at QoS 1; ``per_second=0`` for ``at_once`` at a time."""
    server = (broker.host, str(broker.port), f"plugin/request/{operation}")
    (outcome,) = await _run("mqtt_load", server, payload, 4, at_once, per_second, seconds)
    return outcome


async def _run(
    name: str,
    server: tuple[str, ...],
    request: bytes,
    *numbers: float,
    begun: asyncio.Event | None = None,
) -> list[Outcome]:
    binary = await asyncio.to_thread(_compiled, name)
    lines = []
    with tempfile.NamedTemporaryFile() as file:
        file.write(request)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            str(binary), *server, file.name, *map(str, numbers), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                lines.append(line.decode())
                if begun is not None and line == b"begun\n":
                    begun.set()
        except BaseException:
            process.kill()
            raise
        finally:
            await process.wait()
    assert process.returncode == 0, f"{name} ended with {process.returncode}"
    return _outcomes(lines)


def _outcomes(lines: Iterable[str]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    totals: dict[str, float] = {}
    for line in lines:
        name, *values = line.split()
        if name == "phase":
            outcomes.append(Outcome(elapsed=float(values[0])))
        elif name == "code":
            status, count, *times = values
            outcomes[-1].codes[int(status)] = int(count)
            outcomes[-1].times[int(status)] = Times(*(float(value) / 1000 for value in times))
        elif values:
            totals[name] = float(values[0])
    for outcome in outcomes:
        outcome.unanswered = int(totals["unanswered"])
        outcome.closed = int(totals.get("closed", 0))
        outcome.unsent = int(totals.get("unsent", 0))
        outcome.late = totals["late"] / 1000
    return outcomes


@functools.cache
def _compiled(name: str) -> Path:
    _folders.append(tempfile.TemporaryDirectory(prefix=f"{name}-"))
    binary = Path(_folders[-1].name) / name
    source = Path(__file__).with_name(f"{name}.c")
    command = [program("gcc"), "-O2", "-std=gnu11", "-Wall", "-Werror"]
    subprocess.run([*command, "-o", str(binary), str(source)], check=True)
    return binary


# Referenced until the interpreter ends, which removes them.
_folders: list[tempfile.TemporaryDirectory[str]] = []
