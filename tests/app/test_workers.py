"""`WORKERS=n`: who crashes or hangs is replaced, who slept is not; no signal kills by accident."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.lab.bridge import PROJECT, Bridge
from tests.lab.platform import BOARD_A
from tests.lab.servers import wait_until

MOST_SILENT_SECONDS = 3
READING = {"device_uuid": BOARD_A, "sensor": "temperature"}


class Scripted(Bridge):
    """`run.py` with some of its code changed before it runs."""

    script = ""

    def command(self) -> list[str]:
        return [sys.executable, "-c", f"{self.script}\nimport sys\nsys.exit(cli.main([]))"]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(PROJECT)}

    @property
    def workers(self) -> list[int]:
        """The process ids of its workers."""
        return sorted(_children(self.pid))

    def wait_until_ready(self, workers: int) -> None:
        """Wait until so many workers have become ready since the start."""
        self.wait_for(lambda: self.output.count("INFO    ready") >= workers, "ready workers")

    def close(self) -> None:
        """Workers are in process groups of their own, and one that is stopped sees no end."""
        for pid in self.workers if self.running else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super().close()


class Supervised(Scripted):
    """Its parent kills workers that it has not heard of for `MOST_SILENT_SECONDS` seconds."""

    script = f"""
import functools
from bridge import (cli)
from bridge.app import (worker as workers)
workers.Parent = functools.partial(workers.Parent, most_silent_seconds={MOST_SILENT_SECONDS})
"""


def _children(parent: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, of = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(of) == parent and state != "Z":
                    yield int(entry.name)


@pytest.fixture
def supervised(private_mosquitto, mariadb, tmp_path) -> Iterator[Supervised]:
    (tmp_path / "keys").write_text("school:secret-of-the-school\n")
    keys = {"API_KEYS_FILE": str(tmp_path / "keys"), "API_TRUSTED": "127.0.0.1"}
    bridge = Supervised(private_mosquitto(), mariadb, WORKERS="2", TMPDIR=str(tmp_path), **keys)
    try:
        bridge.start()
        # It listens when the first of them does.
        bridge.wait_until_ready(2)
        yield bridge
    finally:
        bridge.close()


async def requests_counted(bridge: Bridge) -> float:
    async with aiohttp.request("GET", f"{bridge.url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "bridge_requests_total"
    )


async def ask(bridge: Bridge, times: int) -> None:
    for _ in range(times):
        # Each on a connection of its own, so that both workers get some.
        async with aiohttp.request("GET", f"{bridge.url}/api/operations") as response:
            assert response.status == 200


# ---- one that ends or hangs ---------------------------------------------------------------------


async def test_worker_that_crashes_goes_on_with_its_counts_and_leaves_nothing(supervised, tmp_path):
    await ask(supervised, 40)
    (folder,) = tmp_path.glob("bridge-metrics-*")
    files = sorted(path.name for path in folder.iterdir())
    for crash in (1, 2):
        counted = await requests_counted(supervised)
        assert counted >= 40
        os.kill(supervised.workers[0], signal.SIGKILL)
        await asyncio.to_thread(supervised.wait_until_ready, 2 + crash)
        await ask(supervised, 40)
        assert await requests_counted(supervised) == counted + 40
    assert sorted(path.name for path in folder.iterdir()) == files


def test_worker_that_hangs_is_killed_and_replaced(supervised):
    hanging, sound = supervised.workers
    os.kill(hanging, signal.SIGSTOP)
    supervised.wait_for_line("hangs and is killed", timeout=MOST_SILENT_SECONDS + 5)
    supervised.wait_until_ready(3)
    assert hanging not in supervised.workers
    assert sound in supervised.workers
    assert supervised.stop() == 0


def test_machine_that_sleeps_costs_no_worker_its_life(supervised):
    workers = supervised.workers
    everyone = [supervised.pid, *workers]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    # The machine's sleep; there is nothing to wait for but time.
    time.sleep(1.5 * MOST_SILENT_SECONDS)
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
    # Both answer, after the parent has looked at them again.
    time.sleep(1.5)
    supervised.send_signal(signal.SIGHUP)
    supervised.wait_for(lambda: supervised.output.count("were read again") == 2, "both of them")
    assert supervised.workers == workers
    assert "killed" not in supervised.output


def test_parent_that_is_stopped_keeps_no_worker_from_answering(supervised):
    os.kill(supervised.pid, signal.SIGSTOP)
    try:
        assert supervised.ready
    finally:
        os.kill(supervised.pid, signal.SIGCONT)
    assert supervised.stop() == 0


def test_worker_that_can_not_read_a_file_any_more_ends_nobody_else(supervised, mariadb, tmp_path):
    gone = (tmp_path / "keys").rename(tmp_path / "gone")
    ending, sound = supervised.workers
    os.kill(ending, signal.SIGKILL)
    # The death, and one start that fails.
    supervised.wait_for_line("ended with status 2; starting it again")
    assert "API_KEYS_FILE" in supervised.output
    assert sound in supervised.workers
    assert supervised.ready

    gone.rename(tmp_path / "keys")
    supervised.wait_until_ready(3)

    # Two that share a port would split its requests between two sets of settings.
    second = Bridge(supervised.broker, mariadb, WORKERS="2", SERVICE_PORT=str(supervised.port))
    try:
        second.spawn()
        assert second.wait() == 1
        assert f"无法监听 127.0.0.1:{supervised.port}" in second.output
    finally:
        second.close()
    assert supervised.stop() == 0


# ---- SIGHUP -------------------------------------------------------------------------------------


class HungUp(Scripted):
    """It gets a SIGHUP while it is being put together."""

    script = """
import os, signal
from bridge import (cli)
from bridge.app import (worker as workers)
class HungUp(workers.Bridge):
    def __init__(self, settings):
        super().__init__(settings)
        os.kill(os.getpid(), signal.SIGHUP)
workers.Bridge = HungUp
"""


def test_hangup_before_it_serves_is_minded_and_does_not_end_it(private_mosquitto, mariadb):
    with HungUp(private_mosquitto(), mariadb) as bridge:
        bridge.wait_for_line("API keys were read again")
        assert bridge.stop() == 0


def test_hangup_while_workers_start_reaches_them_when_they_can_take_it(private_mosquitto, mariadb):
    bridge = Supervised(private_mosquitto(), mariadb, WORKERS="2")
    try:
        bridge.spawn()
        wait_until(lambda: len(bridge.workers) == 2, 10, "the start of both")
        starting = bridge.workers
        bridge.send_signal(signal.SIGHUP)
        bridge.wait_for(lambda: bridge.output.count("were read again") == 2, "both of them")
        assert bridge.workers == starting
        assert bridge.stop() == 0
    finally:
        bridge.close()


# ---- what is told -------------------------------------------------------------------------------


def test_parent_promises_no_store_as_a_cure_for_two_sequences_on_a_device(private_bridge):
    line = private_bridge(WORKERS="2").wait_for_line("DEDUP_STORE=memory")
    assert "set DEDUP_STORE=mysql (with either, two workers may each run a sequence" in line


# ---- another number of them ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "before", "after", "former"),
    [("5", 2, 1, ["-1", "-2"]), ("3.1.1", 3, 2, ["-3"]), ("5", 1, 2, [""])],
)
async def test_former_workers_take_no_turns(
    private_mosquitto, mariadb, connect_requester, protocol, before, after, former
):
    """The broker keeps their sessions: for 30 s, on 3.1.1 without end."""
    broker = private_mosquitto()
    bridge = Supervised(broker, mariadb, WORKERS=str(before), MQTT_PROTOCOL=protocol)
    # It only bears such a name.
    other = Bridge(broker, mariadb, MQTT_INSTANCE=f"{bridge.instance}-9", MQTT_SHARE="other")
    with contextlib.closing(bridge):
        with other:
            bridge.start()
            bridge.wait_until_ready(before)
            bridge.stop()
        bridge.settings["WORKERS"] = str(after)
        bridge.start()
        bridge.wait_until_ready(before + after)

        def are_ended() -> bool:
            return bridge.output.count("former worker") == len(former)

        await asyncio.to_thread(bridge.wait_for, are_ended, "the end of their sessions")
        for name in former:
            assert f"former worker '{bridge.instance}{name}'" in bridge.output
        requester = await connect_requester(broker, version=protocol)
        for _ in range(8):
            assert (await requester.ask("sensor-data", READING, timeout=5)).code == 200
