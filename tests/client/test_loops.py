"""Event loops that can't watch a socket, as Windows' default: refused, or never chosen."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

from bridge import cli
from bridge.client import BridgeClient
from bridge.client.sync import BridgeClient as BlockingClient
from tests.lab.bridge import PROJECT, Bridge
from tests.lab.mosquitto import Mosquitto


class LikeProactor(asyncio.SelectorEventLoop):
    """A loop that lacks what `ProactorEventLoop` lacks."""

    add_reader = asyncio.AbstractEventLoop.add_reader
    remove_reader = asyncio.AbstractEventLoop.remove_reader
    add_writer = asyncio.AbstractEventLoop.add_writer
    remove_writer = asyncio.AbstractEventLoop.remove_writer
    add_signal_handler = asyncio.AbstractEventLoop.add_signal_handler


class WindowsPolicy(asyncio.DefaultEventLoopPolicy):
    """As a program finds it there: the default loop is of the other kind."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return LikeProactor()


# As on Windows: this default, and no uvloop. The program follows.
WINDOWS = f"""
import asyncio, sys
sys.path.insert(0, {str(PROJECT)!r})
sys.modules["uvloop"] = None
from tests.client.test_loops import WindowsPolicy
asyncio.set_event_loop_policy(WindowsPolicy())
"""


def url_of(mosquitto: Mosquitto) -> str:
    return f"mqtt://{mosquitto.host}:{mosquitto.port}"


def test_client_refuses_a_loop_that_cannot_watch_a_socket_in_one_line(mosquitto):
    async def ask() -> None:
        async with BridgeClient(url_of(mosquitto)):
            pass

    with (
        asyncio.Runner(loop_factory=LikeProactor) as runner,
        pytest.raises(RuntimeError, match=r"bridge\.client\.sync") as refused,
    ):
        runner.run(ask())
    assert "LikeProactor" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_blocking_client_works_where_that_is_the_default(bridge, mosquitto):
    program = f"""{WINDOWS}
from bridge.client.sync import BridgeClient
with BridgeClient({url_of(mosquitto)!r}) as bridge:
    print(bridge.health().status)
"""
    assert run(program).stdout == "healthy\n"


def test_call_works_where_that_is_the_default(bridge, mosquitto):
    program = f"""{WINDOWS}
from bridge.cli import (main)
sys.exit(main(["call", "health"]))
"""
    called = run(program, MQTT_BROKER=mosquitto.host, MQTT_PORT=str(mosquitto.port))
    assert called.returncode == 0, called.stderr


def test_every_command_runs_on_a_loop_that_can_watch_sockets(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)

    async def kind() -> int:
        return isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)

    assert cli.run_loop(kind())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_starts_and_stops_where_loops_wait_for_no_signals(number):
    program = f"{FEWER_SIGNALS}\nsys.exit(main(['demo']))"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        try:
            # What it prints first is the guide, which it prints once it is ready.
            assert demo.stdout.readline()
            demo.send_signal(number)
            assert demo.wait(15) == 0
        finally:
            demo.kill()


# As above, and neither `SIGHUP`, nor a loop that waits for signals, nor ports that are shared.
FEWER_SIGNALS = f"""{WINDOWS}
import signal, socket
from tests.client.test_loops import LikeProactor
asyncio.SelectorEventLoop.add_signal_handler = LikeProactor.add_signal_handler
del signal.SIGHUP, socket.SO_REUSEPORT
from bridge.cli import (main)
"""


class OnWindows(Bridge):
    """The bridge, where that is so."""

    def command(self) -> list[str]:
        return [sys.executable, "-c", f"{FEWER_SIGNALS}\nsys.exit(main(['serve']))"]


def test_bridge_serves_and_drains_where_loops_wait_for_no_signals(private_mosquitto, mariadb):
    broker = private_mosquitto()
    with OnWindows(broker, mariadb) as bridge:
        with BlockingClient(url_of(broker)) as client:
            assert client.health().mqtt
        assert bridge.stop() == 0


def test_workers_are_refused_in_one_line_where_ports_cannot_be_shared():
    ended = run(f"{FEWER_SIGNALS}\nsys.exit(main(['serve']))", WORKERS="2", DB_USER="x")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "WORKERS" in line


def test_mcp_runs_where_loops_wait_for_no_signals(mosquitto):
    settings = {"MQTT_BROKER": mosquitto.host, "MQTT_PORT": str(mosquitto.port)}
    ended = run(f"{FEWER_SIGNALS}\nsys.exit(main(['mcp']))", **settings)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        env=environment,
        check=False,
    )
