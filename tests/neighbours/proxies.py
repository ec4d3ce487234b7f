"""The proxies of Debian before a bridge, each as `deploy/` configures it.

Only addresses, ports and certificate files are replaced, as their readers do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import ClassVar

from tests.lab.bridge import PROJECT, Bridge
from tests.lab.certificates import Certificates
from tests.lab.commands import checked
from tests.lab.servers import LOOPBACK, Server, free_port, program

DEPLOY = PROJECT / "deploy"


class Proxy(Server):
    """A proxy that speaks TLS on its port and asks these bridges."""

    name: ClassVar[str]

    def __init__(self, certificates: Certificates, *bridges: Bridge) -> None:
        super().__init__()
        self.certificates = certificates
        self.bridges = bridges
        self.context = certificates.client_context()
        self.url = f"https://{LOOPBACK}:{self.port}"
        self.configure()
        checked(*self.check(), folder=self.folder, environment=self.environment())

    def configure(self) -> None:
        """Write the configuration into the folder."""
        raise NotImplementedError

    def check(self) -> list[str]:
        """The proxy's own check of its configuration."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder)}


class Nginx(Proxy):
    name = "nginx"

    def configure(self) -> None:
        text = (DEPLOY / "nginx" / "bridge.conf").read_text(encoding="utf-8")
        pair = self.certificates.server
        text = substituted(
            text,
            {
                r"listen 443 ": f"listen {LOOPBACK}:{self.port} ",
                r"listen 80;": f"listen {LOOPBACK}:{free_port()};",
                r"server 127\.0\.0\.1:9001;": f"server {LOOPBACK}:{self.bridges[0].port};",
                r"/etc/ssl/bridge/fullchain\.pem": str(pair.certificate),
                r"/etc/ssl/bridge/privkey\.pem": str(pair.key),
            },
        )
        (self.folder / "bridge.conf").write_text(text, encoding="utf-8")
        temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        (self.folder / "nginx.conf").write_text(
            # Else its workers become a user who may not read this folder.
            ("user root;\n" if os.geteuid() == 0 else "")
            + "daemon off;\npid nginx.pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n"
            + "".join(f"{kind}_temp_path {self.folder}/{kind};\n" for kind in temporary)
            + f"include {self.folder}/bridge.conf;\n}}\n"
        )

    def check(self) -> list[str]:
        return [*self.command(), "-t"]

    def command(self) -> list[str]:
        folder = str(self.folder)
        return [program("nginx"), "-p", folder, "-c", f"{folder}/nginx.conf", "-e", "stderr"]


class HaProxy(Proxy):
    name = "haproxy"

    def configure(self) -> None:
        text = (DEPLOY / "haproxy" / "haproxy.cfg").read_text(encoding="utf-8")
        pair, pem = self.certificates.server, self.folder / "bridge.pem"
        pem.write_text(pair.certificate.read_text() + pair.key.read_text())
        servers = "".join(
            f"    server bridge{number} {LOOPBACK}:{bridge.port}\n"
            for number, bridge in enumerate(self.bridges, start=1)
        )
        text = substituted(
            text,
            {
                r"bind :443 ": f"bind {LOOPBACK}:{self.port} ",
                r"/etc/ssl/bridge/bridge\.pem": str(pem),
                r"(?:    server bridge\d .*\n)+": servers,
            },
        )
        (self.folder / "haproxy.cfg").write_text(text, encoding="utf-8")

    def check(self) -> list[str]:
        return [*self.command(), "-c"]

    def command(self) -> list[str]:
        return [program("haproxy"), "-db", "-f", str(self.folder / "haproxy.cfg")]


class PoolingHaProxy(HaProxy):
    """HAProxy that sends even a client's first request over a connection that others have used.

    `deploy/` does not ask for it; some operators do.
    """

    name = "haproxy-always"

    def configure(self) -> None:
        super().configure()
        written = self.folder / "haproxy.cfg"
        text = written.read_text(encoding="utf-8")
        eager = {"    balance leastconn\n": "    balance leastconn\n    http-reuse always\n"}
        written.write_text(substituted(text, eager), encoding="utf-8")


class Caddy(Proxy):
    name = "caddy"

    def configure(self) -> None:
        text = (DEPLOY / "caddy" / "Caddyfile").read_text(encoding="utf-8")
        pair = self.certificates.server
        text = substituted(
            text,
            {
                r"^bridge\.example\.org ": f"https://{LOOPBACK}:{self.port} ",
                r"# tls .*": f"tls {pair.certificate} {pair.key}",
                r"127\.0\.0\.1:9001": f"{LOOPBACK}:{self.bridges[0].port}",
            },
        )
        # Neither its administration nor its redirect from port 80, which have ports of their own.
        private = "{\n\tadmin off\n\tauto_https disable_redirects\n}\n"
        (self.folder / "Caddyfile").write_text(private + text, encoding="utf-8")

    def check(self) -> list[str]:
        return [program("caddy"), "validate", *self._config()]

    def command(self) -> list[str]:
        return [program("caddy"), "run", *self._config()]

    def _config(self) -> list[str]:
        return ["--adapter", "caddyfile", "--config", str(self.folder / "Caddyfile")]


PROXIES: tuple[type[Proxy], ...] = (Nginx, HaProxy, Caddy)


def substituted(text: str, replacements: Mapping[str, str]) -> str:
    """The text with each pattern replaced; fails if one is not in it."""
    for pattern, replacement in replacements.items():
        text, count = re.subn(pattern, lambda _, new=replacement: new, text, flags=re.MULTILINE)
        assert count, pattern
    return text
