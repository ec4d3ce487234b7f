"""The log of requests, at DEBUG, and of commands: who commanded what, and what came of it."""

import logging

import orjson

from .logs import printable
from .observations import CommandExecuted, RequestAnswered

logger = logging.getLogger(__name__)
audit = logging.getLogger("bridge.commands")

# Names are of 100 characters at most.
_LONGEST_ASKED = 400


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
        name: _visible(value) if isinstance(value, str) else value
        # Nested ones last, so that they hide nothing if the line is cut.
        for name, value in sorted(command.fields.items(), key=lambda field: _is_nested(field[1]))
        if value is not None and name != "device_uuid"
    }
    audit.info(
        "command",
        extra={
            "who": printable(command.who),
            "device": printable(command.device_uuid),
            "operation": command.operation,
            "asked": printable(orjson.dumps(asked).decode(), _LONGEST_ASKED),
            "code": command.code,
            "outcome": command.outcome,
            "id": command.request_id,
            "traceparent": command.traceparent,
        },
    )


def _visible(name: str) -> str:
    """A name without what is ignored when names are compared, and could hide the rest of it."""
    return " ".join("".join(filter(str.isprintable, name)).split())


def _is_nested(value: object) -> bool:
    return isinstance(value, dict | list)
