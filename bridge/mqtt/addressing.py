"""From a message to the request that it is and the way back; and what a reply carries on it."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from ..core.dispatcher import Request
from ..core.envelope import TRACE_SHAPES, Envelope, open_payload
from ..core.operations import OPERATION_NAMES, OPERATIONS
from ..core.replies import Reply
from ..errors import BridgeError, TooManyProperties, UnsupportedMediaType, UnsupportedPayloadFormat
from ..link import packets
from ..link.topics import Asked, Topics, is_plain
from ..observability.logs import printable
from ..settings import Settings

_CONTENT_TYPE = b"application/json"
_LONGEST_PROPERTY = 300
_JSON_TYPE = re.compile(r"\s*(application/([\w.-]+\+)?json|text/json)\s*(;.*)?", re.IGNORECASE)


@dataclass(slots=True)
class Return:
    """Where and how a reply goes back."""

    topic: str
    request_id: str | None
    qos: int
    expires: float | None = None
    correlation: bytes | None = None
    trace: list[tuple[str, str]] = field(default_factory=list)
    # Nothing but the code and the Correlation Data, since the broker takes no more.
    bare: bool = False


class Dropped(Exception):
    """A request that gets no reply, by the rule that `reason` names."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Addressing:
    """Reads messages by the topics and limits of one bridge."""

    def __init__(self, settings: Settings, topics: Topics) -> None:
        self._settings = settings
        self._topics = topics

    def read(
        self, message: packets.Message, on_begun: Callable[[], None]
    ) -> tuple[Request, Return]:
        """The request that a message is, refused already if it is at fault; and the way back.

        Raises:
            Dropped: a rule says that it is not answered.
        """
        asked = self._topics.asked(message.topic)
        envelope = self._open(message, asked)
        back = self._way_back(message, asked, envelope)
        if message.expiry is not None:
            back.expires = message.came + message.expiry
            if back.expires <= time.monotonic():
                raise Dropped("expired")
        if not is_plain(back.topic):
            raise Dropped("unanswerable")
        request = Request(
            transport="mqtt",
            operation=asked.operation,
            envelope=envelope,
            received=message.came,
            requester=asked.client or back.topic,
            once_id=envelope.request_id or message.correlation or None,
            expires=back.expires,
            on_begun=on_begun,
            traceparent=next((v for k, v in back.trace if k == "traceparent"), None),
        )
        return request, back

    def _open(self, message: packets.Message, asked: Asked) -> Envelope:
        row = OPERATIONS.get(asked.operation)
        envelope = open_payload(
            message.payload,
            self._settings.max_payload,
            may_be_empty=row is not None and row.always,
        )
        try:
            _check_media_type(message)
        except UnsupportedMediaType as refusal:
            envelope.refusal = refusal
        if message.overloaded:
            envelope.refusal = TooManyProperties(limit=packets.MOST_USER_PROPERTIES)
        return envelope

    def _way_back(self, message: packets.Message, asked: Asked, envelope: Envelope) -> Return:
        """Where the reply goes; a topic that may not be used refuses the request."""
        back = Return(
            self._topics.default_reply(asked, envelope.request_id),
            envelope.request_id,
            message.qos,
            correlation=message.correlation,
            trace=_trace_of(message),
        )
        named, by = message.response_topic, "Response Topic"
        if named is None:
            named, by = envelope.reply_to, "reply_to"
        try:
            self._topics.check_client(asked, OPERATION_NAMES)
            if named is not None:
                back.topic = self._topics.check_reply(named, asked, by)
        except BridgeError as refusal:
            envelope.refusal = refusal
        return back


def _check_media_type(message: packets.Message) -> None:
    """Whether the payload is said to be JSON, or nothing is said; the property at fault is named.

    Raises:
        UnsupportedMediaType: it is said to be something else.
    """
    declared = message.content_type
    if declared and not _JSON_TYPE.fullmatch(declared):
        raise UnsupportedMediaType().about("Content Type", declared)
    if message.payload_format not in (None, 0, 1):
        raise UnsupportedPayloadFormat().about("Payload Format Indicator", message.payload_format)


def _trace_of(message: packets.Message) -> list[tuple[str, str]]:
    """The trace that the request belongs to, as far as it will do: each part once."""
    if not message.user_properties:
        return []
    parts = {
        name: value
        for name, value in message.user_properties
        if name in TRACE_SHAPES and TRACE_SHAPES[name].fullmatch(value)
    }
    return list(parts.items())


def properties(reply: Reply, back: Return) -> bytes:
    """A reply's properties, but for its expiry."""
    if back.bare:
        user = [("__stat", str(reply.code))]
        return packets.properties(correlation=back.correlation, user=user)
    outcome = _Outcome(
        reply.code,
        reply.error,
        reply.detail,
        reply.in_operation,
        reply.property_name,
        reply.property_value,
    )
    # What was in a request is not remembered.
    tell = _told_again if reply.property_value is None else _told
    return tell(outcome) + packets.properties(correlation=back.correlation, user=back.trace)


class _Outcome(NamedTuple):
    """What a reply's properties tell."""

    code: int
    error: str | None
    detail: str | None
    in_operation: bool
    property_name: str | None
    property_value: str | None


def _told(outcome: _Outcome) -> bytes:
    user = [("__stat", str(outcome.code))]
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
_told_again = lru_cache(maxsize=256)(_told)
