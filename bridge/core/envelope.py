"""What stands around an operation's fields: JSON, `request_id`, `reply_to`, `expires_at`."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from ..devices.models import JsonObject
from ..errors import (
    BridgeError,
    FieldError,
    MalformedRequest,
    PayloadTooLarge,
    Text,
    ValidationFailed,
    fault_text,
)

# Nothing that we take is nested so deep, and what writes it again has limits of its own.
_DEEPEST = 64

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

# What comes back as it was sent, if it is of this shape (W3C recommendation Trace Context).
TRACE_SHAPES = {
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
    "tracestate": re.compile(r"[\x20-\x7e]{1,512}"),
}

_NOT_JSON = Text("内容不是有效的 UTF-8 JSON", "the payload is not valid JSON in UTF-8")
_TOO_DEEP = Text(
    f"内容嵌套超过 {_DEEPEST} 层", f"the payload is nested more than {_DEEPEST} levels deep"
)
_NOT_AN_OBJECT = Text("内容必须是 JSON 对象", "the payload must be a JSON object")
_BAD_ID = Text(
    "request_id 必须是 1–128 个 A-Z a-z 0-9 . _ : - 字符",
    "request_id must be 1-128 characters of A-Z a-z 0-9 . _ : -",
)


@dataclass(slots=True)
class Envelope:
    """A request's payload, opened. With a `refusal` the rest is what could still be read."""

    fields: JsonObject = field(default_factory=dict)
    request_id: str | None = None
    # Whatever was sent as `reply_to`; the transport decides whether it will do.
    reply_to: Any = None
    # Unix seconds.
    expires_at: float | None = None
    refusal: BridgeError | None = None


def open_payload(payload: bytes, limit: int, *, may_be_empty: bool = False) -> Envelope:
    """Open a JSON payload of at most `limit` bytes; never raises, refuses instead."""
    if len(payload) > limit:
        return Envelope(refusal=PayloadTooLarge(limit=limit))
    if may_be_empty and not payload:
        return Envelope()
    try:
        # orjson takes neither NaN nor infinities, lone surrogates, bad UTF-8 or endless nesting.
        fields = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return Envelope(refusal=MalformedRequest(reason=_NOT_JSON))
    if not isinstance(fields, dict):
        return Envelope(refusal=MalformedRequest(reason=_NOT_AN_OBJECT))
    if payload.count(b"{") + payload.count(b"[") > _DEEPEST and _is_too_deep(fields):
        return Envelope(refusal=MalformedRequest(reason=_TOO_DEEP))
    return open_fields(fields)


def _is_too_deep(value: JsonObject) -> bool:
    layer: list[Any] = [value]
    for _ in range(_DEEPEST):
        layer = [
            child
            for node in layer
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not layer:
            return False
    return True


def open_fields(fields: JsonObject) -> Envelope:
    """Open fields that came as such: a query string's, or an item of a batch."""
    envelope = Envelope(fields, reply_to=fields.get("reply_to"))
    request_id = fields.get("request_id")
    if request_id is not None:
        try:
            envelope.request_id = checked_id(request_id)
        except MalformedRequest as refusal:
            envelope.refusal = refusal
    expires_at = fields.get("expires_at")
    if expires_at is not None:
        envelope.expires_at = _seconds(expires_at)
        if envelope.expires_at is None and envelope.refusal is None:
            fault = FieldError(("expires_at",), fault_text("float_type"), "float_type")
            envelope.refusal = ValidationFailed([fault], expires_at)
    return envelope


def checked_id(request_id: object) -> str:
    """A request id that will do.

    Raises:
        MalformedRequest: it is no text of 1-128 of the characters allowed.
    """
    if isinstance(request_id, str) and _REQUEST_ID.fullmatch(request_id):
        return request_id
    raise MalformedRequest(reason=_BAD_ID).about("request_id", request_id)


def traceparent_of(header: str | None) -> str | None:
    """A traceparent that is one; for the log, where nothing else goes."""
    return header if header and TRACE_SHAPES["traceparent"].fullmatch(header) else None


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None
