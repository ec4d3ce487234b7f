"""`WORKERS=n`: one parent that starts, watches, restarts and drains n bridges.

Each worker is a whole bridge of its own: its own MQTT connection in the same `$share` group, its
own socket on the same HTTP port (`SO_REUSEPORT`), its own database pool. The parent carries no
request. Metrics meet in files of prometheus-client's, in a folder that the parent owns.
"""

import asyncio
import contextlib
import gc
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

from . import database, link, systemd
from .access import read_keys
from .app import Bridge, stop_signal
from .http import PortTakenError
from .settings import Settings, SettingsError

logger = logging.getLogger(__name__)

_NUMBER = "BRIDGE_WORKER_NUMBER"
_LIFELINE = "BRIDGE_WORKER_LIFELINE"
_STARTED = "BRIDGE_WORKER_STARTED"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
# A worker that ran for so long had started well: the next pause is a short one again.
_RAN_WELL_SECONDS = 30.0
_SYSTEMD = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})
# What a worker gets on top of DRAIN_TIMEOUT before it is killed.
_GRACE_SECONDS = 3.0
# A worker's exit statuses that another start would not mend, and what the parent makes of them.
_CANT_LISTEN, _BAD_SETTINGS = 71, 2
_FINAL = {_CANT_LISTEN: 1, _BAD_SETTINGS: 2}


async def serve(settings: Settings) -> int:
    """Serve until told to stop; the exit status."""
    try:
        _check_files(settings)
        if settings.workers > 1 and _NUMBER not in os.environ:
            return await _Parent(settings).run()
        stop = stop_signal()
        insisting = asyncio.create_task(_insist(stop, settings), name="insist on stopping")
        bridge = Bridge(settings)
        await bridge.start()
    except SettingsError as error:
        print(f"settings: {error}", file=sys.stderr)
        return _BAD_SETTINGS
    except PortTakenError as error:
        print(error, file=sys.stderr)
        return 1 if _NUMBER not in os.environ else _CANT_LISTEN
    _collect_less_often()
    if _NUMBER in os.environ:
        _tell_parent(int(os.environ[_STARTED]))
        # At its end nobody would restart or drain us any more.
        lifeline = int(os.environ[_LIFELINE])
        asyncio.get_running_loop().add_reader(lifeline, _stop_ourselves, lifeline)
    sound = await bridge.run(stop)
    insisting.cancel()
    return 0 if sound else 3


async def _insist(stop: asyncio.Event, settings: Settings) -> None:
    """End the process some time after DRAIN_TIMEOUT, whatever still hangs in it by then.

    A thread that waits for a name server can't be cancelled, and would be waited for.
    """
    await stop.wait()
    loop = asyncio.get_running_loop()
    loop.call_later(settings.drain_timeout + _GRACE_SECONDS / 2, _end_at_once, loop)


def _end_at_once(loop: asyncio.AbstractEventLoop) -> None:
    hanging = sorted(task.get_name() for task in asyncio.all_tasks(loop))
    logger.error("ended after DRAIN_TIMEOUT; still running: %s", ", ".join(hanging) or "a thread")
    logging.shutdown()
    os._exit(1 if hanging else 0)


def _collect_less_often() -> None:
    """Spare requests the pauses of the cyclic garbage collector.

    A full collection walks over all that the start has made, which stays anyway: 22 ms, often
    enough to be the p99 of a sensor query (docs/performance.md). Requests
    themselves leave hardly any cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _tell_parent(started: int) -> None:
    """Say that we listen; the parent waits for one byte from each of us."""
    os.write(started, b".")
    os.close(started)


def _check_files(settings: Settings) -> None:
    """Look into the files that settings name, before any worker stumbles over one.

    Raises:
        SettingsError: one can't be used.
    """
    read_keys(settings)
    try:
        link.tls_context(settings)
    except OSError as error:
        raise SettingsError(str(error)) from None
    try:
        database.tls_context(settings)
    except OSError as error:
        unusable = f"DB_TLS_CA: {str(settings.db_tls_ca)!r} holds no PEM certificates ({error})"
        raise SettingsError(unusable) from None


def _stop_ourselves(lifeline: int) -> None:
    asyncio.get_running_loop().remove_reader(lifeline)
    logger.error("the parent process has gone; stopping")
    os.kill(os.getpid(), signal.SIGTERM)


class _Pipes(NamedTuple):
    """What workers inherit: one whose end tells them that we are gone, one to tell us by."""

    lifeline: int
    started: int


@dataclass(slots=True)
class _Parent:
    settings: Settings
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    processes: dict[int, asyncio.subprocess.Process] = field(default_factory=dict)
    status: int = 0
    started: int = 0

    async def run(self) -> int:
        """Keep all workers running until a signal, or until one can't run at all."""
        self._warn_of_memory()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self.stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._forward, signal.SIGHUP)
        folder = tempfile.mkdtemp(prefix="bridge-metrics-")
        lifeline, ours = os.pipe()
        told, started = os.pipe()
        pipes = _Pipes(lifeline, started)
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(1, self.settings.workers + 1):
                    tasks.create_task(self._keep(number, folder, pipes), name=f"worker {number}")
                tasks.create_task(self._stop(), name="stop workers")
                watchdog = tasks.create_task(systemd.watchdog(), name="watchdog")
                loop.add_reader(told, self._heard, told)
                await self.stopping.wait()
                systemd.notify("STOPPING=1")
                watchdog.cancel()
        finally:
            loop.remove_reader(told)
            for descriptor in (lifeline, ours, told, started):
                os.close(descriptor)
            shutil.rmtree(folder, ignore_errors=True)
        logger.info("all workers have stopped")
        return self.status

    def _heard(self, told: int) -> None:
        """A worker listens; when all have said so for the first time, so do we."""
        before = self.started
        self.started += len(os.read(told, 4096))
        if before < self.settings.workers <= self.started:
            systemd.notify(f"READY=1\nSTATUS={self.settings.workers} workers")

    async def _keep(self, number: int, folder: str, pipes: _Pipes) -> None:
        pause = _FIRST_PAUSE
        while not self.stopping.is_set():
            started = time.monotonic()
            process = await self._start(number, folder, pipes)
            status = await process.wait()
            del self.processes[number]
            multiprocess.mark_process_dead(process.pid, folder)  # type: ignore[no-untyped-call]
            if self.stopping.is_set():
                # One that was still starting had no handler for the signal yet, and no request.
                if status != -signal.SIGTERM:
                    self.status = max(self.status, abs(status))
                return
            if status in _FINAL:
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
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bridge",
            pass_fds=pipes,
            # A Ctrl-C at the terminal is the parent's to pass on.
            start_new_session=True,
            env={
                # To systemd the parent speaks.
                **{name: value for name, value in os.environ.items() if name not in _SYSTEMD},
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                _NUMBER: str(number),
                _LIFELINE: str(pipes.lifeline),
                _STARTED: str(pipes.started),
                "PROMETHEUS_MULTIPROC_DIR": folder,
                "MQTT_INSTANCE": f"{self.settings.instance}-{number}",
            },
        )
        self.processes[number] = process
        if self.stopping.is_set():
            process.terminate()
        return process

    async def _stop(self) -> None:
        await self.stopping.wait()
        self._forward(signal.SIGTERM)
        try:
            async with asyncio.timeout(self.settings.drain_timeout + _GRACE_SECONDS):
                while self.processes:
                    await asyncio.gather(
                        *(process.wait() for process in list(self.processes.values()))
                    )
                    await asyncio.sleep(0)
        except TimeoutError:
            logger.error("workers did not stop in time and are killed")  # noqa: TRY400
            self._forward(signal.SIGKILL)

    def _forward(self, number: signal.Signals) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def _warn_of_memory(self) -> None:
        if self.settings.dedup_store == "memory":
            logger.warning(
                "WORKERS=%d with DEDUP_STORE=memory: a duplicate that another worker gets is "
                "executed again, and two sequences may run on one device; set DEDUP_STORE=mysql",
                self.settings.workers,
            )
