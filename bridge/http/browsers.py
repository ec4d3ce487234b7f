"""What web pages may ask through somebody's browser: the guard against other origins and rebinding.

A request without an API key could come from any page in the browser of somebody in the network. A
page of another origin is recognised by its `Origin` header. A page whose host name was made to
resolve to our address (DNS rebinding) is recognised by its `Host` header, a name that anybody can
register; IP addresses, names without a dot and names below private domains can't be registered.
"""

import contextlib
import re
import socket
from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from ..errors import Forbidden, Text
from ..settings import Settings

Headers = Sequence[tuple[str, str]]

# RFC 6761, RFC 6762, RFC 8375, ICANN's resolution 2024.07.29.06 (.internal), and what routers use.
_PRIVATE = (".local", ".localhost", ".internal", ".home.arpa", ".lan")
_DEFAULT_PORTS = {"http": 80, "https": 443}
# What a browser sends as a host: labels of letters, digits, "-" and "_", or an IPv6 address, which
# may have a zone (RFC 6874); and a port.
_HOST_AND_PORT = re.compile(
    r"(?P<name>(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?|\[[0-9a-f:.]+(?:%[a-z0-9%._~-]+)?\])"
    r"(?::(?P<port>[0-9]{0,5}))?",
    re.ASCII | re.IGNORECASE,
)
# A last label that makes browsers take a name for an IPv4 address.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
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
# The headers that answer a preflight.
PREFLIGHT: Headers = (
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
        public = urlsplit(settings.public_url)
        self._origins = frozenset(settings.cors_origins) - {"*"}
        if public.hostname:
            self._origins |= {f"{public.scheme}://{public.netloc}"}
        self._any_origin = "*" in settings.cors_origins
        self._any_host = "*" in settings.allowed_hosts
        self._hosts = {
            _as_sent(name)
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

    def check_preflight(self, host: str | None, origin: str | None, announced: str) -> None:
        """Raise Forbidden as `check` does; `announced` is the Access-Control-Request-Headers.

        Under `CORS_ORIGINS=*` any page may announce a key: the request itself must show it.
        """
        names = {name.strip().casefold() for name in announced.split(",")}
        if not (self._any_origin and names & _KEY_HEADERS):
            self.check(host, origin)

    def cors(self, origin: str | None) -> Headers:
        """The headers that say which page may read an answer; none for other origins."""
        if self._any_origin:
            # Not to a request without an origin: a page could read that from the browser's cache.
            return (_VARY,) if origin is None else (("Access-Control-Allow-Origin", "*"), _VARY)
        if origin is not None and origin in self._origins:
            return (("Access-Control-Allow-Origin", origin), _VARY)
        return (_VARY,) if self._origins else ()

    def _is_ours(self, host: str) -> bool:
        if self._any_host:
            return True
        asked = _parsed(host)
        if asked is None:
            return False
        name = asked.name.removesuffix(".")
        return name in self._hosts or _is_private(name)


def _as_sent(name: str) -> str:
    """A name of the settings as browsers send it: in lower case, and in ASCII (RFC 5890)."""
    with contextlib.suppress(UnicodeError):
        name = name.encode("idna").decode()
    return name.lower()


class _Host(NamedTuple):
    name: str
    port: int | None


@lru_cache(maxsize=256)
def _parsed(host: str) -> _Host | None:
    """A Host header in lower case; None if it is no host that a browser sends."""
    match = _HOST_AND_PORT.fullmatch(host)
    return match and _Host(match["name"].lower(), int(match["port"]) if match["port"] else None)


@lru_cache(maxsize=256)
def _is_private(name: str) -> bool:
    """Whether it is an IP address, or a name that no stranger can have registered."""
    try:
        if name.startswith("["):
            IPv6Address(name[1:-1])
        elif _NUMBER.fullmatch(name.rpartition(".")[2]):
            IPv4Address(name)
        else:
            return "." not in name or name.endswith(_PRIVATE)
    except ValueError:
        return False
    return True


def _is_same(origin: str, host: str | None) -> bool:
    """Whether an origin is the very host and port that were asked."""
    scheme, _, theirs = origin.partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    page, asked = _parsed(theirs), _parsed(host or "")
    if default is None or page is None or asked is None:
        return False
    return page.name == asked.name and (page.port or default) == (asked.port or default)


def hosts_of(request: web.BaseRequest) -> Iterator[str | None]:
    """The names by which we were asked: the `Host` header, and what an absolute target names.

    The target counts (RFC 9112, section 3.2.2), but what stands before us may go by the header.
    """
    yield request.headers.get(hdrs.HOST)
    if not request.raw_path.startswith("/"):
        yield request.url.raw_authority


def origin_of(request: web.BaseRequest) -> str | None:
    """Whose page asks; several origins are nobody's."""
    if hdrs.ORIGIN not in request.headers:
        return None
    origins = request.headers.getall(hdrs.ORIGIN)
    return origins[0] if len(origins) == 1 else "null"
