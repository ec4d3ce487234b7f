"""What stands around an operation's fields: JSON, `request_id`, `reply_to`, `expires_at`."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from ..devices.models import JsonObject
from ..devices.stored import DEEPEST, is_too_deep
from ..errors import (
    BridgeError,
    FieldError,
    MalformedRequest,
    PayloadTooLarge,
    Text,
    ValidationFailed,
    fault_text,
)

# Byte order marks, of UTF-8 and of both kinds of UTF-16.
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
# A value of a few bytes takes up to two hundred once it is parsed. A payload may have so many; a
# batch more, and where more than 64 KiB are taken as many as if each had so many bytes.
_MOST_VALUES = 1024
_MOST_OF_BATCH = 4096
_SMALL_VALUE = 16
# No time in seconds is so large for the next three thousand years; in milliseconds, all are.
_NO_SECONDS = 1e11

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

# What comes back as it was sent, if it is of this shape (W3C recommendation Trace Context).
TRACE_SHAPES = {
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
    "tracestate": re.compile(r"[\x20-\x7e]{1,512}"),
}

_NOT_JSON = Text("内容不是有效的 UTF-8 JSON", "the payload is not valid JSON in UTF-8")
_TOO_DEEP = Text(
    f"内容嵌套超过 {DEEPEST} 层", f"the payload is nested more than {DEEPEST} levels deep"
)
_TOO_MANY_VALUES = Text("内容中的值过多", "the payload has too many values")
_BYTE_ORDER_MARK = Text(
    "内容以字节顺序标记（BOM）开头；请以不带 BOM 的 UTF-8 发送",
    "the payload begins with a byte order mark (BOM); send UTF-8 without one",
)
_MILLISECONDS = Text(
    "expires_at 必须以 Unix 秒表示，收到的值像是毫秒；请除以 1000",
    "expires_at must be in Unix seconds, but the value looks like milliseconds; divide it by 1000",
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
    # Whatever was sent as `reply_to`; the MQTT transport checks it.
    reply_to: Any = None
    # Unix seconds.
    expires_at: float | None = None
    refusal: BridgeError | None = None


def open_payload(
    payload: bytes, limit: int, *, is_batch: bool = False, may_be_empty: bool = False
) -> Envelope:
    """Open a JSON payload of at most `limit` bytes; never raises, refuses instead."""
    if len(payload) > limit:
        return Envelope(refusal=PayloadTooLarge(limit=limit))
    if may_be_empty and not payload:
        return Envelope()
    try:
        fields = _parsed(
            payload, max(_MOST_OF_BATCH, limit // _SMALL_VALUE) if is_batch else _MOST_VALUES
        )
    except MalformedRequest as refusal:
        return Envelope(refusal=refusal)
    return open_fields(fields)


def _parsed(payload: bytes, most_values: int) -> JsonObject:
    containers = payload.count(b"{") + payload.count(b"[")
    if containers + payload.count(b",") > most_values:
        raise MalformedRequest(reason=_TOO_MANY_VALUES)
    try:
        # orjson takes neither NaN nor infinities, lone surrogates, bad UTF-8 or endless nesting.
        fields = orjson.loads(payload)
    except orjson.JSONDecodeError:
        marked = payload.startswith(_BYTE_ORDER_MARKS)
        raise MalformedRequest(reason=_BYTE_ORDER_MARK if marked else _NOT_JSON) from None
    if not isinstance(fields, dict):
        raise MalformedRequest(reason=_NOT_AN_OBJECT)
    if containers > DEEPEST and is_too_deep(fields):
        raise MalformedRequest(reason=_TOO_DEEP)
    return fields


def open_fields(fields: JsonObject) -> Envelope:
    """Open fields that came as such: a query string's, or an item of a batch."""
    envelope = Envelope(fields, reply_to=fields.get("reply_to"))
    request_id = fields.get("request_id")
    if request_id is not None:
        try:
            envelope.request_id = checked_id(request_id)
        except MalformedRequest as refusal:
            envelope.refusal = refusal
    try:
        envelope.expires_at = _checked_expiry(fields.get("expires_at"))
    except (MalformedRequest, ValidationFailed) as refusal:
        envelope.refusal = envelope.refusal or refusal
    return envelope


def _checked_expiry(expires_at: object) -> float | None:
    """Unix seconds, None if none were sent; raises ValidationFailed or MalformedRequest."""
    if expires_at is None or (isinstance(expires_at, str) and not expires_at.strip()):
        return None
    seconds = _seconds(expires_at)
    if seconds is None:
        fault = FieldError(("expires_at",), fault_text("float_type"), "float_type")
        raise ValidationFailed([fault], expires_at)
    if abs(seconds) >= _NO_SECONDS:
        raise MalformedRequest(reason=_MILLISECONDS).about("expires_at", expires_at)
    return seconds


def checked_id(request_id: object) -> str:
    """The request id; raises MalformedRequest unless it is 1-128 of `A-Z a-z 0-9 . _ : -`."""
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
