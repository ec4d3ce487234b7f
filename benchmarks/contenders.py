"""Who is measured, and how each is started and stopped."""

import compileall
import http.client
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from benchmarks import dataset, processes
from benchmarks.servers import (
    DB_PASSWORD,
    DB_USER,
    LOOPBACK,
    MariaDb,
    Mosquitto,
    StartError,
    free_port,
    stop,
    tail,
)

ROOT = Path(__file__).resolve().parent.parent
READY_TIMEOUT = 60.0
SETTLE = 1.0

Transport = Literal["http", "mqtt"]
# What its answers are held against: the data, the request itself, or nothing but the status.
Answers = Literal["reply", "echo", "constant"]


@dataclass(frozen=True)
class Contender:
    """A program to be measured, and the database it runs on.

    Its Python code comes from ``commit`` of this repository, or else from the folder ``root``.
    """

    name: str
    label: str
    command: tuple[str, ...]
    transports: tuple[Transport, ...]
    answers: Answers = "reply"
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)
    root: Path = ROOT
    commit: str = ""
    devices: int = dataset.DEVICES
    statistics: bool = True


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"benchmarks.{name}")


BRIDGE = Contender(
    "bridge",
    "the bridge",
    (sys.executable, "{root}/run.py"),
    ("http", "mqtt"),
    # As many commands as this run asks for in eight seconds would fill the memory of what was
    # already done (each has an id of its own), and the rest be refused with 429.
    settings={"WORKERS": "1", "DEDUP_TTL": "3", "REQUEST_TIMEOUT": "3", "DB_TIMEOUT": "1"},
)
BRIDGE_2 = replace(
    BRIDGE,
    name="bridge-2",
    label="the bridge, 2 workers",
    settings={**BRIDGE.settings, "WORKERS": "2"},
)
V1 = replace(BRIDGE, name="v1", label="version 1.0", commit="68df28c")
CONVENTIONAL = Contender(
    "conventional",
    "FastAPI + SQLAlchemy + PyMySQL + paho",
    (
        *(sys.executable, "-m", "uvicorn", "benchmarks.conventional:app"),
        *("--host", LOOPBACK, "--port", "{http_port}"),
    ),
    ("http",),
)
FASTSTREAM = Contender(
    "faststream", "FastStream MQTT RPC + asyncmy", _module("faststream_rpc"), ("mqtt",)
)
EMPTY = Contender(
    "empty", "an empty aiohttp application", _module("empty_aiohttp"), ("http",), "constant"
)
C_ECHO = Contender(
    "c-echo",
    "limit: a bare echo in C on libmosquitto",
    ("{tools}/echo", LOOPBACK, "{mqtt_port}", "{prefix}"),
    ("mqtt",),
    "echo",
)
ALL = (BRIDGE, V1, BRIDGE_2, CONVENTIONAL, FASTSTREAM, EMPTY, C_ECHO)


def grown(contender: Contender, devices: int) -> Contender:
    """The same on the database with that many devices."""
    label = f"{contender.label}, {devices:,} devices"
    return replace(contender, name=f"{contender.name}-grown", label=label, devices=devices)


def without_statistics(contender: Contender) -> Contender:
    """The same on a database whose statistics call its tables empty."""
    label = f"{contender.label}, no statistics"
    return replace(contender, name=f"{contender.name}-blind", label=label, statistics=False)


@dataclass
class Lab:
    """What every contender shares: broker, database server, compiled tools, a folder for logs."""

    folder: Path
    tools: Path
    broker: Mosquitto
    database: MariaDb

    def database_of(self, contender: Contender) -> str:
        """The name of the database for this contender; made on first use."""
        name = f"bench_{contender.devices}{'' if contender.statistics else '_blind'}"
        if name not in self._created:
            print(f"filling a database: {name} …", file=sys.stderr, flush=True)
            self.database.create(name, contender.devices, statistics=contender.statistics)
            self._created.add(name)
        return name

    def root_of(self, contender: Contender) -> Path:
        """The folder of its code, compiled: a start must not pay for that."""
        root = contender.root
        if contender.commit:
            root = self.folder / contender.commit
        if root not in self._compiled:
            if contender.commit:
                _check_out(contender.commit, root)
            compileall.compile_dir(root / "bridge", quiet=1)
            self._compiled.add(root)
        return root

    def __post_init__(self) -> None:
        self._created: set[str] = set()
        self._compiled: set[Path] = set()


def _check_out(commit: str, folder: Path) -> None:
    """Write the files of a commit into a new folder; the working tree is left alone."""
    archive = folder.with_suffix(".tar")
    command = ["git", "-C", str(ROOT), "archive", f"--output={archive}", commit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StartError(
            f"commit {commit} is not to be had ({done.stderr.strip()}): "
            "fetch the whole history, or measure with --without v1"
        )
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")


class Running:
    """A started contender that has given its first right answers, one per transport."""

    def __init__(self, contender: Contender, lab: Lab) -> None:
        self.contender = contender
        self.http_port = free_port()
        # A prefix each: those that stand by must not take the requests of the one measured.
        self.prefix = contender.name
        self._log = lab.folder / f"{contender.name}.log"
        places = {
            "root": lab.root_of(contender),
            "tools": lab.tools,
            "http_port": self.http_port,
            "mqtt_port": lab.broker.port,
            "prefix": self.prefix,
        }
        environment = self._environment(lab)
        started = time.monotonic()
        self.process = subprocess.Popen(
            [part.format(**places) for part in contender.command],
            env=environment,
            # Not the project's root, where a user's own .env may lie.
            cwd=lab.folder,
            stdout=self._log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        try:
            self._await_answers(lab)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - started
        # The second worker, and whatever a service does just after it first answers.
        time.sleep(SETTLE)

    def stop(self) -> None:
        stop(self.process)

    def require_alive(self) -> None:
        """Raise when it has ended: its silence is then no measurement."""
        if self.process.poll() is not None:
            raise StartError(
                f"{self.contender.name} ended by itself, or was ended "
                f"(status {self.process.returncode}):\n{tail(self._log)}"
            )

    def pids(self) -> list[int]:
        return processes.tree(self.process.pid)

    def _environment(self, lab: Lab) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        return kept | {
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(lab.root_of(self.contender)),
            "DB_HOST": LOOPBACK,
            "DB_PORT": str(lab.database.port),
            "DB_NAME": lab.database_of(self.contender),
            "DB_USER": DB_USER,
            "DB_PASSWORD": DB_PASSWORD,
            "MQTT_BROKER": LOOPBACK,
            "MQTT_PORT": str(lab.broker.port),
            "MQTT_TOPIC_PREFIX": self.prefix,
            # An orderly stop keeps the session: the same row's successor takes it up again. Under
            # another name it would keep its turns in the share, offline.
            "MQTT_INSTANCE": f"bench-{self.prefix}",
            "SERVICE_HOST": LOOPBACK,
            "SERVICE_PORT": str(self.http_port),
            **self.contender.settings,
        }

    def _await_answers(self, lab: Lab) -> None:
        probe = None
        if "mqtt" in self.contender.transports:
            probe = subprocess.Popen(
                [
                    str(lab.tools / "mqtt_load"),
                    *("--port", str(lab.broker.port), "--prefix", self.prefix),
                    *("--check", self.contender.answers, "--probe", str(READY_TIMEOUT)),
                ]
            )
        waits_for_http = "http" in self.contender.transports
        deadline = time.monotonic() + READY_TIMEOUT
        try:
            while waits_for_http or (probe is not None and probe.poll() is None):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise self._not_ready()
                if waits_for_http:
                    waits_for_http = not self._answers_http()
                time.sleep(0.005)
        finally:
            if probe is not None:
                stop(probe)
        if probe is not None and probe.returncode != 0:
            raise self._not_ready()

    def _answers_http(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self.http_port, timeout=5)
        query = f"device_uuid={dataset.device_uuid(1)}&sensor=temperature"
        try:
            connection.request("GET", f"/api/sensor-data?{query}")
            response = connection.getresponse()
            body = response.read()
        except OSError:
            return False
        finally:
            connection.close()
        if response.status != 200:
            return False
        if self.contender.answers == "constant":
            return True
        value: float = json.loads(body)["data"]["value"]
        return value == float(dataset.temperature(1))

    def _not_ready(self) -> StartError:
        return StartError(f"{self.contender.name} gave no right answer:\n{tail(self._log)}")
