"""What callers name, checked: the broker by its URL, and levels of topics."""

import ssl
from urllib.parse import unquote, urlsplit

from ..link import BrokerAddress
from ..link.topics import is_plain


def broker_at(url: str, tls: ssl.SSLContext | None) -> BrokerAddress:
    """The broker of a `mqtt://` or `mqtts://` URL; `tls` is for the second, else the usual one.

    Raises:
        ValueError: it is no such URL.
    """
    # No word of the URL is repeated, by the parser either: it may hold a password.
    malformed = ValueError("the broker must be given as mqtt://host:1883 or mqtts://host:8883")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise malformed from None
    if parts.scheme not in ("mqtt", "mqtts") or not host:
        raise malformed
    secure = parts.scheme == "mqtts"
    return BrokerAddress(
        host,
        port or (8883 if secure else 1883),
        unquote(parts.username or ""),
        unquote(parts.password or ""),
        (tls or ssl.create_default_context()) if secure else None,
    )


def check_level(level: str) -> None:
    """Whether it can stand between two slashes of a topic.

    Raises:
        ValueError: it can't.
    """
    if "/" in level or not is_plain(level):
        raise ValueError(f"{level!r} can't be a level of a topic")
