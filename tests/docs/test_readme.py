"""Each command of the READMEs and of migrating.md is run as written, as a new user would.

Only addresses, ports and the device's UUID are replaced, as readers do. A few commands are not
run; `NOT_RUN` says which and why.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bridge.database.idempotency_table import TABLE
from tests.docs.pages import snippet
from tests.lab.bridge import PROJECT
from tests.lab.mariadb import WRITER, WRITER_PASSWORD, MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A
from tests.lab.servers import LOOPBACK, Server, program

ENGLISH, CHINESE = "README.md", "docs/README.zh-CN.md"
PAGES = {name: (PROJECT / name).read_text(encoding="utf-8") for name in (ENGLISH, CHINESE)}
_BLOCK = re.compile(r"<!-- run: ([\w-]+) -->\n```bash\n(.*?)```", re.DOTALL)
_LINK = re.compile(r"\]\(([^)#]*)(#[^)]*)?\)")
_COMMENT = re.compile(r"^#.*\n", re.MULTILINE)

NOT_RUN = {
    "tests": "it would run this test",
    "systemd": "it changes the machine; tests/docs/test_deploy.py checks the unit",
    "logs": "it needs systemd's journal, and does not end",
    "database": "it needs systemd, and asks for a password at the terminal",
    "port": "it looks at the machine's own ports",
}
# Of a block that is run but for some lines, those; and why not.
LEFT_OUT = {
    "configure": {"nano .env": "an editor; the test writes what a user would"},
    "docker": {
        "docker compose -p plugin-backend up -d --build": "it needs an engine;"
        " tests/docs/test_deploy.py checks the files"
    },
    "broker": {"sudo systemctl status mosquitto": "it needs systemd"},
}
RUN = {"demo", "demo-ask", "configure", "doctor", "serve", "init-db", "docker", "broker"} | (
    RECIPES := {"http", "mqtt5", "mqtt311", "call"}
)
MIGRATING = ("docs/migrating.md", "docs/migrating.zh-CN.md")
BLOCKS = {page: RUN | set(NOT_RUN) for page in PAGES} | {page: {"settings"} for page in MIGRATING}


def blocks(page: str) -> dict[str, str]:
    return dict(_BLOCK.findall(PAGES[page]))


def block(name: str) -> str:
    """The commands of a block that are to be run."""
    left_out = LEFT_OUT.get(name, {})
    lines = blocks(ENGLISH)[name].splitlines()
    assert left_out.keys() <= set(lines)
    return "\n".join(line for line in lines if line not in left_out)


# The pages


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run_or_told_why_not(page):
    assert set(blocks(page)) == RUN | set(NOT_RUN)
    assert PAGES[page].count("```bash") == len(blocks(page))


def test_both_pages_have_the_same_commands_in_the_same_order():
    english, chinese = (
        [(name, _COMMENT.sub("", text)) for name, text in blocks(page).items()] for page in PAGES
    )
    assert english == chinese


@pytest.mark.parametrize("name", NOT_RUN)
def test_command_that_is_not_run_is_at_least_one_that_a_shell_reads(name):
    done = subprocess.run(
        ["bash", "-n"], input=blocks(ENGLISH)[name], text=True, check=False, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_systemd_commands_copy_is_there():
    (copied,) = re.findall(r"sudo cp -r (.*) /opt", blocks(ENGLISH)["systemd"])
    names = [*copied.replace(" .env", "").split(), "deploy/systemd/plugin-backend.service"]
    assert not [name for name in names if not (PROJECT / name).exists()]


def test_test_command_is_a_program():
    assert os.access(PROJECT / block("tests").strip(), os.X_OK)


@pytest.mark.parametrize(
    "page",
    sorted(
        str(page.relative_to(PROJECT))
        for pattern in ("*.md", "docs/*.md")
        for page in PROJECT.glob(pattern)
    ),
)
def test_every_link_to_a_file_leads_to_one_and_every_anchor_to_a_heading(page):
    text = (PROJECT / page).read_text(encoding="utf-8")
    for target, anchor in _LINK.findall(text):
        if target.startswith(("http:", "https:")):
            continue
        led_to = (PROJECT / page).parent / target if target else PROJECT / page
        assert led_to.exists(), target
        if anchor:
            assert anchor.removeprefix("#") in _anchors(led_to), (target, anchor)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# The commands


class Terminal(Server):
    """A user's shell that runs one block, in a folder of theirs."""

    start_timeout = 180.0

    def __init__(self, script: str, folder: Path, until: str, **settings: str) -> None:
        super().__init__()
        self._script, self._until, self._settings = script, until, settings
        self.folder = folder

    def command(self) -> list[str]:
        return [program("bash"), "-c", self._script]

    def environment(self) -> dict[str, str]:
        return surroundings() | self._settings

    def answers(self) -> bool:
        return self._until in self.output


def surroundings() -> dict[str, str]:
    """Neither settings of a developer nor proxies for this machine's own addresses."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "HTTPS_PROXY")
    found = {name: os.environ[name] for name in kept if name in os.environ}
    return {**found, "NO_PROXY": "localhost,127.0.0.1", "PYTHONUNBUFFERED": "1"}


async def pasted(script: str, folder: Path, status: int = 0, **settings: str) -> str:
    """What a block prints to a shell that stops at the first command that fails."""
    process = await asyncio.create_subprocess_exec(
        *(program("bash"), "-eu", "-c", script),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=surroundings() | settings,
    )
    try:
        output, complaint = await asyncio.wait_for(process.communicate(), 60)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == status, (script, output.decode(), complaint.decode())
    return output.decode()


def replies(output: str) -> list[Any]:
    """The JSON objects that stand one after the other."""
    decoder, found, text = json.JSONDecoder(), [], output.strip()
    while text:
        parsed, end = decoder.raw_decode(text)
        found.append(parsed)
        text = text[end:].lstrip()
    return found


def clean_checkout(folder: Path) -> Path:
    """A copy of what a clone would hold."""
    folder.mkdir()
    for name in ("bridge", "deploy", "run.py", "requirements.txt", ".env.example"):
        source = PROJECT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean checkout whose virtual environment is that of the tests."""
    folder = clean_checkout(tmp_path / "checkout")
    (folder / ".venv" / "bin").mkdir(parents=True)
    launcher = folder / ".venv" / "bin" / "python"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    launcher.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """The first command, literally: a clean checkout, a new virtual environment, the demo."""
    folder = clean_checkout(tmp_path_factory.mktemp("clone") / "checkout")
    with Terminal(block("demo"), folder, until="Ctrl-C") as terminal:
        yield terminal


async def test_demo_runs_from_a_clean_checkout_and_answers_what_the_page_asks(demo, tmp_path):
    (http,) = re.findall(r"HTTP +http://(localhost:\d+)", demo.output)
    (mqtt,) = re.findall(r"MQTT +localhost:(\d+)", demo.output)
    script = addressed(block("demo-ask"), http, mqtt)
    reading, switched, asked, device = replies(await pasted(script, tmp_path))
    assert [reply["code"] for reply in (reading, switched, asked, device)] == [200] * 4
    assert isinstance(reading["data"]["value"], float)
    assert switched["data"]["result"] == "success"
    assert asked["data"]["sensor_name"] == "temperature"
    assert device["data"]["device_uuid"] == "demo-board-1"


async def test_env_file_once_edited_lets_doctor_pass_and_the_bridge_serve(
    checkout, private_mosquitto, mariadb, unused_tcp_port
):
    broker = await asyncio.to_thread(private_mosquitto)
    await configured(checkout, broker, mariadb, unused_tcp_port)
    await pasted(block("doctor"), checkout, LANGUAGE="en")
    bridge = Terminal(block("serve"), checkout, until=" ready")
    try:
        await asyncio.to_thread(bridge.start)
        script = addressed("curl http://localhost:9001/health", f"{LOOPBACK}:{unused_tcp_port}")
        assert replies(await pasted(script, checkout))[0]["status"] == "healthy"
        assert await asyncio.to_thread(bridge.stop) == 0
    finally:
        await asyncio.to_thread(bridge.close)


@pytest.mark.parametrize("page", MIGRATING)
async def test_env_file_of_the_old_service_passes_the_check(
    page, checkout, tmp_path, mosquitto, mariadb, unused_tcp_port
):
    """Its lines, and names that are not ours; stopping the old service needs systemd."""
    copied, checked, stopped = snippet(page, "settings").splitlines()
    assert stopped.startswith("sudo systemctl disable")
    (tmp_path / ".env").write_text(
        f"DB_HOST={mariadb.host}\nDB_PORT={mariadb.port}\nDB_NAME={mariadb.database}\n"
        f"DB_USER={mariadb.user}\nDB_PASSWORD={mariadb.password}\n"
        f"MQTT_BROKER={mosquitto.host}\nMQTT_PORT={mosquitto.port}\nMQTT_USERNAME=\n"
        f"MQTT_PASSWORD=\nSERVICE_PORT={unused_tcp_port}\nLOG_LEVEL=INFO\nDEBUG=false\n",
        encoding="utf-8",
    )
    copied = copied.replace("/path/to/plugin-backend-service", str(tmp_path))
    await pasted(f"{copied}\n{checked}", checkout, LANGUAGE="en")


async def test_init_db_makes_the_table(checkout, mosquitto, private_mariadb):
    database = await asyncio.to_thread(private_mariadb)
    await configured(checkout, mosquitto, database, 9, DB_USER=WRITER, DB_PASSWORD=WRITER_PASSWORD)
    output = await pasted(block("init-db"), checkout)
    assert TABLE in output
    assert database.query(f"SELECT COUNT(*) AS n FROM {TABLE}") == [{"n": 0}]


@pytest.mark.parametrize("name", sorted(RECIPES))
async def test_recipe_works_as_written(name, checkout, bridge, mosquitto, board):
    listening = await board(BOARD_A)
    settings = {"MQTT_BROKER": mosquitto.host, "MQTT_PORT": str(mosquitto.port)}
    script = addressed(block(name), f"{LOOPBACK}:{bridge.port}", str(mosquitto.port))
    answered = replies(await pasted(script, checkout, **settings))
    assert [body.get("code", 200) for body in answered] == [200] * EXPECTED[name].replies
    told = await listening.next_commands(len(EXPECTED[name].commands))
    assert [command["cmd"] for command in told] == list(EXPECTED[name].commands)


class Expected:
    def __init__(self, replies: int, *commands: str) -> None:
        self.replies, self.commands = replies, commands


EXPECTED: Mapping[str, Expected] = {
    "http": Expected(7, "led", "led", "preset"),
    "mqtt5": Expected(2, "led"),
    "mqtt311": Expected(1),
    "call": Expected(2),
}


async def test_broker_check_shows_that_it_is_there(mosquitto, tmp_path):
    script = addressed(block("broker"), mqtt=str(mosquitto.port))
    assert await pasted(script, tmp_path) == "mosquitto version " + await version_of_mosquitto()


async def version_of_mosquitto() -> str:
    process = await asyncio.create_subprocess_exec(
        *(program("mosquitto"), "-h"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    found = re.search(r"mosquitto version (\S+)", output.decode())
    assert found
    return f"{found[1]}\n"


async def test_docker_secrets_are_made_where_the_compose_file_reads_them(checkout):
    await pasted(block("docker"), checkout)
    made = sorted(path.name for path in (checkout / "deploy" / "secrets").iterdir())
    compose = (checkout / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    # Those that are commented out are for who opens it to the network.
    named = re.findall(r"^ +file: \./secrets/(\w+)", compose, re.MULTILINE)
    assert made == sorted(named)


async def configured(
    checkout: Path, broker: Mosquitto, database: MariaDb, port: int, **settings: str
) -> None:
    """Do what the page says, and write the lab's addresses where its reader writes theirs."""
    await pasted(block("configure"), checkout)
    values = {
        "DB_HOST": database.host,
        "DB_PORT": str(database.port),
        "DB_USER": database.user,
        "DB_PASSWORD": database.password,
        "MQTT_BROKER": broker.host,
        "MQTT_PORT": str(broker.port),
        "SERVICE_PORT": str(port),
        **settings,
    }
    text = (checkout / ".env").read_text(encoding="utf-8")
    for name, value in values.items():
        text, count = re.subn(rf"^(# )?{name}=.*$", f"{name}={value}", text, count=1, flags=re.M)
        assert count == 1, name
    (checkout / ".env").write_text(text, encoding="utf-8")


def addressed(script: str, http: str = "", mqtt: str = "") -> str:
    """A block with the lab's addresses and a real device's UUID."""
    script = script.replace("localhost:9001", http).replace(" -h localhost", "")
    script = re.sub(r"\b(mosquitto_\w+)", rf"\1 -h {LOOPBACK} -p {mqtt}", script)
    return re.sub(r"\bxxx\b", BOARD_A, script)
