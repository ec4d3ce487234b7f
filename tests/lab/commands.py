"""Programs that check something and say what is wrong by their exit status."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.lab.bridge import PROJECT


def checked(
    *command: str | Path, folder: Path = PROJECT, environment: Mapping[str, str] | None = None
) -> str:
    """Return what the program prints, stdout before stderr; fail if it fails."""
    done = run(*command, folder=folder, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def run(
    *command: str | Path, folder: Path = PROJECT, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, for a minute at most."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
