"""Whom `/mcp/` answers without an API key: the guard against DNS rebinding.

A page on the internet can make its reader's browser send requests to a server in the reader's own
network: the page's host name, which its owner controls, suddenly means that server's address. The
browser then takes server and page for one site. What gives it away are the `Host` and `Origin`
headers, which still hold the page's name. MCP asks its servers to look at them.

The SDK's own check wants every allowed host listed, which nobody can do for a bridge that listens
on all addresses of a school's machine. So ours asks what the attack needs: a name that a stranger
can register. Addresses, names without a dot, names below the domains set aside for private use, and
the machine's own name are none, and are let in; for any other name, show an API key. Who shows one
need not be asked about names: the attacker's page does not know it.
"""

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from ..errors import Forbidden, Text
from ..settings import Settings

# RFC 6761, RFC 6762, RFC 8375, and ICANN's resolution 2024.07.29.06 (.internal).
_PRIVATE = (".localhost", ".local", ".home.arpa", ".internal")

_HOST = Text(
    "不接受以此主机名发来的 MCP 请求；请改用桥接服务的 IP 地址或本机名，或携带 API 密钥",
    "MCP requests to this host name are not taken; use the bridge's IP address or its machine's "
    "name in the URL, or show an API key",
)
_ORIGIN = Text(
    "不接受来自此网页的 MCP 请求；请把它的来源加入 CORS_ORIGINS，或携带 API 密钥",
    "MCP requests of this web page are not taken; add its origin to CORS_ORIGINS, or show an "
    "API key",
)


class Visitors:
    """Judges by `Host` and `Origin` those who show no key."""

    def __init__(self, settings: Settings) -> None:
        self._origins = frozenset(settings.cors_origins) - {"*"}
        self._own = {socket.gethostname().lower(), settings.service_host.lower()}

    def check(self, host: str | None, origin: str | None) -> None:
        """Whether a request with these headers may be answered.

        `CORS_ORIGINS=*` lets nobody in here: it names no one.

        Raises:
            Forbidden: it may come from a page on the internet.
        """
        if not self._is_ours(_name_in(f"//{host or ''}")):
            raise Forbidden(reason=_HOST)
        if origin is None or origin in self._origins:
            return
        if not origin.startswith(("http://", "https://")) or not self._is_ours(_name_in(origin)):
            raise Forbidden(reason=_ORIGIN)

    def _is_ours(self, name: str) -> bool:
        """Whether this is a name that no stranger can have registered."""
        if not name:
            return False
        if "." not in name or name in self._own or name.endswith(_PRIVATE):
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True


def _name_in(url: str) -> str:
    """The host in a URL, without port, brackets and final dot; empty where there is none."""
    try:
        return (urlsplit(url).hostname or "").removesuffix(".")
    except ValueError:
        return ""
