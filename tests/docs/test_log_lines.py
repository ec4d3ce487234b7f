"""Log lines that the alerts and the operator's page name are those that the bridge writes."""

from __future__ import annotations

import re

import pytest

from tests.lab.bridge import PROJECT

SOURCE = "".join(file.read_text(encoding="utf-8") for file in (PROJECT / "bridge").rglob("*.py"))
ALERTS = (PROJECT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8")
PAGE = (PROJECT / "docs/operating.md").read_text(encoding="utf-8")


def named() -> list[str]:
    """The lines that are named; `…` is what differs from one to the next."""
    table = PAGE.partition("| message | meaning |")[2].partition("\n\n")[0]
    cells = (row.split("|")[1] for row in table.splitlines() if row.count("|") > 2)
    lines = [line for cell in cells for line in re.findall("`(.+?)`", cell)]
    return lines + re.findall(r'(?:Look for|lines) "(.+?)"', ALERTS)


@pytest.mark.parametrize("line", named())
def test_line_that_is_named_is_written(line):
    parts = [part.strip() for part in line.split("…") if part.strip()]
    assert parts
    assert all(part in SOURCE for part in parts)
