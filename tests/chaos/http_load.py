"""`http_load.c`, compiled and run: HTTP load by a process that costs a fraction of the bridge's."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from tests.chaos.load import Outcome, Times
from tests.lab.servers import program

_SOURCE = Path(__file__).with_suffix(".c")


async def http_load(
    url: str, request: bytes, *, connections: int, seconds: float, per_second: float = 0
) -> Outcome:
    """Send one request again and again; ``per_second=0`` for each connection as soon as it can."""
    address = urlsplit(url)
    binary = await asyncio.to_thread(_compiled)
    with tempfile.NamedTemporaryFile() as file:
        file.write(request)
        file.flush()
        numbers = (connections, per_second, seconds)
        process = await asyncio.create_subprocess_exec(
            str(binary),
            str(address.hostname),
            str(address.port),
            file.name,
            *map(str, numbers),
            stdout=subprocess.PIPE,
        )
        output, _ = await process.communicate()
    assert process.returncode == 0, f"http_load ended with {process.returncode}"
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
def _compiled() -> Path:
    _folders.append(tempfile.TemporaryDirectory(prefix="http-load-"))
    binary = Path(_folders[-1].name) / "http_load"
    command = [program("gcc"), "-O2", "-std=gnu11", "-o", str(binary), str(_SOURCE)]
    subprocess.run(command, check=True)
    return binary


# Referenced until the interpreter ends, which removes them.
_folders: list[tempfile.TemporaryDirectory[str]] = []
