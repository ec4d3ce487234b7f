"""Load shedding over HTTP: what is refused as busy is refused at sight.

A refusal by way of aiohttp costs half of what the request itself would, so that twice the load that
the bridge can bear would leave it no time for anything but refusing. Here it costs some 24 µs, what
the kernel takes for reading and writing included.

Only what can be told from a plain request is refused so; all else takes the long way, where it is
refused too.
"""

import re
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from .access import Keys
from .dispatch import Dispatcher
from .effort import Effort
from .envelope import Envelope, open_payload
from .framing import Plain
from .operations import OPERATIONS, Operation
from .replies import Reply
from .settings import Settings
from .sidecar import JSON_UTF8, Answer

# Headers that ask for something in the answer, or hold an id that may be known already; in lower
# case, as `Plain` has them.
_ASKS_FOR_MORE = re.compile(rb"\n(?:idempotency-key|origin|trace(?:parent|state)):")
_REQUEST_ID = b"request_id"
# Which requests are remembered (bytes), and how many.
_SHORT, _REMEMBERED = 1024, 2048
# A name in a query may be written so that `request_id` is not seen in it; so may one in JSON.
_ENCODED_NAME = re.compile(rb"[?&][^=& ]*%")
_ESCAPE = b"\\"


class _Asked(NamedTuple):
    row: Operation
    request_id: str | None


class Shedding:
    """Tells which requests are refused at sight, and by which answer."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        dispatcher: Dispatcher,
        headers: Sequence[tuple[str, str]],
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._dispatcher = dispatcher
        self._headers = headers
        self._target = _targets()
        limited = (row for row in OPERATIONS.values() if not row.always)
        # Where the operations are asked for that take one of the places there are.
        self.counted = tuple(row.path.partition("{")[0] for row in limited)
        self._most = settings.max_in_flight
        self._effort = Effort()
        # How many places are not to be had, beside those that requests in hand take.
        self._given_away = 0
        self._without_id: tuple[int, bytes] = (0, b"")
        # Whoever is refused asks the same again. Not where there are keys: they are in the bytes.
        self._read_again = lru_cache(maxsize=_REMEMBERED)(self._read)

    def may_answer(self, arriving: int) -> bool:
        """Whether requests are refused now; `arriving` others are on their way in."""
        if self._effort.rests and not self._dispatcher.is_full(arriving):
            return False
        self._given_away = arriving + int(self._effort.begin() * self._most)
        return self._dispatcher.is_full(self._given_away)

    def answer(self, data: bytes) -> bytes | None:
        """The refusal, if `data` is refused now."""
        read = self._read_again if len(data) <= _SHORT and not self._keys.required else self._read
        asked = read(data)
        if asked is None or not self._dispatcher.turns_away(
            asked.row, "http", asked.request_id, self._given_away
        ):
            return None
        reply = self._dispatcher.turned_away_unseen("http", asked.row)
        return self._written(reply, asked.request_id)

    def answered(self) -> None:
        """The last answer was written."""
        self._effort.end()

    def _read(self, data: bytes) -> _Asked | None:
        """What matters of a request here; None where it is not to be told at sight."""
        target = self._target.match(data)
        plain = None if target is None else Plain.of(data)
        if target is None or plain is None or _ASKS_FOR_MORE.search(plain.head):
            return None
        row = OPERATIONS[str(target.lastgroup).replace("_", "-")]
        envelope = self._envelope(row, plain)
        if envelope is None or envelope.refusal is not None:
            return None
        return _Asked(row, envelope.request_id)

    def _written(self, reply: Reply, request_id: str | None) -> bytes:
        if request_id is not None:
            return self._whole(reply, request_id)
        second = int(time.time())
        if self._without_id[0] != second:
            # It tells the time, in seconds.
            self._without_id = (second, self._whole(reply, None))
        return self._without_id[1]

    def _whole(self, reply: Reply, request_id: str | None) -> bytes:
        return Answer(reply.code, JSON_UTF8, reply.encode(request_id), self._headers).whole()

    def _envelope(self, row: Operation, plain: Plain) -> Envelope | None:
        """What of the request matters here; None where it is not to be told at sight."""
        if row.method == "GET":
            may_have_id = _REQUEST_ID in plain.head or _ENCODED_NAME.search(plain.head)
            return None if may_have_id or plain.body else Envelope()
        if _REQUEST_ID not in plain.body and _ESCAPE not in plain.body:
            return Envelope()
        if self._keys.required:
            # An id is its requester's own, and who that is the long way tells.
            return None
        return open_payload(plain.body, self._settings.max_payload)


def _targets() -> re.Pattern[bytes]:
    """The request lines of the operations that may be refused, each a group by its name."""
    lines = [
        rf"(?P<{row.name.replace('-', '_')}>{row.method} {_path(row.path)})"
        for row in OPERATIONS.values()
        if not row.always
    ]
    return re.compile(rf"(?:{'|'.join(lines)})(?:\?[^\0- \x7f]*)? HTTP/1\.1\r\n".encode())


def _path(path: str) -> str:
    return re.sub(r"\\\{\w+\\\}", r"[^/?\\0- \\x7f]+", re.escape(path))
