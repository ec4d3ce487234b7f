"""The bridge as its users run it: a process of its own."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import Broker
from tests.lab.servers import Server

PROJECT = Path(__file__).resolve().parents[2]

# Another version's checkout, to be measured with the same tools.
_CHECKOUT = Path(os.environ.get("BRIDGE_CHECKOUT", PROJECT))

# What a program needs of its surroundings. The rest stays out: a developer's shell may
# well hold a DB_HOST of its own.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "COVERAGE_PROCESS_START")

Readiness = Literal["ready", "live"]


class Bridge(Server):
    """``python run.py`` on these servers, with any further arguments and settings.

    Either server may be None: its settings are then left out. A setting of None removes
    what would be set otherwise: ``Bridge(broker, db, "serve", WORKERS="2", DB_USER=None)``.
    """

    def __init__(
        self,
        broker: Broker | None,
        database: MariaDb | None,
        *arguments: str,
        **settings: str | None,
    ) -> None:
        super().__init__()
        self.broker = broker
        self._arguments = arguments
        defaults = {
            **_broker_settings(broker),
            **_database_settings(database),
            "SERVICE_HOST": self.host,
            "SERVICE_PORT": str(self.port),
            "MQTT_INSTANCE": f"test-{self.port}",
        }
        chosen = {**defaults, **settings}
        self.settings = {name: value for name, value in chosen.items() if value is not None}
        self.instance = self.settings.get("MQTT_INSTANCE", "")
        self.url = f"http://{self.host}:{self.port}"

    def command(self) -> list[str]:
        return [sys.executable, str(_CHECKOUT / "run.py"), *self._arguments]

    def environment(self) -> Mapping[str, str]:
        # It runs in its own folder, where no developer's `.env` lies.
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return {**inherited, "PYTHONUNBUFFERED": "1", **self.settings}

    def answers(self) -> bool:
        return self.ready

    def start(self, wait: Readiness | None = "ready") -> Self:
        """Start the process; return when it is ready, when it is live, or at once."""
        self.spawn()
        if wait is not None:
            self.wait_until_it_is(wait)
        return self

    def wait_until_it_is(self, state: Readiness) -> None:
        """Wait for /readyz or /livez to say 200; `ServerError` if the process ends first."""
        self.wait_for(lambda: self.ready if state == "ready" else self.live, state)

    @property
    def live(self) -> bool:
        return self._status("/livez") == 200

    @property
    def ready(self) -> bool:
        return self._status("/readyz") == 200

    def _status(self, path: str) -> int | None:
        try:
            with _direct.open(self.url + path, timeout=2) as response:
                return int(response.status)
        except urllib.error.HTTPError as refusal:
            refusal.close()
            return refusal.code
        except OSError:
            return None


# Without the proxies of the surroundings.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _broker_settings(broker: Broker | None) -> dict[str, str]:
    if broker is None:
        return {}
    settings = {"MQTT_BROKER": broker.host, "MQTT_PORT": str(broker.port)}
    if isinstance(broker, Mosquitto) and broker.certificates is not None:
        settings |= {"MQTT_TLS": "true", "MQTT_TLS_CA": str(broker.certificates.ca)}
    return settings


def _database_settings(database: MariaDb | None) -> dict[str, str]:
    if database is None:
        return {}
    settings = {
        "DB_HOST": database.host,
        "DB_PORT": str(database.port),
        "DB_NAME": database.database,
        "DB_USER": database.user,
        "DB_PASSWORD": database.password,
    }
    if database.certificates is not None:
        settings["DB_TLS_CA"] = str(database.certificates.ca)
    return settings
