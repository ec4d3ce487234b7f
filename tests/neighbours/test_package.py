"""The distribution: a wheel that, in an empty environment, is client, server or demo."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.demo.test_demo import Demo
from tests.lab.bridge import PROJECT, Bridge
from tests.lab.commands import run
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A

NAME = "mqtt-request-reply-bridge"
PROJECT_TABLE = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Of these the wheel is built; `build/` and the like are left out.
SOURCES = ("bridge", "pyproject.toml", "README.md", "LICENSE")
ASKS = """
import sys
from bridge.client.sync import BridgeClient
with BridgeClient(sys.argv[1]) as bridge:
    print(bridge.sensor_data(sys.argv[2], "temperature").value)
"""
TYPED = """
from bridge.client.sync import BridgeClient

def value(broker: str) -> str | float | None:
    with BridgeClient(broker) as bridge:
        return bridge.sensor_data("a", "b", timeut=1).value
"""


class Environment:
    """A virtual environment with nothing in it but what was installed here."""

    def __init__(self, folder: Path, *requirements: str) -> None:
        venv.create(folder, with_pip=True)
        self.python = folder / "bin" / "python"
        self.script = folder / "bin" / NAME
        self._pip("install", "-q", *requirements)

    def packages(self) -> set[str]:
        listed = self._pip("list", "--format=freeze", "--exclude", "pip", "--exclude", "setuptools")
        return {line.partition("==")[0].lower().replace("_", "-") for line in listed.splitlines()}

    def _pip(self, *arguments: str) -> str:
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a warning."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (PROJECT / name).is_dir():
            shutil.copytree(
                PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(PROJECT / name, source)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-v", "-w", str(folder), str(source)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    output = built.stdout + built.stderr
    warnings = [line for line in output.splitlines() if re.search("warning|deprecat", line, re.I)]
    # Of an environment with PYTHONDONTWRITEBYTECODE.
    assert [line for line in warnings if "byte-compiling is disabled" not in line] == []
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    """Installs the wheel with these extras; once for each."""
    made: dict[str, Environment] = {}

    def environment(extras: str) -> Environment:
        if extras not in made:
            made[extras] = Environment(tmp_path_factory.mktemp("venv"), f"{wheel}{extras}")
        return made[extras]

    return environment


def settings_of(broker: Mosquitto) -> dict[str, str]:
    return {"MQTT_BROKER": broker.host, "MQTT_PORT": str(broker.port), "PATH": "/usr/bin:/bin"}


# ---- what is in it ------------------------------------------------------------------------------


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (file for file in (PROJECT / "bridge").rglob("*") if file.is_file())
    assert held == {
        file.relative_to(PROJECT).as_posix() for file in files if "__pycache__" not in file.parts
    }


def test_metadata_says_what_it_is_and_who_made_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Name"] == NAME
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Author"]
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert set(metadata.get_all("Provides-Extra", [])) == {"server", "demo", "mcp"}


def test_requirements_file_is_the_server_and_the_demo():
    def normal(requirement: str) -> str:
        return requirement.replace(" ", "").replace('"', "'")

    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = {normal(line) for line in lines if line and not line.startswith("#")}
    extras: dict[str, list[str]] = PROJECT_TABLE["optional-dependencies"]
    parts: list[Any] = [*PROJECT_TABLE["dependencies"], *extras["server"], *extras["demo"]]
    assert listed == {normal(part) for part in parts} - {f"{NAME}[server]"}


# ---- the client alone ---------------------------------------------------------------------------


def test_client_needs_four_packages(install):
    packages = install("").packages() - {NAME}
    direct = {"aiomqtt", "orjson", "pydantic", "python-dotenv"}
    # What these four need in turn.
    indirect = {
        "annotated-types",
        "paho-mqtt",
        "pydantic-core",
        "typing-extensions",
        "typing-inspection",
    }
    assert direct <= packages <= direct | indirect


def test_client_asks_a_bridge(install, bridge, mosquitto, tmp_path):
    url = f"mqtt://{mosquitto.host}:{mosquitto.port}"
    asked = run(install("").python, "-c", ASKS, url, BOARD_A, folder=tmp_path, environment={})
    assert asked.stdout == "29.1\n", asked.stderr


def test_console_script_asks_a_bridge(install, bridge, mosquitto, tmp_path):
    arguments = ("call", "sensor-data", f"device_uuid={BOARD_A}", "sensor=temperature")
    called = run(
        install("").script, *arguments, folder=tmp_path, environment=settings_of(mosquitto)
    )
    assert called.returncode == 0, called.stderr
    assert '"value": 29.1' in called.stdout


@pytest.mark.parametrize(("language", "usage"), [("en", "usage: "), ("zh", "用法：")])
def test_help_names_the_command_that_was_started(install, language, usage, tmp_path):
    shown = run(install("").script, "--help", folder=tmp_path, environment={"LANGUAGE": language})
    assert shown.stdout.startswith(f"{usage}{NAME} ")


@pytest.mark.parametrize(
    ("command", "extra"),
    [("serve", "server"), ("doctor", "server"), ("init-db", "server"), ("demo", "demo")],
)
def test_command_whose_packages_are_missing_names_the_extra(install, command, extra, tmp_path):
    ended = run(install("").script, command, folder=tmp_path, environment={})
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert f'".[{extra}]"' in line


def test_type_checkers_see_the_clients_types(install, tmp_path):
    (tmp_path / "plugin.py").write_text(TYPED, encoding="utf-8")
    options = ("--python-executable", install("").python, "--strict", "--no-incremental")
    checked = run(sys.executable, "-m", "mypy", *options, "plugin.py", folder=tmp_path)
    (fault,) = [line for line in checked.stdout.splitlines() if ": error: " in line]
    assert 'Unexpected keyword argument "timeut"' in fault


# ---- the extras ---------------------------------------------------------------------------------


def test_server_serves(install, private_mosquitto, mariadb):
    class Installed(Bridge):
        def command(self) -> list[str]:
            return [str(install("[server]").script)]

    broker = private_mosquitto()
    with Installed(broker, mariadb) as bridge:
        assert bridge.ready
        asked = run(*(install("").script, "call", "health"), environment=settings_of(broker))
    assert asked.returncode == 0, asked.stderr


def test_demo_runs(install):
    class Installed(Demo):
        def command(self) -> list[str]:
            return [str(install("[demo]").script), "demo"]

    with Installed(LANGUAGE="en") as demo:
        assert demo.ask("/api/operations")["operations"]


def test_mcp_tools_need_no_server(install, mosquitto, tmp_path):
    """The client may end its input at once: the server then ends without a word of complaint."""
    ended = subprocess.run(
        [str(install("[mcp]").script), "mcp"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=tmp_path,
        env=settings_of(mosquitto),
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
