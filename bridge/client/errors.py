"""What can go wrong, and whether asking once more makes sense.

    CallError
    ├─ NotConnected   the broker is not there or refuses us: nothing was executed
    ├─ Unheard        no bridge heard the request: nothing was executed
    ├─ NoReply        time ran out: a command may have been executed
    └─ Refused        the bridge answered with an error: `code`, `error`, `detail`, `errors`

Each has the `request_id` under which the request may be sent once more: a command that was executed
under it is not executed again. `RETRIES` tells for which errors that makes sense.
"""

from collections.abc import Mapping
from typing import Literal

from ..devices.models import JsonObject

Retry = Literal["automatic", "same id", "new id", "look first", "no"]

# For each error of the bridge, whether asking once more makes sense, and under which id:
#   automatic   the client itself does, under the same id, until the timeout has passed
#   same id     once the cause is gone; nothing was executed, or it will not be executed again
#   new id      the old id keeps this answer; nothing was executed under it
#   look first  the command may have reached the device: look at it, then decide on a new id
#   no          the request itself has to change
RETRIES: Mapping[str, Retry] = {
    "malformed_request": "no",
    "ambiguous_sensor": "no",
    "invalid_control": "no",
    "invalid_preset": "no",
    "device_offline": "same id",
    "unauthorized": "no",
    "reply_topic_forbidden": "no",
    "forbidden": "no",
    "device_not_found": "no",
    "sensor_not_found": "no",
    "preset_not_found": "no",
    "operation_not_found": "no",
    "method_not_allowed": "no",
    "payload_too_large": "no",
    "unsupported_media_type": "no",
    "expired": "same id",
    "device_unreachable": "same id",
    "device_busy": "same id",
    "idempotency_conflict": "new id",
    "validation_error": "no",
    "busy": "automatic",
    "internal_error": "same id",
    "database_unavailable": "automatic",
    "mqtt_unavailable": "automatic",
    "draining": "automatic",
    "database_timeout": "same id",
    "timeout": "same id",
    "outcome_unknown": "look first",
    "unsupported_version": "no",
}


class CallError(Exception):
    """The root: no data came. `request_id` is the id under which it was asked for, if it was."""

    def __init__(self, words: str, request_id: str | None = None) -> None:
        super().__init__(words)
        self.request_id = request_id


class NotConnected(CallError):
    """There is no connection to the broker; nothing was executed."""


class Unheard(CallError):
    """No bridge is subscribed, or the broker did not take the request; nothing was executed."""


class NoReply(CallError):
    """No reply came in time. A command may have been executed; under the same id it is not again,
    as long as the bridge remembers it (`DEDUP_TTL`, `DEDUP_STORE`)."""


class Refused(CallError):
    """The bridge answered with an error: `body` is its answer, `retry` what `RETRIES` says."""

    def __init__(self, body: JsonObject, request_id: str | None = None) -> None:
        self.body = body
        self.code: int = body["code"]
        self.error = str(body.get("error") or "internal_error")
        self.detail: str = body.get("detail") or ""
        self.errors: list[JsonObject] = body.get("errors") or []
        self.retry: Retry = RETRIES.get(self.error, "no")
        super().__init__(f"{self.code} {self.error}: {self.detail}", request_id)
