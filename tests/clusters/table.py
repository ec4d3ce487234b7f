"""Each broker alone, with each protocol: what works, and what has to be set."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tests.clusters.brokers import FOLDER, SINGLE, Amqtt, Cluster
from tests.clusters.scenarios import Findings, clients
from tests.lab.bridge import Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Connection, Message
from tests.lab.platform import BOARD_A, BOARD_B
from tests.lab.servers import wait_until

COMMAND = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
_PACKAGES = {
    "Mosquitto": "mosquitto",
    "NATS": "nats-server",
    "RabbitMQ": "rabbitmq-server",
    "ejabberd": "ejabberd",
    "ActiveMQ": "activemq",
}
BROKERS: dict[str, Callable[[], object]] = {"Mosquitto": Mosquitto, **SINGLE}


def version(name: str) -> str:
    if name == "Aedes":
        manifest = FOLDER / "node_modules" / "aedes" / "package.json"
        return str(json.loads(manifest.read_text())["version"])
    if name == "amqtt":
        asked = [str(Amqtt.python), "-c", "import amqtt; print(amqtt.__version__)"]
    else:
        asked = ["dpkg-query", "-W", "-f", "${Version}", _PACKAGES[name]]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return re.sub(r"^\d+:|[-+].*", "", told.strip())


async def row(name: str, database: MariaDb, findings: Findings) -> str:
    """A line of the table."""
    with ExitStack() as servers:
        server = await asyncio.to_thread(lambda: servers.enter_context(BROKERS[name]()))  # type: ignore[call-overload]
        node = server.nodes[0] if isinstance(server, Cluster) else server
        cells = [await _cell(node, database, protocol) for protocol in ("5", "3.1.1")]
        findings.expect(any("works" in cell for cell in cells), f"{name} serves by no protocol")
        return f"| {name} {version(name)} | {' | '.join(cells)} |"


async def _cell(node: Any, database: MariaDb, protocol: str) -> str:
    # Else the session of one that was killed would take turns.
    settings = {"MQTT_PROTOCOL": protocol, "MQTT_SESSION_EXPIRY": "0"}
    settings |= getattr(node, "settings", {})
    settings.pop("MQTT_SHARE", None)
    told = await _ready(node, database, settings)
    if told is None:
        return f"works, shared{await _served(node, database, settings)}"
    if "MQTT_SHARE=" in told:
        settings["MQTT_SHARE"] = ""
        again = await _ready(node, database, settings)
        if again is None:
            return f"works with `MQTT_SHARE=`{await _served(node, database, settings)}"
        told = again
    return f"no: {told}"


async def _ready(node: Any, database: MariaDb, settings: dict[str, str]) -> str | None:
    """None if the bridge becomes ready, else what it says."""
    bridge = Bridge(node, database, **settings)
    try:
        await asyncio.to_thread(bridge.start, "live")

        def settled() -> bool:
            return bridge.ready or "mqtt unavailable" in bridge.output

        try:
            await asyncio.to_thread(wait_until, settled, 15.0, "a word")
        except TimeoutError:
            return "no answer to CONNECT"
        if bridge.ready:
            return None
        said = re.search(r"mqtt unavailable: (.*?)(?: broker=|$)", bridge.output, re.MULTILINE)
        return said[1].strip() if said else "?"
    finally:
        await asyncio.to_thread(bridge.close)


async def _served(node: Any, database: MariaDb, settings: dict[str, str]) -> str:
    """What works beyond being ready."""
    bridge = Bridge(node, database, **settings)
    lacks = []
    protocol = settings["MQTT_PROTOCOL"]
    login = {}
    if "MQTT_USERNAME" in settings:
        login = {
            "username": settings["MQTT_USERNAME"],
            "password": settings["MQTT_PASSWORD"],
        }
    try:
        await asyncio.to_thread(bridge.start)
        async with clients(node, login, protocol) as (requester, board):
            try:
                reading = {"device_uuid": BOARD_A, "sensor": "temperature"}
                if (await requester.ask("sensor-data", reading)).code != 200:
                    lacks.append("readings")
                if (await requester.ask("control", COMMAND)).code != 200 or not board.commands:
                    lacks.append("commands")
                absent = {**COMMAND, "device_uuid": BOARD_B}
                if (await requester.ask("control", absent)).code != 409:
                    lacks.append("409 for an absent device")
            except TimeoutError:
                return ", but no request is answered"
        if not await _has_presence(node, login, protocol, bridge.instance):
            lacks.append("retained presence")
    finally:
        await asyncio.to_thread(bridge.close)
    return f", without {', '.join(lacks)}" if lacks else ""


class _Watcher(Connection):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.heard = asyncio.Event()

    def received(self, message: Message) -> None:
        if message.json.get("status") == "online":
            self.heard.set()


async def _has_presence(node: Any, login: dict[str, str], protocol: str, instance: str) -> bool:
    async with _Watcher(node, **login, version=protocol) as watcher:
        await watcher.subscribe(f"plugin/status/{instance}")
        try:
            await asyncio.wait_for(watcher.heard.wait(), 2)
        except TimeoutError:
            return False
    return True
