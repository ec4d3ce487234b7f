"""What `deploy/` holds is sound: by each format's own checker, and run for real where it can be."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.observability.metrics import Metrics
from tests.lab.bridge import PROJECT
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import RefusedError
from tests.lab.requester import Requester
from tests.lab.servers import LOOPBACK, program

DEPLOY = PROJECT / "deploy"
UNIT = (DEPLOY / "systemd" / "plugin-backend.service").read_text(encoding="utf-8")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))


def checked(*command: str | Path, folder: Path = PROJECT) -> str:
    """What a checker says, which has to be content."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# systemd


def test_unit_is_what_systemd_takes(tmp_path):
    """Verified with a program that is there: where it will be installed nothing is yet."""
    here = UNIT.replace("/opt/plugin-backend/.venv/bin/python", sys.executable)
    unit = tmp_path / "plugin-backend.service"
    unit.write_text(here, encoding="utf-8")
    said = checked(program("systemd-analyze"), "verify", "--man=no", unit)
    assert "plugin-backend" not in said


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket at which systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(10)
        yield channel


def states(channel: socket.socket, until: str) -> list[str]:
    """All that is told up to a state."""
    told: list[str] = []
    while until not in told:
        told += channel.recv(4096).decode().splitlines()
    return told


@pytest.mark.parametrize("workers", ["1", "2"])
def test_systemd_is_told_of_ready_of_the_loop_and_of_the_end(private_bridge, notified, workers):
    bridge = private_bridge(
        wait=None,
        WORKERS=workers,
        NOTIFY_SOCKET=notified.getsockname(),
        WATCHDOG_USEC="200000",
    )
    told = states(notified, "READY=1")
    assert "STOPPING=1" not in told
    if workers == "1":
        # The parent of several does not listen itself.
        assert bridge.live
        assert "STATUS=ready" in states(notified, "STATUS=ready")
    for _ in range(3):
        states(notified, "WATCHDOG=1")
    bridge.wait_until_it_is("ready")
    bridge.send_signal(signal.SIGTERM)
    states(notified, "STOPPING=1")
    assert bridge.wait() == 0


def test_no_ready_is_told_where_the_port_is_taken(private_bridge, notified):
    with socket.create_server((LOOPBACK, 0)) as other:
        bridge = private_bridge(
            wait=None,
            SERVICE_PORT=str(other.getsockname()[1]),
            NOTIFY_SOCKET=notified.getsockname(),
        )
        assert bridge.wait() == 1
    notified.setblocking(False)
    with pytest.raises(BlockingIOError):
        notified.recv(4096)


# Docker


def test_dockerfile_satisfies_its_linter():
    linter = Path(sys.executable).with_name("hadolint")
    assert checked(linter, DEPLOY / "Dockerfile") == ""


def test_image_gets_all_that_the_dockerfile_copies_and_no_env_file():
    ignored = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {name.removeprefix("./") for line in copied for name in line.split()}
    assert "*" in ignored
    assert sources == let_in
    assert all((PROJECT / name).exists() for name in sources)


def test_container_is_not_root_and_its_health_check_asks_livez(bridge):
    assert re.search(r"^USER (?!0)\d+", DOCKERFILE, re.MULTILINE)
    (check,) = re.findall(r"CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    _, *arguments = json.loads(check)
    asked = [sys.executable, *arguments]
    alive = subprocess.run(
        asked, env={"SERVICE_PORT": str(bridge.port), "NO_PROXY": "*"}, check=False, timeout=10
    )
    dead = subprocess.run(
        asked, env={"SERVICE_PORT": "9", "NO_PROXY": "*"}, check=False, timeout=10, stderr=-3
    )
    assert (alive.returncode, dead.returncode) == (0, 1)
    assert "/livez" in check


def test_compose_file_is_what_compose_takes():
    checked(program("docker-compose"), "-f", DEPLOY / "compose.yaml", "config", "--quiet")


def test_every_service_has_a_health_check_and_no_secret_is_in_the_file():
    # That of the bridge is in its image.
    services = COMPOSE["services"]
    unchecked = [name for name in services if "healthcheck" not in services[name]]
    assert unchecked == ["bridge"]
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name:
                assert name.endswith("_FILE")
                assert Path(value).name in service["secrets"]


def test_http_is_published_to_this_machine_alone_where_no_keys_guard_it():
    bridge = COMPOSE["services"]["bridge"]
    assert "API_KEYS_FILE" not in bridge["environment"]
    assert [port.rsplit(":", 2)[0] for port in bridge["ports"]] == [LOOPBACK]


def test_compose_file_with_its_keys_taken_in_is_what_compose_takes(tmp_path):
    """As its head says: the lines with api_keys, which are commented out."""
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    opened = re.sub(r"^( +)# (.*api_keys.*)$", r"\1\2", text, flags=re.MULTILINE)
    bridge = yaml.safe_load(opened)["services"]["bridge"]
    assert Path(bridge["environment"]["API_KEYS_FILE"]).name in bridge["secrets"]
    written = tmp_path / "compose.yaml"
    written.write_text(opened, encoding="utf-8")
    checked(program("docker-compose"), "-f", written, "config", "--quiet")


def test_log_of_every_service_is_bounded():
    for service in COMPOSE["services"].values():
        assert service["logging"]["options"].keys() >= {"max-size", "max-file"}


def test_bind_mounts_of_the_compose_file_are_there():
    mounts = COMPOSE["services"]["broker"]["volumes"]
    sources = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert sources
    assert not [source for source in sources if not (DEPLOY / source).exists()]


class StartedBySecrets(Mosquitto):
    """The broker as its container starts it, with the folders elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        config, secrets = self.folder / "config", self.folder / "secrets"
        config.mkdir()
        secrets.mkdir()
        shutil.copy(DEPLOY / "mosquitto" / "acl", config / "acl.original")
        text = (DEPLOY / "mosquitto" / "mosquitto.conf").read_text(encoding="utf-8")
        text = text.replace("listener 1883", f"listener {self.port} {LOOPBACK}")
        text = text.replace("/etc/mosquitto/", f"{config}/")
        text = text.replace("/var/lib/mosquitto/", f"{self.folder}/")
        if os.geteuid() == 0:
            # It would become a user who may not read this folder.
            text += "user root\n"
        (config / "mosquitto.conf").write_text(text, encoding="utf-8")
        (secrets / "mqtt_password").write_text("of the bridge\n", encoding="utf-8")
        (secrets / "mqtt_users").write_text("plugin-a:its own\n\n", encoding="utf-8")

    def command(self) -> list[str]:
        return [program("sh"), str(DEPLOY / "mosquitto" / "start.sh")]

    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
            "MOSQUITTO_CONFIG": str(self.folder / "config"),
            "MOSQUITTO_SECRETS": str(self.folder / "secrets"),
            "MOSQUITTO_DATA": str(self.folder),
        }


async def test_broker_of_the_compose_file_lets_in_those_of_its_secrets_and_no_other(
    private_bridge,
):
    broker = StartedBySecrets()
    try:
        await asyncio.to_thread(broker.start)
        await asyncio.to_thread(
            private_bridge, broker=broker, MQTT_USERNAME="bridge", MQTT_PASSWORD="of the bridge"
        )
        async with Requester(broker, username="plugin-a", password="its own") as plugin:
            reply = await plugin.ask("health", client_level="plugin-a")
            assert reply.code == 200
        with pytest.raises(RefusedError):
            await Requester(broker, username="plugin-a", password="wrong").connect()
        assert "its own" not in (broker.folder / "config" / "passwd").read_text(encoding="utf-8")
    finally:
        await asyncio.to_thread(broker.close)


# Prometheus and Grafana


def test_alert_rules_and_their_own_tests_satisfy_promtool():
    folder = DEPLOY / "prometheus"
    checked(program("promtool"), "check", "config", "prometheus.yml", folder=folder)
    checked(program("promtool"), "test", "rules", "alerts_test.yml", folder=folder)


def test_every_alert_has_a_test_that_it_fires():
    told = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text(encoding="utf-8"))
    fires = {
        case["alertname"]
        for test in told["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert fires == {rule["alert"] for rule in ALERTS["groups"][0]["rules"]}


def exposed() -> dict[str, set[str]]:
    """The labels of each sample that /metrics has, once everything has happened."""
    metrics = Metrics()
    metrics.answered("http", "health", "ok", 0.0)
    metrics.dropped("retained")
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_dashboard_uses_exactly_the_metrics_that_there_are():
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    used = used_metrics(" ".join(expressions))
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in exposed()}
    assert used <= exposed().keys()
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in used} == families
    assert used_metrics(" ".join(rule["expr"] for rule in ALERTS["groups"][0]["rules"])) <= (
        exposed().keys()
    )


def test_dashboard_and_alerts_use_labels_that_their_metrics_have():
    # What Prometheus adds to each.
    added = {"instance", "job"}
    for expression in all_expressions():
        labels = set().union(*(exposed()[name] for name in used_metrics(expression)), added)
        assert labels_used(expression) <= labels, expression


def test_queries_of_the_dashboard_are_ones_that_promtool_takes(tmp_path):
    rules = [
        {"record": f"panel:{number}", "expr": without_variables(expression)}
        for number, expression in enumerate(all_expressions())
    ]
    written = tmp_path / "rules.yml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked(program("promtool"), "check", "rules", written)


def all_expressions() -> list[str]:
    panels: list[Any] = DASHBOARD["panels"]
    return [
        *(target["expr"] for panel in panels for target in panel["targets"]),
        *(rule["expr"] for rule in ALERTS["groups"][0]["rules"]),
    ]


def used_metrics(expression: str) -> set[str]:
    return set(re.findall(r"\bbridge_\w+", expression))


def labels_used(expression: str) -> set[str]:
    grouped = re.findall(r"by \(([^)]*)\)", expression)
    selected = re.findall(r"(\w+)(?:=~|!~|!=|=)\"", expression)
    return {label.strip() for labels in grouped for label in labels.split(",")} | set(selected)


def without_variables(expression: str) -> str:
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
