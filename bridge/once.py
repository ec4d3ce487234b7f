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

    async def recall(self, key: bytes, fingerprint: bytes, call: Call) -> Reply | None:
        """The answer if the key is known, waiting for it if need be; None if it is not.

        Raises:
            IdempotencyConflict: the key is known with another fingerprint.
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
        self, ttl: float, most_entries: int = _MOST_ENTRIES, most_bytes: int = _MOST_BYTES
    ) -> None:
        self._ttl = ttl
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0

    async def answer(self, key: bytes, fingerprint: bytes, call: Call, execute: Execute) -> Reply:
        """See `Once.answer`."""
        self._forget_some()
        known = await self.recall(key, fingerprint, call)
        if known is not None:
            return known
        if len(self._entries) >= self._most_entries or self._bytes >= self._most_bytes:
            raise Busy()
        return await self._first(key, fingerprint, call, execute)

    async def recall(self, key: bytes, fingerprint: bytes, call: Call) -> Reply | None:
        """See `Once.recall`."""
        if not self.may_know(key):
            return None
        entry = self._entries[key]
        if entry.fingerprint != fingerprint:
            raise IdempotencyConflict()
        return await self._again(entry, call)

    def may_know(self, key: bytes) -> bool:
        """See `Once.may_know`; what has expired is forgotten."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        if entry.running is None and entry.until <= asyncio.get_running_loop().time():
            self._forget(key)
            return False
        return True

    async def _first(self, key: bytes, fingerprint: bytes, call: Call, execute: Execute) -> Reply:
        running: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
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
        if call.sent:
            self._keep(key, entry, reply, call)
        else:
            self._entries.pop(key, None)
        running.set_result(reply)
        return reply

    def _keep(self, key: bytes, entry: _Entry, reply: Reply, call: Call) -> None:
        entry.running = None
        entry.kept = reply.dump()
        entry.until = asyncio.get_running_loop().time() + max(self._ttl, call.seconds_left())
        self._bytes += len(entry.kept)
        self._entries.move_to_end(key)

    async def _again(self, entry: _Entry, call: Call) -> Reply:
        call.repeated = True
        if call.turn is not None:
            # It sends nothing itself, so that nobody need wait for it.
            call.turn.give_up()
        if entry.running is None:
            return Reply.load(entry.kept)
        call.sent = True
        with call.in_time():
            return await asyncio.shield(entry.running)

    def _forget_some(self) -> None:
        # Kept ones stand in the order in which they ended, so that the oldest come first; those
        # still running are passed over by moving them on.
        for _ in range(min(len(self._entries), 64)):
            key, entry = next(iter(self._entries.items()))
            if entry.running is not None:
                self._entries.move_to_end(key)
            elif self.may_know(key):
                return

    def _forget(self, key: bytes) -> None:
        self._bytes -= len(self._entries.pop(key).kept)
