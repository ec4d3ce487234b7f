"""From a message to the request that it is, and the address of its reply."""

import re
import time

from ..core.envelope import TRACE_SHAPES, Envelope, open_payload
from ..core.operations import OPERATION_NAMES, OPERATIONS
from ..core.request import Request
from ..errors import (
    BridgeError,
    PayloadTooLarge,
    TooManyProperties,
    UnsupportedMediaType,
    UnsupportedPayloadFormat,
    UnsupportedVersion,
)
from ..link import packets
from ..link.topics import Asked, Topics, is_plain
from .reply_address import PROTOCOL_MAJOR, Properties, ReplyAddress

_JSON_TYPE = re.compile(r"\s*(application/([\w.-]+\+)?json|text/json)\s*(;.*)?", re.IGNORECASE)
_VERSION = re.compile(r"(\d{1,9})(\.\d{1,9})*")


class Dropped(Exception):
    """A request that gets no reply, by the rule that `reason` names."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Addressing:
    def __init__(self, topics: Topics, max_payload: int) -> None:
        self._topics = topics
        self._max_payload = max_payload

    def operation(self, message: packets.Message) -> str:
        """What a message asks for, as its topic says."""
        return self._topics.asked(message.topic).operation

    def read(self, message: packets.Message) -> tuple[Request, ReplyAddress]:
        """The request that a message is, with a refusal if it is at fault; and its reply's address.

        Raises Dropped if a rule says that it gets no reply.
        """
        asked = self._topics.asked(message.topic)
        envelope = self._open(message, asked)
        topic, refusal = self._reply_topic(message, asked, envelope)
        refusal = refusal or _fault_of(message) or envelope.refusal
        if message.oversized:
            refusal = PayloadTooLarge(limit=self._max_payload)
        expires = None if message.expiry is None else message.came + message.expiry
        if expires is not None and expires <= time.monotonic():
            raise Dropped("expired")
        if not is_plain(topic):
            raise Dropped("unanswerable")
        trace = _trace_of(message)
        request = Request(
            transport="mqtt",
            operation=asked.operation,
            received=message.came,
            fields=envelope.fields,
            refusal=refusal,
            requester=asked.client or topic,
            is_named=asked.client is not None,
            request_id=envelope.request_id,
            idempotency_key=envelope.request_id or message.correlation or None,
            expires_at=envelope.expires_at,
            expires=expires,
            traceparent=dict(trace).get("traceparent") if trace else None,
        )
        version = None
        if isinstance(refusal, UnsupportedVersion):
            version = _version_of(message)
        address = ReplyAddress(
            topic, envelope.request_id, message.qos, expires, message.correlation, trace, version
        )
        return request, address

    def _open(self, message: packets.Message, asked: Asked) -> Envelope:
        row = OPERATIONS.get(asked.operation)
        return open_payload(
            message.payload,
            self._max_payload,
            is_batch=asked.operation == "batch",
            may_be_empty=row is not None and row.always,
        )

    def _reply_topic(
        self, message: packets.Message, asked: Asked, envelope: Envelope
    ) -> tuple[str, BridgeError | None]:
        """Where the reply goes; a topic that may not be used rejects the request."""
        named, by = message.response_topic, "Response Topic"
        if named is None:
            named, by = envelope.reply_to, "reply_to"
        default = self._topics.default_reply(asked, envelope.request_id)
        try:
            self._topics.check_client(asked, OPERATION_NAMES)
            if named is not None:
                return self._topics.check_reply(named, asked, by), None
        except BridgeError as refusal:
            return default, refusal
        return default, None


def _fault_of(message: packets.Message) -> BridgeError | None:
    if message.overloaded:
        return TooManyProperties(limit=packets.MOST_USER_PROPERTIES)
    declared = message.content_type
    if declared and not _JSON_TYPE.fullmatch(declared):
        return UnsupportedMediaType().about("Content Type", declared)
    if message.payload_format not in (None, 0, 1):
        return UnsupportedPayloadFormat().about("Payload Format Indicator", message.payload_format)
    version = _version_of(message) if message.user_properties else None
    if version is not None:
        parsed = _VERSION.fullmatch(version)
        if parsed is None or parsed[1] != PROTOCOL_MAJOR:
            return UnsupportedVersion(version=version).about("__protVer", version)
    return None


def _version_of(message: packets.Message) -> str | None:
    return next((value for name, value in message.user_properties if name == "__protVer"), None)


def _trace_of(message: packets.Message) -> Properties:
    """The trace that the request belongs to, as far as it is valid: each part once."""
    if not message.user_properties:
        return ()
    parts = {
        name: value
        for name, value in message.user_properties
        if name in TRACE_SHAPES and TRACE_SHAPES[name].fullmatch(value)
    }
    return tuple(parts.items())
