"""The flow of docs/node-red.md runs in a real Node-RED, as it stands there.

Only the broker's address is replaced, as its reader does.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.board import Board
from tests.lab.bridge import PROJECT
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A
from tests.lab.servers import Server, program

PAGE = (PROJECT / "docs" / "node-red.md").read_text(encoding="utf-8")
BLOCKS = {"docs/node-red.md": {"node-red"}}
PROGRAM = PROJECT / "tests" / "neighbours" / "node_modules" / "node-red" / "red.js"
ACL = (PROJECT / "deploy" / "mosquitto" / "acl").read_text(encoding="utf-8")
# No editor, no web server's paths, no call home; logins are in a plain file.
SETTINGS = """module.exports = {
    uiHost: "127.0.0.1", uiPort: %d, httpAdminRoot: false, httpNodeRoot: false,
    credentialSecret: false,
    telemetry: { enabled: false, updateNotification: false },
    logging: { console: { level: "info" } },
};
"""


def flow() -> list[dict[str, Any]]:
    (text,) = re.findall(r"<!-- snippet: node-red -->\n```json\n(.*?)```", PAGE, re.DOTALL)
    nodes: list[dict[str, Any]] = json.loads(text)
    return nodes


class NodeRed(Server):
    """Node-RED without its editor, running the page's flow."""

    start_timeout = 60.0

    def __init__(self, broker: Mosquitto, credentials: dict[str, str] | None = None) -> None:
        super().__init__()
        nodes = flow()
        (connection,) = (node for node in nodes if node["type"] == "mqtt-broker")
        connection |= {"broker": broker.host, "port": str(broker.port)}
        logins = {connection["id"]: credentials or {}}
        (self.folder / "flows_cred.json").write_text(json.dumps(logins), encoding="utf-8")
        (self.folder / "flows.json").write_text(json.dumps(nodes), encoding="utf-8")
        (self.folder / "settings.js").write_text(SETTINGS % self.port, encoding="utf-8")

    def command(self) -> list[str]:
        assert PROGRAM.exists(), "./tests/run --neighbours installs it"
        folder = str(self.folder)
        arguments = ["--userDir", folder, "--settings", f"{folder}/settings.js", "flows.json"]
        return [program("node"), str(PROGRAM), *arguments]

    def answers(self) -> bool:
        return "Started flows" in self.output


@pytest.fixture
def node_red() -> Iterator[Callable[..., NodeRed]]:
    servers: list[NodeRed] = []

    def start(*arguments: Any) -> NodeRed:
        servers.append(NodeRed(*arguments))
        return servers[-1].start()

    yield start
    for server in servers:
        server.close()


async def is_served(flow_runs: NodeRed, board: Board) -> None:
    """The flow's reading is logged, and the command that follows from it reaches the board."""
    (command,) = await board.next_commands(1)
    assert command == {"cmd": "led", "device_id": 1, "action": "on"}
    await asyncio.to_thread(flow_runs.wait_for_line, f"{BOARD_A} 温度: 29.1 °C")
    await asyncio.to_thread(flow_runs.wait_for_line, "led 1 on: done")


async def test_flow_reads_a_sensor_and_switches_a_led(bridge, mosquitto, board, node_red):
    listening = await board(BOARD_A)
    await is_served(await asyncio.to_thread(node_red, mosquitto), listening)


async def test_flow_works_under_the_acl_with_a_user_of_its_own(private_bridge, board, node_red):
    acl = ACL.replace("plugin-a", "node-red")
    users = {"bridge": "b", "node-red": "n", BOARD_A: "a"}
    with Mosquitto(anonymous=False, passwords=users, acl=acl) as broker:
        await asyncio.to_thread(
            private_bridge, broker=broker, MQTT_USERNAME="bridge", MQTT_PASSWORD="b"
        )
        listening = await board(BOARD_A, broker=broker, username=BOARD_A, password="a")
        credentials = {"user": "node-red", "password": "n"}
        await is_served(await asyncio.to_thread(node_red, broker, credentials), listening)


async def test_refusal_reaches_the_flow_s_error_log(private_bridge, node_red):
    """No board listens: the command is refused, and the reading is logged all the same."""
    bridge = await asyncio.to_thread(private_bridge)
    running = await asyncio.to_thread(node_red, bridge.broker)
    await asyncio.to_thread(running.wait_for_line, "led 1 on: 409")
