"""Logging: text for people, JSON lines for machines; nothing that a caller sent breaks a line.

The lines are written by a thread: a reader that stops (a pipe to a program that hangs, a terminal
on hold) must not stop the bridge.
"""

import contextlib
import json
import logging
import os
import re
import select
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue
from threading import Event, Lock
from typing import Any, Literal

import orjson

# What every LogRecord has; anything else on one came by `extra=` and is a field of the event.
_OWN_ATTRIBUTES = len(vars(logging.makeLogRecord({})))
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# JSON leaves these as they are, though terminals obey them, or UTF-8 can't hold them.
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# In a value as it is they would begin another field, or a quoted value.
_UNCLEAR_IN_TEXT = re.compile('[ ="]')

# Some megabytes, and some seconds of the heaviest load.
_MOST_LINES = 10_000
# How long a full queue makes its writer wait, so that the thread which empties it gets a turn.
_TURN_SECONDS = 0.02
# How long lines are gathered: to wake the thread for each costs more than the line itself.
_GATHER_SECONDS = 0.005
# How long the end of the process waits for what is still to be written.
_FLUSH_SECONDS = 1.0
_MOST_FLUSHING = 100


def set_up(level: str, style: Literal["text", "json"]) -> None:
    """Send all logging to stderr, in one of the two forms."""
    handler: logging.Handler = logging.NullHandler()
    # A process may be started without a stderr, and its number is then anybody's.
    if sys.stderr is not None:
        handler = LineWriter(sys.stderr.fileno())
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    # No line of ours tells where in the code, or by which thread, it was written.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # They speak of every connection, packet or failed parse; what matters of it we say ourselves.
    for chatty in ("asyncio", "aiohttp", "mqtt", "asyncmy", "mcp"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))


class LineWriter(QueueHandler):
    """Writes lines to a descriptor in a thread, so that nobody who logs waits for the reader.

    At most `limit` lines wait for the reader. From then on lines are dropped, until the reader has
    had all that waited; then it is told how many. `flush` and the process's end wait a second.
    """

    queue: "Queue[bytes | Event]"

    def __init__(self, descriptor: int, limit: int = _MOST_LINES) -> None:
        # Room for those who wait in `flush` besides.
        super().__init__(Queue(limit + _MOST_FLUSHING))
        self._limit = limit
        self._dropped = 0
        self._counting = Lock()
        # Its thread is a daemon, for which the end of the process does not wait.
        _Writer(self.queue, descriptor, self._dropped_line).start()

    def prepare(self, record: logging.LogRecord) -> bytes:
        """The line, made here and now, since a record holds what may change."""
        try:
            line = self.format(record)
        except Exception as error:
            # logging would print the traceback to stderr itself, and wait for the reader.
            words = f"a line of {record.name} can't be written: {type(error).__name__}"
            line = self.format(_record(logging.ERROR, words))
        return f"{line}\n".encode(errors="backslashreplace")

    def enqueue(self, record: Any) -> None:
        """Have a line written; it is dropped and counted if too many wait."""
        with self._counting:
            if self._dropped or self._is_full():
                self._dropped += 1
                return
        self.queue.put_nowait(record)

    def flush(self) -> None:
        """Wait until all is written that was logged so far, but for no more than a second."""
        reached = Event()
        with contextlib.suppress(Full):
            self.queue.put(reached, timeout=_FLUSH_SECONDS)
            reached.wait(_FLUSH_SECONDS)

    def _is_full(self) -> bool:
        if self.queue.qsize() < self._limit:
            return False
        # A busy loop may have starved the thread (the interpreter's lock is not fair); a reader
        # that has stopped is another matter.
        time.sleep(_TURN_SECONDS)
        return self.queue.qsize() > self._limit // 2

    def _dropped_line(self) -> bytes:
        """How many lines were dropped since this was last asked; empty if none were."""
        if not self._dropped:
            return b""
        with self._counting:
            dropped, self._dropped = self._dropped, 0
        words = f"{dropped} lines of the log were dropped: nobody read them in time"
        return self.prepare(_record(logging.WARNING, words))


class _Writer(QueueListener):
    queue: "Queue[bytes | Event]"

    def __init__(
        self, lines: "Queue[bytes | Event]", descriptor: int, dropped_line: Callable[[], bytes]
    ) -> None:
        super().__init__(lines)
        self._descriptor = descriptor
        self._dropped_line = dropped_line

    def dequeue(self, block: bool) -> Any:
        """The next line, or what waits for all before it; seldom woken, however much is logged."""
        if self.queue.empty():
            time.sleep(_GATHER_SECONDS)
        return self.queue.get(block)

    def handle(self, record: Any) -> None:
        """Write all lines that wait, or tell whoever waits that all before it are written."""
        lines = []
        while isinstance(record, bytes):
            lines.append(record)
            record = None if self.queue.empty() else self.queue.get_nowait()
        self._write(b"".join(lines))
        if self.queue.empty():
            self._write(self._dropped_line())
        if isinstance(record, Event):
            record.set()

    def _write(self, line: bytes) -> None:
        # Past sys.stderr, whose lock, held by a thread that waits, would abort the process's end.
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:
                # Somebody who has the same terminal or pipe made it so.
                select.select((), (self._descriptor,), ())
            except OSError:
                # Nobody will ever read it.
                return


def _record(level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord(__name__, level, "", 0, message, None, None)


def printable(text: str, limit: int = 200) -> str:
    """`text` with everything escaped that could forge or garble a line of a log."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    if cut.isprintable():
        return cut
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in cut)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    # A record's own attributes come first.
    return {
        name: value
        for name, value in islice(vars(record).items(), _OWN_ATTRIBUTES, None)
        if value is not None and name not in _STANDARD
    }


class TextLines(logging.Formatter):
    """A line for people: time, level, message, and the event's fields as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        when = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
        fields = "".join(
            f" {name}={_unmistakable(value)}" for name, value in _fields(record).items()
        )
        line = f"{when} {record.levelname:<7} {printable(record.getMessage(), 2000)}{fields}"
        if record.exc_info:
            # Indented, and escaped line by line: an error's own words may hold what a caller sent.
            for traced in self.formatException(record.exc_info).split("\n"):
                line += f"\n    {printable(traced, 2000)}"
        return line


def _unmistakable(value: object) -> str:
    """A field's value: plain, or as a JSON string where it would read like more than a value."""
    if isinstance(value, int | float):
        return str(value)
    text = printable(str(value))
    if text and not _UNCLEAR_IN_TEXT.search(text):
        return text
    return json.dumps(text, ensure_ascii=False)


class JsonLines(logging.Formatter):
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
