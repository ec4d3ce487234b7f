"""What a run of the doctor printed, by the subjects of its checks."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol

from tests.lab.bridge import PROJECT
from tests.lab.mariadb import MariaDb
from tests.lab.mqtt import Broker

DOCTOR = (sys.executable, str(PROJECT / "run.py"), "doctor")
OK, NOTE, FAILED, SKIPPED = "✓", "!", "✗", "-"


@dataclass(frozen=True)
class Found:
    """One check's line, and what to do below it."""

    mark: str
    says: str
    advice: str


@dataclass(frozen=True)
class Report:
    """What one run printed."""

    status: int
    output: str
    seconds: float

    @property
    def found(self) -> dict[str, Found]:
        """What was found, by the subject of each check."""
        found: dict[str, Found] = {}
        subject = ""
        for line in self.output.splitlines():
            if line.startswith("      "):
                before = found[subject]
                found[subject] = Found(before.mark, before.says, f"{before.advice}\n{line.strip()}")
            elif ": " in line and line[:2] in {"✓ ", "! ", "✗ ", "- "}:
                subject, _, says = line[2:].partition(": ")
                found[subject] = Found(line[0], says, "")
        return found

    def marked(self, mark: str) -> set[str]:
        return {subject for subject, found in self.found.items() if found.mark == mark}


class Doctor(Protocol):
    def __call__(
        self,
        broker: Broker | None = ...,
        database: MariaDb | None = ...,
        *,
        env_file: str | None = ...,
        reader: str = ...,
        **settings: str,
    ) -> Report: ...
