"""At most once: a command with an id is executed once; its duplicates get the same answer.

The outcome is kept once the command was handed to the broker; a refusal before that is not, so
that a retry is a new try.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from ..devices.models import Fields
from ..errors import Busy, Draining, IdempotencyConflict, Language, OutcomeUnknown
from .deadlines import Deadlines
from .replies import Reply, reply_to_error

_MOST_ENTRIES = 100_000
_MOST_BYTES = 64 * 1024 * 1024
# What an entry takes beside its reply, by measurement: 350 to 400.
_ENTRY_BYTES = 400
# How many entries are looked at, to make room for one.
_LOOK_AT_MOST = 64
# One share takes at most one part in so many of what there is.
_SHARES = 4
# Client levels are anybody's to make up where the broker does not pin them. Past so many shares
# they get no part of their own any more once all is used up; API keys do.
_MOST_SHARES = 256


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a command; `duplicate` if an earlier attempt under its id was executed."""

    reply: Reply
    duplicate: bool


@dataclass(frozen=True, slots=True)
class CommandId:
    """What makes two requests the same command."""

    # Who asked and the id, in 16 bytes.
    key: bytes
    # The operation and its validated fields, in 16 bytes.
    fingerprint: bytes
    # Whose share of the memory its outcome takes; empty for requesters without a name.
    share: str = ""


class Attempt(Protocol):
    """What a store needs of the attempt at a command."""

    @property
    def deadline(self) -> float:
        """On the loop's clock."""

    @property
    def has_left(self) -> bool:
        """Whether a command was handed to the broker, so that the outcome must be kept."""

    async def run(self) -> Reply:
        """Execute it; called once at most."""

    def step_aside(self) -> None:
        """Wait for another attempt from now on; raises Busy if too many wait already."""


class Idempotency(Protocol):
    async def execute(self, command: CommandId, attempt: Attempt) -> Outcome:
        """Run the attempt, unless the key is known: then its outcome, waiting for it if need be.

        Raises:
            IdempotencyConflict: the key is known with another fingerprint.
            OutcomeUnknown: the attempt's time is over, and the first one has not ended.
            Draining: the first attempt was given up by the end of a drain, and sent nothing.
            Busy: no more keys can be kept, or too many wait already.
        """

    async def recall(self, command: CommandId, attempt: Attempt) -> Reply | None:
        """The reply if the key is known, waiting for it if need be; raises as `execute` does."""


def key_of(requester: str, request_id: str | bytes) -> bytes:
    """The key of who asked (the transport is part of that) and the id, of 16 bytes."""
    digest = hashlib.blake2b(requester.encode("utf-8", "surrogateescape"), digest_size=16)
    digest.update(b"\x00")
    digest.update(request_id if isinstance(request_id, bytes) else request_id.encode())
    return digest.digest()


def fingerprint_of(operation: str, fields: Fields) -> bytes:
    """What makes a request the same: the operation and its validated fields, in 16 bytes."""
    digest = hashlib.blake2b(f"{operation}\n".encode(), digest_size=16)
    asked = vars(fields)
    try:
        digest.update(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS))
    except TypeError:
        # orjson writes no giant numbers, stray surrogates or deep nesting.
        for token in _spelt_out(asked):
            digest.update(token)
    return digest.digest()


def _spelt_out(value: Any) -> Iterator[bytes]:
    """Any JSON value piece by piece, each with its kind; whatever is in it, this does not fail."""
    # Without recursion: the requester chooses the depth.
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


def encode_kept(reply: Reply, language: Language) -> bytes:
    """A reply as it is kept; never fails.

    One that no JSON can hold is kept as an unknown outcome: its command has left all the same.
    """
    try:
        dumped = reply.dump()
    except (TypeError, RecursionError):
        dumped = reply_to_error(OutcomeUnknown(), language).dump()
    # A copy: what orjson returns keeps a buffer of several kilobytes alive.
    return bytes(memoryview(dumped))


@dataclass(slots=True)
class _Running:
    command: CommandId
    outcome: asyncio.Future[Reply]
    kept_elsewhere: bool = False


@dataclass(slots=True)
class _Kept:
    command: CommandId
    reply: bytes
    until: float


@dataclass(slots=True)
class _Share:
    entries: int = 0
    size: int = 0


class MemoryIdempotency:
    """Kept in this process, until it ends; bounded in entries and bytes, in all and per share.

    A share that is used up rejects new ids of its own requesters. Where all are used up together,
    one that takes less than its part may still grow: one requester's flood costs only itself.
    """

    def __init__(
        self,
        ttl: float,
        deadlines: Deadlines,
        language: Language,
        most_entries: int = _MOST_ENTRIES,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        self._ttl = ttl
        self._deadlines = deadlines
        self._language = language
        self._loop = asyncio.get_running_loop()
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._running: dict[bytes, _Running] = {}
        # In the order in which they ended, so that the oldest come first.
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        # Those that may be evicted before they expire.
        self._kept_elsewhere: OrderedDict[bytes, None] = OrderedDict()
        self._shares: dict[str, _Share] = {}
        self._total = _Share()

    async def execute(self, command: CommandId, attempt: Attempt) -> Outcome:
        """See `Idempotency.execute`."""
        known = await self.recall(command, attempt)
        if known is not None:
            return Outcome(known, duplicate=True)
        self._make_room(command.share)
        if self._is_full(command.share):
            raise Busy()
        return Outcome(await self._first(command, attempt), duplicate=False)

    async def recall(self, command: CommandId, attempt: Attempt) -> Reply | None:
        """See `Idempotency.recall`; an entry that has expired is forgotten."""
        entry = self._entry(command.key)
        if entry is None:
            return None
        if entry.command.fingerprint != command.fingerprint:
            raise IdempotencyConflict()
        if isinstance(entry, _Kept):
            return Reply.load(entry.reply)
        # A duplicate sends nothing, so that it need not hold a place in a queue.
        attempt.step_aside()
        return await self._outcome(entry, attempt.deadline)

    def note_kept_elsewhere(self, key: bytes) -> None:
        """What runs under this key will be known elsewhere too: here it may go if room is short."""
        self._running[key].kept_elsewhere = True

    def _entry(self, key: bytes) -> _Running | _Kept | None:
        running = self._running.get(key)
        if running is not None:
            return running
        kept = self._kept.get(key)
        if kept is not None and kept.until <= self._loop.time():
            self._forget(key)
            return None
        return kept

    async def _first(self, command: CommandId, attempt: Attempt) -> Reply:
        running = _Running(command, self._loop.create_future())
        self._running[command.key] = running
        self._count(command.share, 1, 0)
        try:
            reply = await attempt.run()
        except BaseException as error:
            self._broken_off(command, attempt, error)
            raise
        self._ended(command, reply, attempt)
        return reply

    def _ended(self, command: CommandId, reply: Reply, attempt: Attempt) -> None:
        running = self._running.pop(command.key)
        if attempt.has_left:
            now = self._loop.time()
            dumped = encode_kept(reply, self._language)
            until = max(now + self._ttl, attempt.deadline)
            self._kept[command.key] = _Kept(command, dumped, until)
            if running.kept_elsewhere:
                self._kept_elsewhere[command.key] = None
            self._count(command.share, 0, len(dumped))
        else:
            self._count(command.share, -1, 0)
        running.outcome.set_result(reply)

    def _broken_off(self, command: CommandId, attempt: Attempt, error: BaseException) -> None:
        """It ended without a reply: by a fault, or cancelled by the end of a drain."""
        if attempt.has_left:
            self._ended(command, reply_to_error(OutcomeUnknown(), self._language), attempt)
            return
        outcome = self._running.pop(command.key).outcome
        self._count(command.share, -1, 0)
        # Those who wait were not cancelled themselves.
        outcome.set_exception(error if isinstance(error, Exception) else Draining())
        # Marked as retrieved: the first attempt has raised it.
        outcome.exception()

    async def _outcome(self, running: _Running, deadline: float) -> Reply:
        # Whether the first has sent anything is known to its own attempt alone, and it may yet do
        # so: to be told `outcome_unknown` is safe, and the same id can be asked again.
        try:
            with self._deadlines.until(deadline):
                return await asyncio.shield(running.outcome)
        except TimeoutError:
            raise OutcomeUnknown() from None

    def _count(self, share: str, entries: int, size: int) -> None:
        used = self._shares.setdefault(share, _Share())
        for count in (used, self._total):
            count.entries += entries
            count.size += size
        if not used.entries:
            del self._shares[share]

    def _is_full(self, share: str) -> bool:
        used = self._shares.get(share, _Share())
        if self._exceeds(used, _SHARES):
            return True
        if not self._exceeds(self._total, 1):
            return False
        if len(self._shares) > _MOST_SHARES and share.startswith("mqtt:"):
            return True
        return self._exceeds(used, min(len(self._shares), _MOST_SHARES) or 1)

    def _exceeds(self, used: _Share, part: int) -> bool:
        """Whether it takes a part of what there is."""
        size = used.size + used.entries * _ENTRY_BYTES
        return used.entries >= self._most_entries / part or size >= self._most_bytes / part

    def _make_room(self, share: str) -> None:
        """Forget what has expired; where room is short, also what is kept elsewhere."""
        now = self._loop.time()
        for _ in range(_LOOK_AT_MOST):
            oldest = next(iter(self._kept), None)
            if oldest is None:
                return
            if self._kept[oldest].until <= now:
                self._forget(oldest)
            elif not self._is_full(share):
                return
            elif self._kept_elsewhere:
                self._forget(next(iter(self._kept_elsewhere)))
            else:
                # It must stay; others behind it may have expired.
                self._kept.move_to_end(oldest)

    def _forget(self, key: bytes) -> None:
        kept = self._kept.pop(key)
        self._kept_elsewhere.pop(key, None)
        self._count(kept.command.share, -1, -len(kept.reply))
