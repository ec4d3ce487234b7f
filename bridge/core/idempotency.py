"""At most once: a command with an id is executed once; its duplicates get the same answer.

The outcome is kept once the command was handed to the broker; a refusal before that is not, so
that a retry is a new try.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from ..devices.models import Fields
from ..errors import Busy, Draining, IdempotencyConflict, OutcomeUnknown
from .context import Call
from .replies import Reply, reply_to_error

Execute = Callable[[], Awaitable[Reply]]

_MOST_ENTRIES = 100_000
_MOST_BYTES = 64 * 1024 * 1024
# What an entry takes beside its reply, by measurement: 350 to 400.
_ENTRY_BYTES = 400
# How many entries are looked at, to make room for one.
_LOOK_AT_MOST = 64


class Once(Protocol):
    """Where outcomes are kept."""

    async def answer(self, key: bytes, fingerprint: bytes, call: Call, execute: Execute) -> Reply:
        """Execute, unless the key is known: then its answer, waiting for it if need be.

        Raises:
            IdempotencyConflict: the key is known with another fingerprint.
            OutcomeUnknown: our own time is over, and the first attempt has not ended.
            Draining: the first attempt was given up by the end of a drain, and sent nothing.
            Busy: no more keys can be kept.
        """

    async def recall(self, key: bytes, fingerprint: bytes, call: Call) -> Reply | None:
        """The answer if the key is known, waiting for it if need be; None if it is not.

        Raises:
            IdempotencyConflict, OutcomeUnknown, Draining: see `answer`.
        """

    def may_know(self, key: bytes) -> bool:
        """Whether `recall` might know the key; told at once."""


def key_of(requester: str, request_id: str | bytes) -> bytes:
    """The key of who asked and the id, of 16 bytes."""
    digest = hashlib.blake2b(requester.encode("utf-8", "surrogateescape"), digest_size=16)
    digest.update(b"\x00")
    digest.update(request_id if isinstance(request_id, bytes) else request_id.encode())
    return digest.digest()


def fingerprint_of(operation: str, fields: Fields) -> bytes:
    """What makes a request the same: the operation and its validated fields, in 16 bytes."""
    digest = hashlib.blake2b(f"{operation}\n".encode(), digest_size=16)
    asked = dict(fields)
    try:
        digest.update(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS))
    except TypeError:
        # Giant numbers, stray surrogates, and depths are more than orjson writes.
        for token in _spelt_out(asked):
            digest.update(token)
    return digest.digest()


def _spelt_out(value: Any) -> Iterator[bytes]:
    """Any JSON value piece by piece, each with its kind; whatever is in it, this does not fail."""
    # No recursion: how deep it goes is for the requester to choose.
    pieces = [value]
    while pieces:
        piece = pieces.pop()
        if isinstance(piece, dict):
            yield b"{%d" % len(piece)
            for key in sorted(piece, key=str):
                pieces += (piece[key], str(key))
        elif isinstance(piece, list | tuple):
            yield b"[%d" % len(piece)
            pieces += piece
        else:
            text = hex(piece) if type(piece) is int else repr(piece)
            yield b"%d %s" % (len(text), text.encode("utf-8", "surrogatepass"))


def outcome_unknown(call: Call) -> Reply:
    """The reply to whoever asks for an outcome that nobody can know."""
    return reply_to_error(OutcomeUnknown(), call.services.settings.language)


def written_down(reply: Reply, call: Call) -> bytes:
    """A reply as it is kept; never fails.

    One that no JSON can hold is kept as an unknown outcome: its command has left all the same.
    """
    try:
        return reply.dump()
    except (TypeError, RecursionError):
        return outcome_unknown(call).dump()


@dataclass(slots=True)
class _Running:
    fingerprint: bytes
    outcome: asyncio.Future[Reply]
    kept_elsewhere: bool = False


@dataclass(slots=True)
class _Kept:
    fingerprint: bytes
    reply: bytes
    until: float


class MemoryOnce:
    """Kept in this process, until it ends; bounded in entries and bytes."""

    def __init__(
        self, ttl: float, most_entries: int = _MOST_ENTRIES, most_bytes: int = _MOST_BYTES
    ) -> None:
        self._ttl = ttl
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._running: dict[bytes, _Running] = {}
        # In the order in which they ended, so that the oldest come first.
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        # Those of them that may go before their time.
        self._kept_elsewhere: OrderedDict[bytes, None] = OrderedDict()
        self._reply_bytes = 0

    async def answer(self, key: bytes, fingerprint: bytes, call: Call, execute: Execute) -> Reply:
        """See `Once.answer`."""
        known = await self.recall(key, fingerprint, call)
        if known is not None:
            return known
        self._make_room()
        if self._is_full():
            raise Busy()
        return await self._first(key, fingerprint, call, execute)

    async def recall(self, key: bytes, fingerprint: bytes, call: Call) -> Reply | None:
        """See `Once.recall`."""
        if not self.may_know(key):
            return None
        entry = self._running.get(key) or self._kept[key]
        if entry.fingerprint != fingerprint:
            raise IdempotencyConflict()
        call.repeated = True
        if call.turn is not None:
            # It sends nothing itself, so that nobody need wait for it.
            call.turn.give_up()
        if isinstance(entry, _Kept):
            return Reply.load(entry.reply)
        return await self._outcome(entry, call)

    def may_know(self, key: bytes) -> bool:
        """See `Once.may_know`; what has expired is forgotten."""
        if key in self._running:
            return True
        kept = self._kept.get(key)
        if kept is None:
            return False
        if kept.until <= asyncio.get_running_loop().time():
            self._forget(key)
            return False
        return True

    def note_kept_elsewhere(self, key: bytes) -> None:
        """What runs under this key will be known elsewhere too: here it may go if room is short."""
        self._running[key].kept_elsewhere = True

    async def _first(self, key: bytes, fingerprint: bytes, call: Call, execute: Execute) -> Reply:
        running = _Running(fingerprint, asyncio.get_running_loop().create_future())
        self._running[key] = running
        try:
            reply = await execute()
        except BaseException as error:
            self._broken_off(key, call, error)
            raise
        self._ended(key, reply, call)
        return reply

    def _ended(self, key: bytes, reply: Reply, call: Call) -> None:
        running = self._running.pop(key)
        if call.sent:
            until = asyncio.get_running_loop().time() + max(self._ttl, call.seconds_left())
            dumped = written_down(reply, call)
            self._kept[key] = _Kept(running.fingerprint, dumped, until)
            if running.kept_elsewhere:
                self._kept_elsewhere[key] = None
            self._reply_bytes += len(dumped)
        running.outcome.set_result(reply)

    def _broken_off(self, key: bytes, call: Call, error: BaseException) -> None:
        """It ended without an answer: by a fault, or cancelled by the end of a drain."""
        if call.sent:
            self._ended(key, outcome_unknown(call), call)
            return
        outcome = self._running.pop(key).outcome
        # A cancellation is not for those who wait: nobody has cancelled them.
        outcome.set_exception(error if isinstance(error, Exception) else Draining())
        # Without anyone who waits it has still been raised to the first.
        outcome.exception()

    async def _outcome(self, running: _Running, call: Call) -> Reply:
        # If its own time ends first it must not be told `timeout`, which says that nothing was
        # sent. Whether the first has sent anything is known to its own call alone, and it may yet
        # do so: to be told `outcome_unknown` is safe, and the same id can be asked again.
        call.sent = True
        with call.in_time():
            return await asyncio.shield(running.outcome)

    def _is_full(self) -> bool:
        entries = len(self._running) + len(self._kept)
        size = self._reply_bytes + entries * _ENTRY_BYTES
        return entries >= self._most_entries or size >= self._most_bytes

    def _make_room(self) -> None:
        """Forget what has expired; where room is short, also what is kept elsewhere."""
        now = asyncio.get_running_loop().time()
        for _ in range(_LOOK_AT_MOST):
            oldest = next(iter(self._kept), None)
            if oldest is None:
                return
            if self._kept[oldest].until <= now:
                self._forget(oldest)
            elif not self._is_full():
                return
            elif self._kept_elsewhere:
                self._forget(next(iter(self._kept_elsewhere)))
            else:
                # It has to stay; behind one that is kept for long others may have expired.
                self._kept.move_to_end(oldest)

    def _forget(self, key: bytes) -> None:
        self._reply_bytes -= len(self._kept.pop(key).reply)
        self._kept_elsewhere.pop(key, None)
