"""A private MariaDB that holds the platform's tables."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql
from pymysql.cursors import DictCursor

from tests.lab.certificates import Certificates
from tests.lab.servers import Server, ServerError, program

DATABASE = "aiot"

READER = "bridge"
READER_PASSWORD = "bridge-pa55"
"""SELECT on the platform's tables and nothing else: what the bridge is given."""

WRITER = "platform"
WRITER_PASSWORD = "platform-pa55"
"""Everything on that database: the service that writes the tables."""

_SCHEMA = Path(__file__).with_name("schema.sql")

_ACCOUNTS = f"""
FLUSH PRIVILEGES;
DELETE FROM mysql.global_priv WHERE User = '';
FLUSH PRIVILEGES;
CREATE USER '{READER}'@'%' IDENTIFIED BY '{READER_PASSWORD}';
GRANT SELECT ON {DATABASE}.* TO '{READER}'@'%';
CREATE USER '{WRITER}'@'%' IDENTIFIED BY '{WRITER_PASSWORD}';
GRANT ALL ON {DATABASE}.* TO '{WRITER}'@'%';
"""
# (An anonymous account would catch whoever comes over the socket before '%' does.)

_CHARACTERS = [
    "--character-set-server=utf8mb4",
    "--collation-server=utf8mb4_unicode_ci",
]

_SMALL_AND_FAST = [
    "--innodb-log-file-size=4M",
    "--innodb-buffer-pool-size=32M",
    "--innodb-buffer-pool-load-at-startup=OFF",
    "--innodb-buffer-pool-dump-at-shutdown=OFF",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--innodb-doublewrite=OFF",
    "--innodb-use-native-aio=OFF",
    "--key-buffer-size=1M",
    "--aria-pagecache-buffer-size=1M",
    "--performance-schema=OFF",
    "--skip-log-bin",
    "--skip-name-resolve",
]


class MariaDb(Server):
    """A database server on a free port of 127.0.0.1, with the platform's tables, empty.

    Extra options go on the server's command line, such as ``--default-time-zone=+00:00``.
    With ``certificates`` it offers TLS; ``require_tls`` refuses TCP without.
    """

    database = DATABASE
    user, password = READER, READER_PASSWORD

    def __init__(
        self,
        *extra: str,
        certificates: Certificates | None = None,
        require_tls: bool = False,
    ) -> None:
        super().__init__()
        self.certificates = certificates
        self._socket = self.folder / "socket"
        self._data = self.folder / "data"
        self._extra = [*extra, *_tls_options(certificates, require_tls)]

    def command(self) -> list[str]:
        return [
            program("mariadbd"),
            *_common_options(self._data),
            f"--bind-address={self.host}",
            f"--port={self.port}",
            f"--socket={self._socket}",
            f"--pid-file={self.folder / 'pid'}",
            *self._extra,
        ]

    def spawn(self) -> None:
        if not self._data.exists():
            shutil.copytree(_template(), self._data)
        super().spawn()

    def answers(self) -> bool:
        # It listens long before it serves, so wait for its greeting.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(self._socket))
                return bool(probe.recv(1))
            except OSError:
                return False

    def execute(self, sql: str, *args: Any) -> int:
        """Run a statement as root and return how many rows it touched."""
        with self._connection() as connection, connection.cursor() as cursor:
            return int(cursor.execute(sql, args or None))

    def query(self, sql: str, *args: Any) -> list[dict[str, Any]]:
        """The rows of a SELECT (or SHOW), asked as root."""
        with self._connection() as connection, connection.cursor() as cursor:
            cursor.execute(sql, args or None)
            return list(cursor.fetchall())

    @contextmanager
    def _connection(self) -> Iterator[pymysql.Connection[DictCursor]]:
        connection = pymysql.connect(
            unix_socket=str(self._socket),
            user="root",
            database=DATABASE,
            charset="utf8mb4",
            autocommit=True,
            cursorclass=DictCursor,
            ssl_disabled=True,
            connect_timeout=20,
            read_timeout=20,
        )
        try:
            yield connection
        finally:
            connection.close()


@functools.cache
def _template() -> Path:
    """A data folder with system tables, accounts and schema, made once and copied since."""
    folder = tempfile.TemporaryDirectory(prefix="lab-template-")
    _template_folders.append(folder)
    data = Path(folder.name) / "data"
    _run(
        [
            program("mariadb-install-db"),
            *_common_options(data),
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]
    )
    schema = f"CREATE DATABASE {DATABASE};\nUSE {DATABASE};\n{_SCHEMA.read_text()}"
    _run([program("mariadbd"), *_common_options(data), "--bootstrap"], _ACCOUNTS + schema)
    return data


# Referenced until the interpreter ends, which removes them.
_template_folders: list[tempfile.TemporaryDirectory[str]] = []


def _common_options(data: Path) -> list[str]:
    # --no-defaults comes first or not at all. Only root is asked to say that it means it.
    as_root = ["--user=root"] if os.geteuid() == 0 else []
    # A starting server removes all temporary tables of its tmpdir, those of its neighbours too.
    folders = [f"--datadir={data}", f"--tmpdir={data.parent}"]
    return ["--no-defaults", *as_root, *folders, *_CHARACTERS, *_SMALL_AND_FAST]


def _tls_options(certificates: Certificates | None, required: bool) -> list[str]:
    if certificates is None:
        return []
    return [
        f"--ssl-ca={certificates.ca}",
        f"--ssl-cert={certificates.server.certificate}",
        f"--ssl-key={certificates.server.key}",
        f"--require-secure-transport={'ON' if required else 'OFF'}",
    ]


def _run(command: list[str], stdin: str = "") -> None:
    done = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False)
    if done.returncode != 0 or "ERROR" in done.stderr:
        raise ServerError(f"{command[0]} exited with {done.returncode}:\n{done.stderr}")
