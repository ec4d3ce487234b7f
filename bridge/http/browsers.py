"""What web pages may ask through somebody's browser: the guard against other origins and rebinding.

A request without an API key could come from any page in the browser of somebody in the network. A
page of another origin is recognised by its `Origin` header. A page whose host name was made to
resolve to our address (DNS rebinding) is recognised by its `Host` header, a name that anybody can
register; IP addresses, names without a dot and names below private domains can't be registered.
"""

import socket
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from ..errors import Forbidden, Text
from ..settings import Settings

Headers = Sequence[tuple[str, str]]

# RFC 6761, RFC 6762, RFC 8375, ICANN's resolution 2024.07.29.06 (.internal), and what routers use.
_PRIVATE = (".local", ".localhost", ".internal", ".home.arpa", ".lan")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_KEY_HEADERS = frozenset({"x-api-key", "authorization"})

_HOST = Text(
    "不接受以此主机名发来的请求；请改用服务器的 IP 地址或本机名访问，把主机名加入 ALLOWED_HOSTS，"
    "或携带 API 密钥",
    "requests to this host name are not accepted; use the server's IP address or its own name, add "
    "the name to ALLOWED_HOSTS, or send an API key",
)
_ORIGIN = Text(
    "不接受来自此网页的请求；请把它的来源加入 CORS_ORIGINS，或携带 API 密钥",
    "requests from this web page are not accepted; add its origin to CORS_ORIGINS, or send an API "
    "key",
)
_VARY = ("Vary", "Origin")
_PREFLIGHT = (
    ("Access-Control-Allow-Methods", "GET, POST, OPTIONS"),
    (
        "Access-Control-Allow-Headers",
        "Content-Type, X-API-Key, Authorization, Idempotency-Key, traceparent, tracestate, "
        "MCP-Protocol-Version, Mcp-Session-Id, Mcp-Method, Mcp-Name",
    ),
    ("Access-Control-Max-Age", "600"),
)


class Browsers:
    """Judges by `Host` and `Origin` what shows no key, and says which pages may read answers."""

    def __init__(self, settings: Settings) -> None:
        public = _split(settings.public_url)
        self._origins = frozenset(settings.cors_origins) - {"*"}
        if public.hostname:
            self._origins |= {f"{public.scheme}://{public.netloc}"}
        self._any_origin = "*" in settings.cors_origins
        self._any_host = "*" in settings.allowed_hosts
        self._hosts = {
            name.casefold()
            for name in (*settings.allowed_hosts, public.hostname or "", socket.gethostname())
            if name
        }

    def check(self, host: str | None, origin: str | None) -> None:
        """Raise Forbidden if a web page may have sent a request that shows no key.

        `host` and `origin` are the headers of these names, None where missing.
        """
        if host is not None and not self._is_ours(host):
            raise Forbidden(reason=_HOST)
        if origin is None or origin in self._origins or _is_same(origin, host):
            return
        raise Forbidden(reason=_ORIGIN)

    def preflight(self, host: str | None, origin: str | None, announced: str) -> Headers:
        """The headers that answer a preflight; `announced` is its Access-Control-Request-Headers.

        Under `CORS_ORIGINS=*` any page may announce a key: the request itself must show it. Raises
        Forbidden as `check` does.
        """
        names = {name.strip().casefold() for name in announced.split(",")}
        if not (self._any_origin and names & _KEY_HEADERS):
            self.check(host, origin)
        return _PREFLIGHT

    def cors(self, origin: str | None) -> Headers:
        """The headers that say which page may read an answer; none for other origins."""
        if self._any_origin:
            return (("Access-Control-Allow-Origin", "*"),)
        if origin is not None and origin in self._origins:
            return (("Access-Control-Allow-Origin", origin), _VARY)
        return (_VARY,) if self._origins else ()

    def _is_ours(self, host: str) -> bool:
        if self._any_host:
            return True
        name, is_private = _judged(host)
        return is_private or name in self._hosts


@lru_cache(maxsize=256)
def _judged(host: str) -> tuple[str, bool]:
    """The name in a Host header, and whether it is one that no stranger can have registered."""
    name = (_split(f"//{host}").hostname or "").removesuffix(".")
    if not name:
        return name, False
    if "." not in name or name.endswith(_PRIVATE):
        return name, True
    try:
        ip_address(name)
    except ValueError:
        return name, False
    return name, True


def _is_same(origin: str, host: str | None) -> bool:
    """Whether an origin is the very host and port that were asked."""
    theirs = _split(origin)
    if theirs.scheme not in _DEFAULT_PORTS or host is None:
        return False
    ours = _split(f"//{host}")
    default = _DEFAULT_PORTS[theirs.scheme]
    try:
        ports = (theirs.port or default, ours.port or default)
    except ValueError:
        return False
    return theirs.hostname == ours.hostname and ports[0] == ports[1]


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")
