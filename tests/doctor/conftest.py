"""Runs the doctor as a user would."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.doctor.report import DOCTOR, Doctor, Report
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Broker
from tests.lab.servers import LOOPBACK, free_port


@pytest.fixture
def doctor(tmp_path: Path, mosquitto: Mosquitto, mariadb: MariaDb) -> Doctor:
    """Runs it in an empty folder, with a clean environment, on the shared servers or others."""

    def run(
        broker: Broker | None = mosquitto,
        database: MariaDb | None = mariadb,
        *,
        env_file: str | None = None,
        reader: str = "cat",
        **settings: str,
    ) -> Report:
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        if env_file is not None:
            (folder / ".env").write_text(env_file, encoding="utf-8")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONIOENCODING": "utf-8",
            "PYTHONDEVMODE": "1",
            "LANGUAGE": "en",
            "SERVICE_HOST": LOOPBACK,
            "SERVICE_PORT": str(free_port()),
            **_broker_settings(broker),
            **_database_settings(database),
            **settings,
        }
        started = time.monotonic()
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f'"$@" | {reader}', "-", *DOCTOR],
            cwd=folder,
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        encoding = environment["PYTHONIOENCODING"]
        assert done.stderr.decode() == ""
        return Report(done.returncode, done.stdout.decode(encoding), time.monotonic() - started)

    return run


def _broker_settings(broker: Broker | None) -> dict[str, str]:
    if broker is None:
        return {}
    return {"MQTT_BROKER": broker.host, "MQTT_PORT": str(broker.port)}


def _database_settings(database: MariaDb | None) -> dict[str, str]:
    if database is None:
        return {}
    return {
        "DB_HOST": database.host,
        "DB_PORT": str(database.port),
        "DB_NAME": database.database,
        "DB_USER": database.user,
        "DB_PASSWORD": database.password,
    }
