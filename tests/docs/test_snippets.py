"""What the plugin author's page says is so: each of its snippets runs as written.

Only the addresses are replaced, as its readers do: localhost's broker and bridge by the lab's.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from bridge import errors
from bridge.client import RETRIES
from bridge.core.operations import OPERATIONS
from bridge.devices import errors as device_errors
from tests.lab.bridge import PROJECT
from tests.lab.platform import BOARD_A
from tests.lab.servers import program

PAGES = {
    name: (PROJECT / "docs" / name).read_text(encoding="utf-8")
    for name in ("plugin-authors.md", "plugin-authors.zh-CN.md")
}
MARKED = re.compile(r"<!-- snippet: ([\w-]+) -->\n```(python|js|sh)\n(.*?)```", re.DOTALL)
RUNNABLE = re.compile(r"^```(?:python|js|sh)$", re.MULTILINE)
NODE_MODULES = PROJECT / "tests" / "node_modules"


class Expected(NamedTuple):
    """What a snippet prints (all of these), and how often it switches the led on."""

    prints: tuple[str, ...]
    led_on: int = 0


READING = ('"code":200', '"value":29.1')
EXPECTED = {
    "python": Expected(("29.1 °C",), led_on=1),
    "python-asyncio": Expected(("29.1 °C",), led_on=1),
    "node": Expected(("200 29.1 °C",), led_on=1),
    "shell-rr": Expected(READING),
    "shell-pub-sub": Expected((*READING, '"request_id":"r1"')),
    "shell-call": Expected(('"code": 200', '"result": "success"'), led_on=1),
    "curl": Expected((*READING, '"result":"success"'), led_on=1),
}
BLOCKS = {f"docs/{page}": {*EXPECTED, "bodies"} for page in PAGES}
# The page's words for the client's table.
RETRY_WORDS = {
    "plugin-authors.md": {retry: retry for retry in RETRIES.values()},
    "plugin-authors.zh-CN.md": {
        "automatic": "自动",
        "same id": "同一编号",
        "new id": "新编号",
        "look first": "先查看",
        "no": "不必",
    },
}


def snippets() -> list[tuple[str, str]]:
    return [(page, name) for page, text in PAGES.items() for name, _, _ in MARKED.findall(text)]


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_of_the_page_is_run(page):
    names = [name for name, _, _ in MARKED.findall(PAGES[page])]
    assert sorted(names) == sorted(EXPECTED)
    assert len(RUNNABLE.findall(PAGES[page])) == len(names)


@pytest.mark.parametrize(("page", "name"), snippets())
async def test_snippet_works_as_written(page, name, bridge, mosquitto, board, tmp_path):
    listening = await board(BOARD_A)
    (text,) = [text for own, _, text in MARKED.findall(PAGES[page]) if own == name]
    script = addressed(text, mosquitto.port, bridge.port)
    output = await run(command(name, script, tmp_path), tmp_path, mosquitto.port)
    for wanted in EXPECTED[name].prints:
        assert wanted in output
    told = await listening.next_commands(EXPECTED[name].led_on)
    assert told == [{"cmd": "led", "device_id": 1, "action": "on"}] * EXPECTED[name].led_on


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("python", 0, "nobody is subscribed"),
        ("python-asyncio", 0, "nobody is subscribed"),
        ("node", 1, "no bridge is listening"),
    ],
)
async def test_snippet_says_at_once_that_no_bridge_is_there(
    name, status, says, private_mosquitto, tmp_path
):
    broker = await asyncio.to_thread(private_mosquitto)
    (text,) = [text for own, _, text in MARKED.findall(PAGES["plugin-authors.md"]) if own == name]
    script = addressed(text, broker.port, 9)
    async with asyncio.timeout(8):  # less than the snippets' 10 s for a reply
        output = await run(command(name, script, tmp_path), tmp_path, broker.port, status)
    assert says in output


def addressed(text: str, broker: int, bridge: int) -> str:
    """The snippet with the lab's ports; it must hold no other address than localhost's usual."""
    script = (
        text.replace("localhost:1883", f"127.0.0.1:{broker}")
        .replace("-h localhost -p 1883", f"-h 127.0.0.1 -p {broker}")
        .replace("localhost:9001", f"127.0.0.1:{bridge}")
    )
    assert "localhost" not in script
    return script


def command(name: str, script: str, folder: Path) -> list[str]:
    """How a reader would run it, in a folder of its own."""
    if name.startswith("python"):
        (folder / "ask.py").write_text(script, encoding="utf-8")
        return [sys.executable, "ask.py"]
    if name == "node":
        assert (NODE_MODULES / "mqtt").is_dir(), "./tests/run installs the npm packages"
        (folder / "ask.mjs").write_text(script, encoding="utf-8")
        (folder / "node_modules").symlink_to(NODE_MODULES)
        return [program("node"), "ask.mjs"]
    # `python run.py` in a folder without a developer's .env.
    (folder / "run.py").symlink_to(PROJECT / "run.py")
    (folder / "ask.sh").write_text(script, encoding="utf-8")
    return [program("bash"), "-eu", "ask.sh"]


async def run(arguments: list[str], folder: Path, broker: int, status: int = 0) -> str:
    """What the program prints, on stderr too if it is to fail; it must end in time."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT),
        "MQTT_BROKER": "127.0.0.1",
        "MQTT_PORT": str(broker),
        "NO_PROXY": "127.0.0.1",
    }
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=environment,
    )
    try:
        output, complaint = await asyncio.wait_for(process.communicate(), 30)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == status, complaint.decode()
    return (output + complaint if status else output).decode()


@pytest.mark.parametrize("page", PAGES)
def test_error_table_is_the_clients_and_complete(page):
    assert device_errors
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \| ([^|]+) \|", PAGES[page], re.MULTILINE)
    told = {(int(code), error): retry for code, error, retry in rows}

    def codes(kind: type[errors.BridgeError]) -> set[tuple[int, str]]:
        return {(kind.code, kind.error)}.union(*map(codes, kind.__subclasses__()))

    words = RETRY_WORDS[page]
    assert told == {
        (code, error): words[RETRIES[error]] for code, error in codes(errors.BridgeError)
    }


@pytest.mark.parametrize("page", PAGES)
def test_page_names_every_operation_of_mqtt(page):
    asked_over_mqtt = [name for name, row in OPERATIONS.items() if row.over_mqtt]
    assert not [name for name in asked_over_mqtt if f"`{name}`" not in PAGES[page]]


@pytest.mark.parametrize("page", PAGES)
def test_bodies_on_the_page_are_json(page):
    for block in re.findall(r"^```json\n(.*?)```", PAGES[page], re.MULTILINE | re.DOTALL):
        assert all("code" in json.loads(line) for line in block.splitlines())
