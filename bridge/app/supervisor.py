"""The parent of `WORKERS=n`: starts n workers, watches over them, starts them again, drains them.

It carries no request. With each worker it has two pipes in common: one whose end tells the workers
that it has gone, and one over which each worker says every second that its loop turns.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client import multiprocess

from ..observability.metrics import WORKER_NUMBER
from ..settings import Settings
from . import systemd

logger = logging.getLogger(__name__)

LIFELINE = "BRIDGE_WORKER_LIFELINE"
PULSE = "BRIDGE_WORKER_PULSE"
PULSE_SECONDS = 1.0
# What a worker gets on top of DRAIN_TIMEOUT before it is killed.
GRACE_SECONDS = 3.0
# A worker's exit statuses that end the first start, and what we make of them. Once all have
# listened, a file that can't be read may become readable again.
CANT_LISTEN, BAD_SETTINGS = 71, 2
_FINAL = {CANT_LISTEN: 1, BAD_SETTINGS: 2}

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
# A worker that ran for so long had started well: the next pause is a short one again.
_RAN_WELL_SECONDS = 30.0
_SYSTEMD = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})


class _Pipes(NamedTuple):
    lifeline: int
    pulse: int


@dataclass(slots=True)
class _Worker:
    process: asyncio.subprocess.Process
    # It sent a pulse: from then on it handles signals and requests.
    listens: bool = False
    # How many pulses are missing since the last one.
    silent: int = 0
    # A SIGHUP came before it could handle one.
    hung_up: bool = False

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def hang_up(self) -> None:
        """Have it read its keys again, as soon as it does not die of the signal."""
        if self.listens:
            self.send(signal.SIGHUP)
        else:
            self.hung_up = True


@dataclass(slots=True)
class Parent:
    """Keeps the workers running until it is told to stop, or until one can't start at first."""

    settings: Settings
    stopping: asyncio.Event
    # Past this a silent worker is killed; while it starts, past four times this.
    most_silent_seconds: int = 30
    workers: dict[int, _Worker] = field(default_factory=dict)
    hangups: int = 0
    status: int = 0
    ready: bool = False

    async def run(self) -> int:
        """Run all workers until told to stop; the exit status."""
        self._warn_of_memory()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        folder = tempfile.mkdtemp(prefix="bridge-metrics-")
        lifeline, ours = os.pipe()
        heard, pulse = os.pipe()
        # A worker must not block on a full pipe.
        os.set_blocking(pulse, False)
        loop.add_reader(heard, self._hear, heard)
        try:
            await self._keep_all(folder, _Pipes(lifeline, pulse))
        finally:
            loop.remove_reader(heard)
            for descriptor in (lifeline, ours, heard, pulse):
                os.close(descriptor)
            shutil.rmtree(folder, ignore_errors=True)
        logger.info("all workers have stopped")
        return self.status

    async def _keep_all(self, folder: str, pipes: _Pipes) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(1, self.settings.workers + 1):
                tasks.create_task(self._keep(number, folder, pipes), name=f"worker {number}")
            tasks.create_task(self._stop(), name="stop workers")
            watching = [
                tasks.create_task(systemd.watchdog(), name="watchdog"),
                tasks.create_task(self._watch(), name="watch workers"),
            ]
            await self.stopping.wait()
            systemd.notify("STOPPING=1")
            for task in watching:
                task.cancel()

    async def _keep(self, number: int, folder: str, pipes: _Pipes) -> None:
        pause = _FIRST_PAUSE
        while not self.stopping.is_set():
            started = time.monotonic()
            process = await self._start(number, folder, pipes)
            status = await process.wait()
            del self.workers[number]
            # Removes its gauges; its successor goes on with its counters.
            multiprocess.mark_process_dead(number, folder)  # type: ignore[no-untyped-call]
            if self.stopping.is_set():
                # A worker that was still starting had no handler for SIGTERM yet, and no request.
                if status != -signal.SIGTERM:
                    self.status = max(self.status, abs(status))
                return
            if status in _FINAL and not self.ready:
                self.status = _FINAL[status]
                self.stopping.set()
                return
            logger.error("worker %d ended with status %d; starting it again", number, status)
            pause = _FIRST_PAUSE if time.monotonic() - started > _RAN_WELL_SECONDS else pause
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.stopping.wait()
            pause = min(_LONGEST_PAUSE, 2 * pause)

    async def _start(self, number: int, folder: str, pipes: _Pipes) -> asyncio.subprocess.Process:
        hangups = self.hangups
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bridge",
            pass_fds=pipes,
            # Else Ctrl-C at the terminal would reach the workers directly.
            start_new_session=True,
            env={
                # The parent alone notifies systemd.
                **{name: value for name, value in os.environ.items() if name not in _SYSTEMD},
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                WORKER_NUMBER: str(number),
                LIFELINE: str(pipes.lifeline),
                PULSE: str(pipes.pulse),
                "PROMETHEUS_MULTIPROC_DIR": folder,
                "MQTT_INSTANCE": f"{self.settings.instance}-{number}",
            },
        )
        self.workers[number] = _Worker(process, hung_up=self.hangups > hangups)
        if self.stopping.is_set():
            process.terminate()
        return process

    def _hear(self, heard: int) -> None:
        """A byte for each worker that spoke: its number."""
        for number in os.read(heard, 4096):
            worker = self.workers.get(number)
            if worker is None:
                continue
            worker.silent = 0
            worker.listens = True
            if worker.hung_up:
                worker.hung_up = False
                worker.hang_up()
        listening = sum(worker.listens for worker in self.workers.values())
        if listening == self.settings.workers and not self.ready:
            self.ready = True
            systemd.notify(f"READY=1\nSTATUS={listening} workers")

    async def _watch(self) -> None:
        """Kill a worker that hangs: it would swallow its share of the requests.

        Silence is counted in pulses, not by the clock: while the machine slept, nobody could speak.
        """
        while True:
            await asyncio.sleep(PULSE_SECONDS)
            for number, worker in self.workers.items():
                worker.silent += 1
                if worker.silent > self.most_silent_seconds * (1 if worker.listens else 4):
                    logger.error("worker %d hangs and is killed", number)
                    worker.send(signal.SIGKILL)
                    worker.silent = 0

    async def _stop(self) -> None:
        await self.stopping.wait()
        self._forward(signal.SIGTERM)
        try:
            async with asyncio.timeout(self.settings.drain_timeout + GRACE_SECONDS):
                while self.workers:
                    await asyncio.gather(
                        *(worker.process.wait() for worker in list(self.workers.values()))
                    )
                    await asyncio.sleep(0)
        except TimeoutError:
            logger.error("workers did not stop in time and are killed")  # noqa: TRY400
            self._forward(signal.SIGKILL)

    def _forward(self, number: signal.Signals) -> None:
        for worker in self.workers.values():
            worker.send(number)

    def _hang_up(self) -> None:
        self.hangups += 1
        for worker in self.workers.values():
            worker.hang_up()

    def _warn_of_memory(self) -> None:
        if self.settings.dedup_store == "memory":
            logger.warning(
                "WORKERS=%d with DEDUP_STORE=memory: a duplicate that another worker gets is "
                "executed again; set DEDUP_STORE=mysql (with either, two workers may each run a "
                "sequence on one device)",
                self.settings.workers,
            )
