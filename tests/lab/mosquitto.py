"""A private Mosquitto."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.lab.certificates import Certificates
from tests.lab.servers import Server, program


class Mosquitto(Server):
    """A broker on a free port of 127.0.0.1.

    Extra configuration lines follow the listener's own, so they may belong to it or open
    another one. With ``certificates`` the listener speaks TLS and nothing else.
    """

    def __init__(
        self,
        *extra: str,
        tcp_nodelay: bool = True,
        anonymous: bool = True,
        passwords: Mapping[str, str] | None = None,
        acl: str | None = None,
        certificates: Certificates | None = None,
        require_client_certificate: bool = False,
        persistence: bool = False,
    ) -> None:
        super().__init__()
        self.certificates = certificates
        self._acl_file = self.folder / "acl"
        self._config_file = self.folder / "mosquitto.conf"
        lines = [
            f"listener {self.port} {self.host}",
            "log_dest stderr",
            f"allow_anonymous {_word(anonymous)}",
            f"set_tcp_nodelay {_word(tcp_nodelay)}",
            f"persistence {_word(persistence)}",
            f"persistence_location {self.folder}/",
        ]
        if os.geteuid() == 0:
            # Else it becomes the user `mosquitto`, who may not read these files.
            lines.append("user root")
        if passwords is not None:
            write_password_file(self.folder / "passwords", passwords)
            lines.append(f"password_file {self.folder / 'passwords'}")
        if acl is not None:
            self._acl_file.write_text(acl)
            lines.append(f"acl_file {self._acl_file}")
        if certificates is not None:
            lines += _tls_lines(certificates, require_client_certificate)
        self._config_file.write_text("\n".join([*lines, *extra]) + "\n")

    def command(self) -> list[str]:
        return [program("mosquitto"), "-c", str(self._config_file)]

    def set_acl(self, acl: str) -> None:
        """Replace the ACL of a running broker that was made with one."""
        already = self.output.count("Reloading config")
        self._acl_file.write_text(acl)
        self.send_signal(signal.SIGHUP)
        self.wait_for(lambda: self.output.count("Reloading config") > already, "reloading")


def write_password_file(path: Path, passwords: Mapping[str, str]) -> None:
    """Write a Mosquitto password file that holds these users."""
    path.touch(mode=0o600)
    for user, password in passwords.items():
        subprocess.run(
            [program("mosquitto_passwd"), "-b", str(path), user, password],
            check=True,
            capture_output=True,
        )


def _tls_lines(certificates: Certificates, require_client_certificate: bool) -> list[str]:
    return [
        f"cafile {certificates.ca}",
        f"certfile {certificates.server.certificate}",
        f"keyfile {certificates.server.key}",
        f"require_certificate {_word(require_client_certificate)}",
    ]


def _word(flag: bool) -> str:
    return "true" if flag else "false"
