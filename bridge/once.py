"""At most once: a command with an id is executed once; its duplicates get the same answer.

The outcome is kept once the command was handed to the broker; a refusal before that is not, so
that a retry is a new try.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from .calls import Call
from .errors import Busy, IdempotencyConflict
from .metrics import Metrics
from .models import Fields
from .replies import Reply

Execute = Callable[[], Awaitable[Reply]]

_MOST_ENTRIES = 100_000
_MOST_BYTES = 64 * 1024 * 1024


class Once(Protocol):
    """Where outcomes are kept."""

    async def answer(self, key: bytes, fingerprint: bytes, call: Call, execute: Execute) -> Reply:
        """Execute, unless the key is known: then its answer, waiting for it if need be.

        Raises:
            IdempotencyConflict: the key is known with another fingerprint.
            Busy: no more keys can be kept.
        """


def key_of(requester: str, request_id: str | bytes) -> bytes:
    """The key of who asked and the id, of 16 bytes."""
    digest = hashlib.blake2b(requester.encode("utf-8", "surrogateescape"), digest_size=16)
    digest.update(b"\x00")
    digest.update(request_id if isinstance(request_id, bytes) else request_id.encode())
    return digest.digest()


def fingerprint_of(operation: str, fields: Fields) -> bytes:
    """What makes a request the same: the operation and its validated fields, in 16 bytes."""
    text = f"{operation}\n{fields.model_dump_json()}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass(slots=True)
class _Entry:
    fingerprint: bytes
    running: asyncio.Future[Reply] | None
    kept: bytes = b""
    until: float = 0.0


class MemoryOnce:
    """Kept in this process, until it ends; bounded in entries and bytes."""

    def __init__(
        self,
        ttl: float,
        metrics: Metrics,
        most_entries: int = _MOST_ENTRIES,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        self._ttl = ttl
        self._metrics = metrics
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0

    async def answer(self, key: bytes, fingerprint: bytes, call: Call, execute: Execute) -> Reply:
        """See `Once.answer`."""
        now = asyncio.get_running_loop().time()
        self._forget_before(now)
        entry = self._entries.get(key)
        if entry is not None and (entry.running is not None or entry.until > now):
            if entry.fingerprint != fingerprint:
                raise IdempotencyConflict()
            self._metrics.duplicates.inc()
            return await self._again(entry, call)
        if len(self._entries) >= self._most_entries or self._bytes >= self._most_bytes:
            raise Busy()
        return await self._first(key, fingerprint, call, execute)

    async def _first(self, key: bytes, fingerprint: bytes, call: Call, execute: Execute) -> Reply:
        loop = asyncio.get_running_loop()
        running: asyncio.Future[Reply] = loop.create_future()
        entry = self._entries[key] = _Entry(fingerprint, running)
        try:
            reply = await execute()
        except Exception as error:
            self._entries.pop(key, None)
            running.set_exception(error)
            # Whoever waits raises it too; without anyone it has still been raised here.
            running.exception()
            raise
        except BaseException:
            # Cancelled by the end of a drain: whoever waits is cancelled with it.
            self._entries.pop(key, None)
            running.cancel()
            raise
        entry.running = None
        if call.sent:
            entry.kept = reply.dump()
            entry.until = loop.time() + max(self._ttl, call.seconds_left())
            self._bytes += len(entry.kept)
            self._entries.move_to_end(key)
        else:
            self._entries.pop(key, None)
        running.set_result(reply)
        return reply

    async def _again(self, entry: _Entry, call: Call) -> Reply:
        call.repeated = True
        if call.turn is not None:
            # It sends nothing itself, so that nobody need wait for it.
            call.turn.pass_on()
        if entry.running is None:
            return Reply.load(entry.kept)
        call.sent = True
        with call.in_time():
            return await asyncio.shield(entry.running)

    def _forget_before(self, now: float) -> None:
        # Kept ones stand in the order in which they ended, so that the oldest come first; those
        # still running are passed over by moving them on.
        for _ in range(min(len(self._entries), 64)):
            key, entry = next(iter(self._entries.items()))
            if entry.running is not None:
                self._entries.move_to_end(key)
                continue
            if entry.until > now:
                return
            del self._entries[key]
            self._bytes -= len(entry.kept)
