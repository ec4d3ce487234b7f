"""Where and how a reply goes back, and what it carries there beside its body."""

from functools import lru_cache
from typing import NamedTuple

from ..core.replies import Reply
from ..link import packets
from ..observability.logs import printable

# Of the RPC protocol of Azure IoT Operations, whose property names we use.
PROTOCOL_MAJOR = "1"
_PROTOCOL_VERSION = "1.0"
_CONTENT_TYPE = b"application/json"
_LONGEST_PROPERTY = 300

Properties = tuple[tuple[str, str], ...]


class ReplyAddress(NamedTuple):
    """Where and how a reply goes back; `expires` is on the monotonic clock."""

    topic: str
    request_id: str | None
    qos: int
    expires: float | None = None
    correlation: bytes | None = None
    trace: Properties = ()
    # The `__protVer` that is not ours.
    foreign_version: str | None = None


def properties(reply: Reply, address: ReplyAddress, *, bare: bool = False) -> bytes:
    """A reply's properties, but for its expiry and correlation; `bare`: as few as can be."""
    if bare:
        return packets.properties(user=[("__stat", str(reply.code))])
    outcome = _Outcome(
        reply.code,
        reply.error,
        reply.detail,
        reply.in_operation,
        reply.property_name,
        reply.property_value,
    )
    # What a request held is not remembered.
    encode = _encoded_again if reply.property_value is None else _encoded
    more = address.trace
    if address.foreign_version is not None:
        more = (
            ("__supProtMajVer", PROTOCOL_MAJOR),
            ("__requestProtVer", printable(address.foreign_version, _LONGEST_PROPERTY)),
            *more,
        )
    return encode(outcome) + packets.properties(user=more)


class _Outcome(NamedTuple):
    code: int
    error: str | None
    detail: str | None
    in_operation: bool
    property_name: str | None
    property_value: str | None


def _encoded(outcome: _Outcome) -> bytes:
    user = [("__stat", str(outcome.code)), ("__protVer", _PROTOCOL_VERSION)]
    if outcome.error is not None:
        user.append(("__stMsg", printable(outcome.detail or "", _LONGEST_PROPERTY)))
        if outcome.in_operation:
            user.append(("__apErr", "true"))
        if outcome.property_name is not None:
            user.append(("__propName", printable(outcome.property_name, _LONGEST_PROPERTY)))
        if outcome.property_value is not None:
            user.append(("__propVal", printable(outcome.property_value, _LONGEST_PROPERTY)))
    return packets.properties(content_type=_CONTENT_TYPE, user=user)


# Most requests end in one of a few ways.
_encoded_again = lru_cache(maxsize=256)(_encoded)
