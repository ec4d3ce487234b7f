"""Which errors an operation may be answered with: they follow from its row and its fields."""

from itertools import groupby
from typing import Literal

from ..core.operations import Operation
from ..core.replies import FAILURE
from ..devices.errors import (
    AmbiguousSensor,
    DeviceBusy,
    DeviceNotFound,
    DeviceOffline,
    DeviceUnreachable,
    InvalidControl,
    InvalidPreset,
    PresetNotFound,
    SensorNotFound,
)
from ..devices.models import JsonObject
from ..errors import (
    BridgeError,
    Busy,
    DatabaseTimeout,
    DatabaseUnavailable,
    Draining,
    Expired,
    Forbidden,
    IdempotencyConflict,
    Language,
    MalformedRequest,
    MqttUnavailable,
    OperationNotFound,
    OutcomeUnknown,
    PayloadTooLarge,
    ReplyTopicForbidden,
    RequestTimeout,
    Unauthorized,
    UnsupportedMediaType,
    ValidationFailed,
    fault_text,
)

Errors = list[type[BridgeError]]
Transport = Literal["http", "mqtt"]

_ANY: Errors = [MalformedRequest, Expired, ValidationFailed, RequestTimeout, BridgeError]
_COMMANDS: Errors = [
    InvalidControl,
    DeviceUnreachable,
    IdempotencyConflict,
    MqttUnavailable,
    OutcomeUnknown,
]
_OVER_MQTT: Errors = [PayloadTooLarge, UnsupportedMediaType, ReplyTopicForbidden, Forbidden]
# An operation's fields show what it asks of the platform's tables.
_BY_FIELD: dict[str, Errors] = {
    "device_uuid": [DeviceNotFound, DatabaseUnavailable, DatabaseTimeout],
    "sensor": [SensorNotFound, AmbiguousSensor],
    "preset_key": [PresetNotFound, InvalidPreset, DeviceOffline, DeviceBusy],
}


def refusals(row: Operation, transport: Transport, *, guarded: bool = False) -> Errors:
    """The errors that may answer an operation, by code; `guarded`: there are API keys."""
    errors = list(_ANY)
    for field in row.fields.model_fields:
        errors += _BY_FIELD.get(field, [])
    if row.reads:
        errors += [DatabaseUnavailable, DatabaseTimeout]
    if row.commands:
        errors += _COMMANDS
    if not row.always:
        errors.append(Busy)
    errors += _OVER_MQTT if transport == "mqtt" else _over_http(row, guarded)
    return sorted(set(errors), key=lambda error: (error.code, error.error))


def by_code(errors: Errors) -> list[tuple[int, Errors]]:
    """Errors in the order of their codes, as a list for each code."""
    return [(code, list(group)) for code, group in groupby(errors, lambda error: error.code)]


def example_of(error: type[BridgeError], language: Language) -> JsonObject:
    """A body as such an error has it; what its sentence would name is left open."""
    # Some errors have sentences for their kinds only.
    worded = next(kind for kind in (error, *error.__subclasses__()) if "text" in vars(kind))
    body: JsonObject = {
        "code": worded.code,
        "msg": FAILURE,
        "data": None,
        "detail": worded.text.in_(language).format_map(_Blanks()),
        "error": worded.error,
    }
    if error is ValidationFailed:
        fault = {
            "loc": ["device_uuid"],
            "msg": fault_text("missing").in_(language),
            "type": "missing",
        }
        body["errors"] = [fault]
    if error is BridgeError:
        body["incident"] = "3f9c2a7be410"
    return body


def _over_http(row: Operation, guarded: bool) -> Errors:
    # Also for a page of another origin without a key (`http/browsers.py`).
    errors: Errors = [Forbidden]
    if row.method == "POST":
        errors += [PayloadTooLarge, UnsupportedMediaType]
    if "{" in row.path:
        # A UUID that can't be part of a path matches no route.
        errors.append(OperationNotFound)
    if not row.always:
        errors.append(Draining)
    if guarded:
        errors.append(Unauthorized)
    return errors


class _Blank:
    def __format__(self, spec: str) -> str:
        return "…"


class _Blanks(dict[str, _Blank]):
    def __missing__(self, name: str) -> _Blank:
        return _Blank()
