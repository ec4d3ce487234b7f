"""What callers name, checked before anything is sent."""

import json
import re
import ssl
from numbers import Real
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson

from ..link import BrokerAddress
from ..link.topics import is_plain

# A day, as in the bridge's settings (seconds).
_LONGEST_TIMEOUT = 86400
# An id that a reply repeats: the bridge's own rule. On MQTT 3.1.1 a reply is known by nothing else.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def broker_at(url: object, tls: ssl.SSLContext | None) -> BrokerAddress:
    """The broker of a `mqtt://` or `mqtts://` URL; `tls` is the context of the second, if any.

    Raises ValueError for anything else; the message repeats nothing of it.
    """
    # The message repeats no part of the URL, nor does the parser's: it may hold a password.
    malformed = ValueError("write the broker as mqtt://host:1883 or mqtts://host:8883")
    if not isinstance(url, str):
        raise malformed
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


def check_level(level: object) -> None:
    """Raise ValueError unless it is a text that can be one level of a topic."""
    if not isinstance(level, str) or "/" in level or not is_plain(level):
        raise ValueError(f"{level!r} can't be a level of a topic")


def check_timeout(seconds: object) -> float:
    """The timeout; raises ValueError unless it is a number of seconds above 0 and up to a day."""
    number: Any = seconds if isinstance(seconds, Real) and not isinstance(seconds, bool) else 0
    if not 0 < number <= _LONGEST_TIMEOUT:
        raise ValueError(
            f"timeout={seconds!r} must be a number of seconds above 0 and up to {_LONGEST_TIMEOUT}"
        )
    return float(number)


def check_fields(fields: object) -> None:
    """Raise ValueError if a number in them is NaN or infinite, for which JSON has no number.

    Raises TypeError if they hold anything but JSON's own types, or can't be written as JSON.
    """
    # First, so that nothing below is deep or endless. It writes null for NaN and infinity, also in
    # dataclasses and other objects, which the second one does not write.
    orjson.dumps(fields)
    json.dumps(fields, allow_nan=False)


def check_request_id(request_id: object) -> str:
    """The id; raises ValueError unless it is 1-128 of `A-Z a-z 0-9 . _ : -`."""
    if not (isinstance(request_id, str) and _REQUEST_ID.fullmatch(request_id)):
        raise ValueError(
            f"request_id={request_id!r} must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"
        )
    return request_id


def is_version5(protocol: str) -> bool:
    """Whether the version is MQTT 5 rather than 3.1.1; ValueError if it is neither."""
    if protocol not in ("5", "3.1.1"):
        raise ValueError(f'protocol={protocol!r} must be "5" or "3.1.1"')
    return protocol == "5"
