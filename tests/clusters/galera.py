"""MariaDB Galera Cluster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.lab.mariadb import MariaDb, _template
from tests.lab.servers import LOOPBACK, free_port

_PROVIDER = next(Path("/usr/lib").glob("**/libgalera_smm.so"), Path("libgalera_smm.so"))

_NOBODY = 65534


class GaleraNode(MariaDb):
    start_timeout = 90.0

    def __init__(self, number: int, group: int, members: Sequence[int], *options: str) -> None:
        self.group = group
        self._is_first = number == 1
        self._members = [port for port in members if port != group]
        transfer, incremental = free_port(), free_port()
        provider = ";".join(
            (
                f"base_host={LOOPBACK}",
                f"base_port={group}",
                f"gmcast.listen_addr=tcp://{LOOPBACK}:{group}",
                f"ist.recv_addr={LOOPBACK}:{incremental}",
                "gcache.size=16M",
                *options,
            )
        )
        super().__init__(
            "--wsrep-on=ON",
            f"--wsrep-provider={_PROVIDER}",
            f"--wsrep-provider-options={provider}",
            "--wsrep-cluster-name=lab",
            f"--wsrep-node-name=node{number}",
            f"--wsrep-node-address={LOOPBACK}",
            "--wsrep-sst-method=rsync",
            f"--wsrep-sst-receive-address={LOOPBACK}:{transfer}",
            "--wsrep-sync-wait=1",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
        )

    def command(self) -> list[str]:
        members = "" if self._is_first else ",".join(f"{LOOPBACK}:{one}" for one in self._members)
        return [*super().command(), f"--wsrep-cluster-address=gcomm://{members}"]

    def spawn(self) -> None:
        if not self._data.exists():
            shutil.copytree(_template(), self._data)
        # Of root's, rsync's daemon writes there as `nobody`.
        for path in (self.folder, self._data, *self._data.rglob("*")):
            path.chmod(0o777)
            if os.geteuid() == 0:
                os.chown(path, _NOBODY, _NOBODY)
        super().spawn()
        # Started again, the first one joins the others.
        self._is_first = False

    def answers(self) -> bool:
        if not super().answers():
            return False
        try:
            return self.query("SHOW STATUS LIKE 'wsrep_ready'")[0]["Value"] == "ON"
        except Exception:
            return False


class Galera:
    """Three nodes; `options` are the provider's, such as `evs.suspect_timeout=PT1S`."""

    def __init__(self, *options: str) -> None:
        ports = [free_port() for _ in range(3)]
        self.nodes = [
            GaleraNode(number, port, ports, *options) for number, port in enumerate(ports, 1)
        ]
        self._servers = ExitStack()

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                self._servers.callback(node.close)
                node.start()
        except BaseException:
            self._servers.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._servers.close()
