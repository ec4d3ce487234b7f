"""The systemd unit, the alerts and the dashboard: each by its format's own checker, or run.

What is for Docker is in `test_deploy_docker.py`.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.observability.metrics import Metrics
from bridge.observability.observations import RequestAnswered
from tests.lab.bridge import PROJECT
from tests.lab.commands import checked
from tests.lab.servers import LOOPBACK, program

DEPLOY = PROJECT / "deploy"
UNIT = (DEPLOY / "systemd" / "plugin-backend.service").read_text(encoding="utf-8")
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))


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
    metrics.request_answered(RequestAnswered("http", "health", None, 200, "ok", 0.0))
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
    return set(re.findall(r"\b(?:bridge|process)_\w+", expression))


def labels_used(expression: str) -> set[str]:
    grouped = re.findall(r"by \(([^)]*)\)", expression)
    selected = re.findall(r"(\w+)(?:=~|!~|!=|=)\"", expression)
    return {label.strip() for labels in grouped for label in labels.split(",")} | set(selected)


def without_variables(expression: str) -> str:
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
