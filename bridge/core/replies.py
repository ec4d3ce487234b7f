"""Replies: the one place where data, or whatever was raised, becomes a reply body."""

import logging
import secrets
from dataclasses import dataclass
from typing import Any

import orjson

from ..devices.models import JsonObject
from ..errors import BridgeError, Language, ValidationFailed

logger = logging.getLogger(__name__)

SUCCESS = "成功"
FAILURE = "失败"


@dataclass(slots=True)
class Reply:
    """An answer on either transport; `code` is the HTTP status and the MQTT `__stat`."""

    code: int
    data: Any = None
    detail: str | None = None
    error: str | None = None
    errors: list[JsonObject] | None = None
    incident: str | None = None
    in_operation: bool = False
    property_name: str | None = None
    property_value: str | None = None

    def body(self, request_id: str | None = None) -> JsonObject:
        """The body as the wire contract has it; `request_id` is there if it was sent."""
        body: JsonObject
        if self.error is None:
            body = {"code": self.code, "msg": SUCCESS, "data": self.data}
        else:
            body = {
                "code": self.code,
                "msg": FAILURE,
                "data": None,
                "detail": self.detail,
                "error": self.error,
            }
            if self.errors is not None:
                body["errors"] = self.errors
            if self.incident is not None:
                body["incident"] = self.incident
        if request_id is not None:
            body["request_id"] = request_id
        return body

    def encode(self, request_id: str | None = None) -> bytes:
        return orjson.dumps(self.body(request_id))

    def dump(self) -> bytes:
        """All of the reply, to be stored; see `load`."""
        return orjson.dumps(self)

    @classmethod
    def load(cls, dumped: bytes) -> "Reply":
        return cls(**orjson.loads(dumped))


def reply_to_error(error: Exception, language: Language) -> Reply:
    """The reply for whatever was raised; the unexpected is logged under an incident id."""
    incident = None
    if not isinstance(error, BridgeError):
        incident = secrets.token_hex(6)
        logger.error("internal error", exc_info=error, extra={"incident": incident})
        error = BridgeError(incident=incident)
    return Reply(
        code=error.code,
        detail=error.detail(language),
        error=error.error,
        errors=_faults(error, language) if isinstance(error, ValidationFailed) else None,
        incident=incident,
        in_operation=error.in_operation or incident is not None,
        property_name=error.property_name,
        property_value=error.property_value,
    )


def _faults(error: ValidationFailed, language: Language) -> list[JsonObject]:
    return [
        {"loc": list(fault.loc), "msg": fault.msg.in_(language), "type": fault.type}
        for fault in error.errors
    ]
