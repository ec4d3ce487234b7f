"""A private broker and a private database, on free ports, with their data in one folder."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import dataset

LOOPBACK = "127.0.0.1"
# A plain user's PATH on Debian lacks the folder where the servers are.
MOSQUITTO = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
MARIADBD = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
DB_USER = "bridge"
DB_PASSWORD = "bench"
START_TIMEOUT = 60.0

# TCP_NODELAY: without it a QoS 1 exchange waits 40 ms for a delayed ACK, whoever answers.
# No limit on messages in flight or queued: Mosquitto's 20 in flight would hold back only those
# contenders that send no Receive Maximum, and a full queue would lose requests silently.
_MOSQUITTO_CONF = """\
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
max_inflight_messages 0
max_queued_messages 0
persistence false
log_type error
log_type warning
{user}
"""


class StartError(RuntimeError):
    """A server or contender did not come up, or ended: which one, and its last words."""


def free_port() -> int:
    """A TCP port on loopback that nobody listens on right now.

    Below the ephemeral range: who keeps connecting to a closed port in that range ends up
    connected to itself.
    """
    for port in random.sample(range(20_000, 32_000), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise StartError("no free port between 20000 and 32000")


def wait_until(condition: Callable[[], bool], what: str, log: Path, timeout: float) -> None:
    """Poll ``condition`` every 10 ms; after ``timeout`` seconds raise with the end of ``log``."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise StartError(f"{what} did not start in {timeout:.0f} s:\n{tail(log)}")
        time.sleep(0.01)


def tail(log: Path, characters: int = 3000) -> str:
    """The end of a log file."""
    return log.read_text(errors="replace")[-characters:] if log.exists() else ""


def stop(process: "subprocess.Popen[bytes]", timeout: float = 15.0) -> None:
    """SIGTERM, and SIGKILL for one that does not listen."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def _as_root() -> bool:
    return os.geteuid() == 0


class Mosquitto:
    """The broker. Started when made."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        log = folder / "mosquitto.log"
        config = folder / "mosquitto.conf"
        # Started by root it would become the user `mosquitto`, who may not read our folder.
        config.write_text(
            _MOSQUITTO_CONF.format(port=self.port, user="user root" if _as_root() else "")
        )
        self.process = subprocess.Popen(
            [MOSQUITTO, "-c", str(config)],
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        wait_until(lambda: _listens(self.port), "mosquitto", log, START_TIMEOUT)

    def stop(self) -> None:
        stop(self.process)


class MariaDb:
    """The database server. Started when made, with no database in it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._socket = folder / "mariadb.sock"
        data = folder / "mariadb"
        log = folder / "mariadb.log"
        user = ["--user=root"] if _as_root() else []
        self._run(
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            *user,
        )
        self.process = subprocess.Popen(
            [
                MARIADBD,
                "--no-defaults",
                f"--datadir={data}",
                f"--socket={self._socket}",
                f"--pid-file={folder / 'mariadb.pid'}",
                f"--port={self.port}",
                f"--bind-address={LOOPBACK}",
                # A million devices fit: the growth row is to measure the work, not the disk.
                f"--innodb-buffer-pool-size={_buffer_pool_mib()}M",
                "--innodb-flush-method=fsync",
                # Only for loading: nothing is written while we measure.
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-log-file-size=512M",
                "--skip-name-resolve",
                *user,
            ],
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        wait_until(self._answers, "mariadbd", log, START_TIMEOUT)

    def create(self, database: str, devices: int, *, statistics: bool = True) -> None:
        """Make and fill a database that `DB_USER` may read, and nothing more."""
        account = f"'{DB_USER}'@'{LOOPBACK}'"
        script = (
            dataset.statements(database, devices, statistics=statistics)
            + f"CREATE USER IF NOT EXISTS {account} IDENTIFIED BY '{DB_PASSWORD}';"
            + f"GRANT SELECT ON {database}.* TO {account};"
        )
        self._sql(script)

    def version(self) -> str:
        return self._sql("SELECT VERSION()").strip()

    def stop(self) -> None:
        stop(self.process, timeout=60.0)

    def _answers(self) -> bool:
        ping = subprocess.run(
            ["mariadb-admin", "--no-defaults", f"--socket={self._socket}", "-uroot", "ping"],
            capture_output=True,
            check=False,
        )
        return ping.returncode == 0

    def _sql(self, script: str) -> str:
        return self._run(
            "mariadb",
            "--no-defaults",
            "--default-character-set=utf8mb4",
            f"--socket={self._socket}",
            "-uroot",
            "--batch",
            "--skip-column-names",
            script=script,
        )

    @staticmethod
    def _run(*command: str, script: str = "") -> str:
        done = subprocess.run(
            command, input=script.encode(), capture_output=True, check=False, timeout=600
        )
        if done.returncode != 0:
            raise StartError(f"{command[0]} failed:\n{done.stderr.decode(errors='replace')}")
        return done.stdout.decode()


def _buffer_pool_mib() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return min(3072, memory * 2 // 5)
