"""`run.py serve`: one bridge, or with `WORKERS=n` the parent of n, or one of them.

Each worker is a whole bridge of its own: its own MQTT connection in the same `$share` group, its
own socket on the same HTTP port (`SO_REUSEPORT`), its own database pool. Metrics meet in files of
prometheus-client's, in a folder that the parent owns.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys

from .. import link
from ..database import connections as database
from ..errors import Text, UnusableFile
from ..http.authentication import read_keys
from ..http.descriptors import raise_descriptor_limit
from ..http.port import PortTakenError, check_port_is_free
from ..observability.metrics import WORKER_NUMBER
from ..settings import Settings, SettingsError
from .bridge import Bridge, stop_signal
from .signals import on_signal
from .supervisor import (
    BAD_SETTINGS,
    CANT_LISTEN,
    GRACE_SECONDS,
    LIFELINE,
    PULSE,
    PULSE_SECONDS,
    Parent,
)

logger = logging.getLogger(__name__)

_ONE_WORKER = Text(
    "WORKERS: 此平台上多个进程不能共用一个端口，请设为 1",
    "WORKERS: processes can't share a port on this platform; set it to 1",
)


async def serve(settings: Settings) -> int:
    """Serve until told to stop.

    The exit status: 0 stopped, 1 (71 in a worker) the port is taken, 2 unusable settings, 3 a task
    failed. With several workers that of `Parent.run`.
    """
    raise_descriptor_limit()
    stop = stop_signal()
    # By default SIGHUP ends the process, and the keys are not loaded yet.
    on_signal("SIGHUP", lambda: None)
    try:
        _check_files(settings)
        if settings.workers > 1 and not hasattr(socket, "SO_REUSEPORT"):
            raise SettingsError(_ONE_WORKER.in_(settings.language))
        if settings.workers > 1 and WORKER_NUMBER not in os.environ:
            await check_port_is_free(settings)
            return await Parent(settings, stop).run()
        beside = [asyncio.create_task(_insist(stop, settings), name="insist on stopping")]
        bridge = Bridge(settings)
        await bridge.start()
    except SettingsError as error:
        print(f"settings: {error}", file=sys.stderr)
        return BAD_SETTINGS
    except PortTakenError as error:
        print(error, file=sys.stderr)
        return 1 if WORKER_NUMBER not in os.environ else CANT_LISTEN
    _collect_less_often()
    if WORKER_NUMBER in os.environ:
        beside.append(asyncio.create_task(_pulse(int(os.environ[PULSE])), name="pulse"))
        # The pipe ends with the parent, who alone restarts and drains us.
        lifeline = int(os.environ[LIFELINE])
        asyncio.get_running_loop().add_reader(lifeline, _stop_ourselves, lifeline)
    sound = await bridge.run(stop)
    for task in beside:
        task.cancel()
    return 0 if sound else 3


async def _insist(stop: asyncio.Event, settings: Settings) -> None:
    """End the process after DRAIN_TIMEOUT, whatever hangs: a thread can't be cancelled."""
    await stop.wait()
    loop = asyncio.get_running_loop()
    loop.call_later(settings.drain_timeout + GRACE_SECONDS / 2, _end_at_once, loop)


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


async def _pulse(pulse: int) -> None:
    """Tell the parent that we listen, and from then on each second that our loop turns."""
    number = bytes([int(os.environ[WORKER_NUMBER])])
    while True:
        # A stopped parent lets the pipe fill; a dead one is noticed by the lifeline.
        with contextlib.suppress(OSError):
            os.write(pulse, number)
        await asyncio.sleep(PULSE_SECONDS)


def _check_files(settings: Settings) -> None:
    """Look into the files that settings name; raises SettingsError if one can't be used."""
    read_keys(settings)
    try:
        link.tls_context(settings)
    except UnusableFile as unusable:
        raise SettingsError(unusable.text.in_(settings.language)) from None
    try:
        database.tls_context(settings)
    except OSError as error:
        file = str(settings.db_tls_ca)
        words = Text(
            f"DB_TLS_CA: {file!r} 中没有 PEM 格式的证书（{error}）",
            f"DB_TLS_CA: {file!r} holds no PEM certificate ({error})",
        )
        raise SettingsError(words.in_(settings.language)) from None


def _stop_ourselves(lifeline: int) -> None:
    asyncio.get_running_loop().remove_reader(lifeline)
    logger.error("the parent process has gone; stopping")
    os.kill(os.getpid(), signal.SIGTERM)
