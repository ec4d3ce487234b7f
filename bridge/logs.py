"""Logging: text for people, JSON lines for machines; nothing that a caller sent breaks a line."""

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

# What every LogRecord has; anything else on one came by `extra=` and is a field of the event.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# JSON leaves these as they are, though terminals obey them, or UTF-8 can't hold them.
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def set_up(level: str, style: Literal["text", "json"]) -> None:
    """Send all logging to stderr, in one of the two forms."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if style == "json" else _TextLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # They speak of every connection, packet or failed parse; what matters of it we say ourselves.
    for chatty in ("asyncio", "aiohttp", "mqtt", "asyncmy", "mcp"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def printable(text: str, limit: int = 200) -> str:
    """`text` with everything escaped that could forge or garble a line of a log."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in cut)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(record).items()
        if name not in _STANDARD and value is not None
    }


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
        fields = "".join(
            f" {name}={printable(str(value))}" for name, value in _fields(record).items()
        )
        line = f"{when} {record.levelname:<7} {printable(record.getMessage(), 2000)}{fields}"
        if record.exc_info:
            # Indented, and escaped line by line: an error's own words may hold what a caller sent.
            for traced in self.formatException(record.exc_info).split("\n"):
                line += f"\n    {printable(traced, 2000)}"
        return line


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _encodable(record.getMessage()),
            **{name: _encodable(value) for name, value in _fields(record).items()},
        }
        if record.exc_info:
            event["exception"] = _encodable(self.formatException(record.exc_info))
        return orjson.dumps(event, default=str).decode()


def _encodable(value: object) -> object:
    """A text without what is unsafe in JSON; anything else as it is."""
    if not isinstance(value, str):
        return value
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", value)
