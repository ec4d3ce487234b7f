"""`python run.py demo`: the bridge with everything around it, on this machine alone.

A broker in a child process, SQLite in memory, simulated boards, and a stand-in for the
platform's service that writes what boards report into the tables. The bridge itself is the real
one. Nothing has to be installed beside `requirements.txt`, and nothing is left behind, not even
after a SIGKILL: the broker ends when its stdin closes, and its file is gone once it has started.
"""

import asyncio
import logging
import sys
from collections.abc import Callable
from datetime import datetime, timedelta

from ..app.bridge import STOP_SIGNALS, Bridge, stop_signal
from ..app.signals import on_signal
from ..core.deadlines import Deadlines
from ..errors import Language
from ..http.port import PortTakenError
from ..observability.metrics import Metrics
from ..settings import Settings
from .boards import Board
from .broker import BrokerError, embedded_broker
from .devices import demo_devices
from .front_door import front_door
from .guide import guide
from .loopback import LOOPBACK, NoFreePortError, free_port, wanted_port
from .platform import Platform
from .sqlite import SqliteBackend, open_database
from .terminal import Terminal

_USUAL_HTTP_PORT = 9001
_READY_WITHIN_SECONDS = 15.0
_AN_HOUR = timedelta(hours=1)
# What a process gets whose terminal is closed. The bridge itself reads its keys again on it.
_TERMINAL_CLOSED = "SIGHUP"


async def run_demo(language: Language, *, http_port: int | None, mqtt_port: int | None) -> int:
    """Run the demo until a signal stops it or its terminal is closed; the exit status.

    Args:
        language: of the demo's texts, device names and replies.
        http_port: instead of 9001, or of a free port when that is taken.
        mqtt_port: likewise, instead of 1883.
    """
    starting = asyncio.current_task()
    assert starting is not None
    for name in (*STOP_SIGNALS, _TERMINAL_CLOSED):
        on_signal(name, starting.cancel)
    try:
        with embedded_broker() as broker_port:
            async with front_door(broker_port, mqtt_port) as chosen_port:
                return await _run(_demo_settings(language, chosen_port, http_port))
    except (NoFreePortError, BrokerError) as error:
        return _complain(str(error))
    except asyncio.CancelledError:
        # Stopped while starting; later `Bridge.run` handles the signals.
        return 0


async def _run(settings: Settings) -> int:
    terminal = Terminal()
    devices = demo_devices(settings.language)
    an_hour_ago = datetime.now(settings.timezone).replace(tzinfo=None, microsecond=0) - _AN_HOUR
    async with open_database(devices, an_hour_ago) as database, asyncio.TaskGroup() as world:
        platform = Platform(database, devices, settings.timezone)
        lives = [world.create_task(platform.run(settings.mqtt_port), name="platform")]
        try:
            await platform.listening.wait()
            for device in (device for device in devices if device.online):
                life = Board(device, terminal).run(settings.mqtt_port)
                lives.append(world.create_task(life, name=device.uuid))
            await platform.heard_all.wait()
            bridge = _bridge(settings, database)
            return await _serve(bridge, lambda: terminal.say(guide(settings, devices)))
        finally:
            for task in lives:
                task.cancel()


def _bridge(settings: Settings, database: SqliteBackend) -> Bridge:
    # The warning that HTTP is open to everyone who reaches it: that is this machine alone.
    logging.getLogger("bridge.app").setLevel(logging.ERROR)
    # rumqttd acknowledges each filter of an UNSUBSCRIBE by itself, and aiomqtt, which expects one
    # UNSUBACK, complains of the second.
    logging.getLogger("mqtt").setLevel(logging.CRITICAL)

    def make_backend(_: Settings, metrics: Metrics, __: Deadlines) -> SqliteBackend:
        metrics.connected("database", True)
        return database

    return Bridge(settings, make_backend)


async def _serve(bridge: Bridge, on_ready: Callable[[], None]) -> int:
    try:
        await bridge.start()
        starting = asyncio.current_task()
        assert starting is not None
        # In place of the bridge's own handler, which reloads API keys.
        on_signal(_TERMINAL_CLOSED, starting.cancel)
        async with asyncio.timeout(_READY_WITHIN_SECONDS):
            while not bridge.is_ready():  # noqa: ASYNC110  it tells, but does not call
                await asyncio.sleep(0.02)
    except PortTakenError as error:
        return _complain(str(error))
    except TimeoutError:
        await bridge.stop()
        return _complain("the bridge did not become ready; the lines above may say why")
    except asyncio.CancelledError:
        await bridge.stop()
        raise
    on_ready()
    return 0 if await bridge.run(stop_signal(*STOP_SIGNALS, _TERMINAL_CLOSED)) else 1


def _demo_settings(language: Language, mqtt_port: int, http_port: int | None) -> Settings:
    return Settings(
        mqtt_broker=LOOPBACK,
        mqtt_port=mqtt_port,
        mqtt_instance="demo",
        # Of several filters in one share rumqttd delivers by the first alone: requests with a
        # client level would get no answer.
        mqtt_share="",
        # The embedded broker keeps no sessions.
        mqtt_session_expiry=0,
        device_list="open",
        service_host=LOOPBACK,
        service_port=free_port(_USUAL_HTTP_PORT) if http_port is None else wanted_port(http_port),
        language=language,
    )


def _complain(words: str) -> int:
    print(f"demo: {words}", file=sys.stderr)
    return 1
