"""`http_load.c` and `mqtt_load.c`, compiled and run: load by processes that cost a fraction of what
the bridge does."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from tests.chaos.load import Outcome, Times
from tests.lab.mqtt import Broker
from tests.lab.servers import program


async def http_load(
    url: str, request: bytes, *, connections: int, seconds: float, per_second: float = 0
) -> Outcome:
    """Send one request again and again; ``per_second=0`` for each connection as soon as it can."""
    address = urlsplit(url)
    server = (str(address.hostname), str(address.port))
    return await _run("http_load", server, request, connections, per_second, seconds)


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
    return await _run("mqtt_load", server, payload, 4, at_once, per_second, seconds)


async def _run(name: str, server: tuple[str, ...], request: bytes, *numbers: float) -> Outcome:
    binary = await asyncio.to_thread(_compiled, name)
    with tempfile.NamedTemporaryFile() as file:
        file.write(request)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            str(binary), *server, file.name, *map(str, numbers), stdout=subprocess.PIPE
        )
        output, _ = await process.communicate()
    assert process.returncode == 0, f"{name} ended with {process.returncode}"
    return _outcome(output.decode())


def _outcome(output: str) -> Outcome:
    outcome = Outcome()
    for line in output.splitlines():
        name, *values = line.split()
        if name == "code":
            status, count, *times = values
            outcome.codes[int(status)] = int(count)
            outcome.times[int(status)] = Times(*(float(value) / 1000 for value in times))
        elif name == "late":
            outcome.late = float(values[0]) / 1000
        elif name == "unanswered":
            outcome.unanswered = int(values[0])
        else:
            outcome.elapsed = float(values[0])
    return outcome


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
