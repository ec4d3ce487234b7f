"""The log of requests, at DEBUG, and of commands: who commanded what, and what came of it."""

import logging

import orjson

from .logs import printable
from .observations import CommandExecuted, RequestAnswered

logger = logging.getLogger(__name__)
audit = logging.getLogger("bridge.commands")


def request_answered(request: RequestAnswered) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug(
            "request",
            extra={
                "id": request.request_id,
                "operation": request.operation,
                "transport": request.transport,
                "code": request.code,
                "error": None if request.outcome == "ok" else request.outcome,
                "ms": round(request.seconds * 1000, 2),
                "traceparent": request.traceparent,
            },
        )


def command_executed(command: CommandExecuted) -> None:
    """Log a command at INFO, unless it was a duplicate."""
    if command.duplicate or not audit.isEnabledFor(logging.INFO):
        return
    asked = {
        name: value
        for name, value in command.fields.items()
        if value is not None and name != "device_uuid"
    }
    audit.info(
        "command",
        extra={
            "who": printable(command.who),
            "device": printable(command.device_uuid),
            "operation": command.operation,
            "asked": printable(orjson.dumps(asked).decode()),
            "code": command.code,
            "outcome": command.outcome,
            "id": command.request_id,
            "traceparent": command.traceparent,
        },
    )
