"""At most once across crashes, workers and bridges: the outcomes in one small table of ours.

The intent is written before anything is published, so that after a crash the id is known to be
spent: what became of the command can't be known then, and is told as `outcome_unknown`.

A row's life: INSERT (intended) -> REPLACE (answered) -> removed when it has expired; or INSERT ->
DELETE, when nothing was sent. Each statement may be repeated without harm, and may come late: one
that we gave up can lie in a stopped server, and be done when it goes on. What it does is therefore
tied to the attempt that it was for. Times are the database server's own clock, so that bridges
whose clocks differ agree.
"""

import asyncio
import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

from ..core.context import Call
from ..core.idempotency import Execute, MemoryOnce, written_down
from ..core.replies import Reply
from ..errors import (
    BridgeError,
    DatabaseTimeout,
    DatabaseUnavailable,
    Draining,
    IdempotencyConflict,
    OutcomeUnknown,
    RequestTimeout,
)
from .batch_loader import BatchLoader
from .pool import Database

logger = logging.getLogger(__name__)

TABLE = "bridge_once"

# A table that was made before attempts were numbered needs nothing: `process` is as wide as it was,
# when all of it told one process from another.
CREATE_TABLE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    id BINARY(16) NOT NULL PRIMARY KEY COMMENT 'who asked, and the id of the request',
    fingerprint BINARY(16) NOT NULL COMMENT 'the operation and its fields',
    process BINARY(8) NOT NULL COMMENT 'the process that executes it, and which attempt it is',
    instance VARCHAR(255) NOT NULL COMMENT 'the MQTT_INSTANCE of that process',
    works_until DOUBLE NOT NULL COMMENT 'when that process has given up, in Unix seconds',
    expires_at DOUBLE NOT NULL COMMENT 'when the row may go, in Unix seconds',
    reply MEDIUMBLOB NULL COMMENT 'the answer; null until there is one',
    KEY expires_at (expires_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COMMENT='At-most-once commands of the MQTT bridge'
"""

# Not UNIX_TIMESTAMP(NOW()): where the server's zone has summer time, it jumps by an hour with it.
_NOW = "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) / 1e6)"
# Affects no row where the id is taken; two where it has been done before, by a first try whose
# connection was lost, so that the id is ours.
_INTEND = f"""
INSERT INTO {TABLE} (id, fingerprint, process, instance, works_until, expires_at)
VALUES (%s, %s, %s, %s, {_NOW} + %s, {_NOW} + %s)
    ON DUPLICATE KEY UPDATE works_until = IF(process = %s, works_until + 0.001, works_until)
"""  # noqa: S608  the names are our own constants
_LOOK = f"""
SELECT id, fingerprint, process, instance, works_until - {_NOW}, expires_at - {_NOW}, reply
  FROM {TABLE} WHERE id IN %s
"""  # noqa: S608
# Not an UPDATE: what has left is to be known, whatever became of the row meanwhile.
_ANSWERED = f"""
REPLACE INTO {TABLE} (id, fingerprint, process, instance, works_until, expires_at, reply)
VALUES (%s, %s, %s, %s, {_NOW}, {_NOW} + %s, %s)
"""  # noqa: S608
_NOT_SENT = f"DELETE FROM {TABLE} WHERE id IN %s AND process IN %s"  # noqa: S608
_GONE = f"DELETE FROM {TABLE} WHERE id = %s AND expires_at < {_NOW}"  # noqa: S608
_SWEEP = f"DELETE FROM {TABLE} WHERE expires_at < {_NOW} LIMIT %s"  # noqa: S608

_SWEEP_SECONDS = 30.0
_SWEEP_MOST = 1000
# An attempt's number: what tells a process from all others, and the count of what it has begun,
# which may begin anew, since it is never compared without the id.
_PROCESS_BYTES = 5
_COUNT_BYTES = 3
# How many attempts that sent nothing are remembered until their rows are known to be gone.
_MOST_UNSENT = 100_000
# Between two looks at a command that another process is executing.
_LOOK_SECONDS = 0.1
# What a drain keeps for the answers of those who wait for another process, in seconds.
_DRAIN_MARGIN = 1.0
# For tidying up when we are cancelled, which is when we have to end.
_MOMENT = 0.1


class _Row(NamedTuple):
    """What is written under an id; times in seconds from now."""

    fingerprint: bytes
    attempt: bytes
    instance: str
    works_for: float
    expires_in: float
    reply: bytes | None


@dataclass(slots=True)
class _Attempt:
    """One call's attempt at executing what it asks; `number` is like no other attempt's."""

    number: bytes
    key: bytes
    fingerprint: bytes
    call: Call


class MysqlOnce:
    """Kept in the database; what this process executes is kept in its memory besides."""

    def __init__(self, database: Database, instance: str, ttl: float, timeout: float) -> None:
        self._database = database
        self._instance = instance
        self._process = secrets.token_bytes(_PROCESS_BYTES)
        self._begun = count()
        self._ttl = ttl
        self._timeout = timeout
        self._ours = MemoryOnce(ttl)
        # Attempts that sent nothing, and whose row may be there or come late: number and id. That
        # a row of ours means nothing is known from here alone; any other may have been sent.
        self._unsent: dict[bytes, bytes] = {}
        # Looked up together: a flood of commands that are refused is to cost few statements.
        self._rows = BatchLoader(self._load, timeout, database.deadlines)

    async def answer(self, key: bytes, fingerprint: bytes, call: Call, execute: Execute) -> Reply:
        """See `Once.answer`.

        Raises:
            DatabaseUnavailable: the table can't be reached; nothing was executed.
            RequestTimeout: the call's own time ended before that; nothing was executed.
            OutcomeUnknown: whoever executed it has crashed, or has not answered in our time.
            Draining: it is being executed elsewhere, and we can't wait for it.
        """
        attempt = _Attempt(self._next_number(), key, fingerprint, call)

        async def execute_alone() -> Reply:
            while not await self._intend(attempt):
                known = await self._known(key, fingerprint, call, claimed=True)
                if known is not None:
                    return known
            return await self._execute(attempt, execute)

        return await self._ours.answer(key, fingerprint, call, execute_alone)

    async def recall(self, key: bytes, fingerprint: bytes, call: Call) -> Reply | None:
        """See `Once.recall`.

        Raises:
            DatabaseUnavailable, RequestTimeout, OutcomeUnknown, Draining: see `answer`.
        """
        return await self._known(key, fingerprint, call, claimed=False)

    def may_know(self, key: bytes) -> bool:
        """See `Once.may_know`: the table may, and is yet to be asked."""
        del key
        return True

    async def close(self) -> None:
        """End the look-ups that are under way."""
        await self._rows.close()

    async def sweep(self) -> None:
        """Remove rows that mean nothing any more, again and again, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await self.sweep_once()
            except BridgeError as error:
                logger.debug("rows without a meaning were not removed: %s", error)

    async def sweep_once(self) -> None:
        """Remove expired rows, and those of our attempts that sent nothing.

        Raises:
            DatabaseTimeout, DatabaseUnavailable: see `Database.execute`.
        """
        while unsent := dict(islice(self._unsent.items(), _SWEEP_MOST)):
            numbers, keys = tuple(unsent), tuple(unsent.values())
            await self._database.execute(_NOT_SENT, (keys, numbers), deadline=self._soon())
            for number in numbers:
                self._unsent.pop(number, None)
        removed = _SWEEP_MOST
        while removed == _SWEEP_MOST:
            removed = await self._database.execute(_SWEEP, (_SWEEP_MOST,), deadline=self._soon())

    async def _execute(self, attempt: _Attempt, execute: Execute) -> Reply:
        """Execute what is written as intended, and write what came of it."""
        call = attempt.call
        try:
            reply = await execute()
        except BaseException:
            # Cancelled by the end of a drain. What was sent stays intended, which is the truth.
            if not call.sent:
                await self._forget(attempt, _MOMENT)
            raise
        if call.sent:
            await self._remember(attempt, reply)
        else:
            await self._forget(attempt, self._timeout)
        return reply

    async def _intend(self, attempt: _Attempt) -> bool:
        """Write that we are going to execute it; false if the id is taken.

        Raises:
            DatabaseUnavailable, RequestTimeout: it is not known to be written.
        """
        left = attempt.call.seconds_left()
        # A little more than it has, for writing the answer here.
        times = (left + self._timeout, left + self._ttl)
        values = (*self._owner(attempt), *times, attempt.number)
        with self._unsent_if_it_fails(attempt), _in_time(attempt.call):
            return await self._database.execute(_INTEND, values, deadline=self._soon()) > 0

    async def _known(
        self, key: bytes, fingerprint: bytes, call: Call, *, claimed: bool
    ) -> Reply | None:
        """The answer that there is, or will be; None when the id is free to use.

        Args:
            claimed: whether our memory holds the id for this very call.

        Raises:
            IdempotencyConflict, and what `answer` raises.
        """
        while True:
            if not claimed:
                # Each time anew: another call of this process may have begun it meanwhile.
                known = await self._ours.recall(key, fingerprint, call)
                if known is not None:
                    return known
            row = await self._row(key, fingerprint, call)
            if row is None:
                return None
            if row.reply is not None:
                return Reply.load(row.reply)
            await self._wait(row, call)

    async def _row(self, key: bytes, fingerprint: bytes, call: Call) -> _Row | None:
        """What is written under an id; None when the id is free to use.

        Raises:
            IdempotencyConflict, DatabaseUnavailable, RequestTimeout, OutcomeUnknown: see `answer`.
        """
        with _in_time(call):
            row = await self._rows.get(key)
            if row is not None and await self._is_removed(key, row):
                row = None
        if row is not None and row.fingerprint != fingerprint:
            raise IdempotencyConflict()
        call.repeated = row is not None
        return row

    async def _is_removed(self, key: bytes, row: _Row) -> bool:
        """Whether a row meant nothing any more, and is gone."""
        if row.expires_in < 0:
            await self._database.execute(_GONE, (key,), deadline=self._soon())
        elif self._unsent.get(row.attempt) == key:
            values = ((key,), (row.attempt,))
            await self._database.execute(_NOT_SENT, values, deadline=self._soon())
        else:
            return False
        return True

    async def _wait(self, row: _Row, call: Call) -> None:
        """Wait a little for whoever executes it.

        Raises:
            OutcomeUnknown: nobody does any more, or not in our time.
            Draining: we can't wait any longer.
        """
        by_our_predecessor = row.instance == self._instance and not self._is_ours(row)
        if by_our_predecessor or row.works_for < 0 or call.seconds_left() <= _LOOK_SECONDS:
            raise OutcomeUnknown()
        next_look = asyncio.get_running_loop().time() + _LOOK_SECONDS
        drain = call.services.drain
        if drain.begun.is_set() and next_look > drain.until - _DRAIN_MARGIN:
            raise Draining()
        if call.turn is not None:
            # It will most likely send nothing itself, so that nobody need wait for it.
            call.turn.give_up()
        await asyncio.sleep(_LOOK_SECONDS)

    async def _load(self, keys: Sequence[bytes], deadline: float) -> dict[bytes, _Row]:
        rows = await self._database.fetch(_LOOK, (keys,), deadline=deadline)
        return {key: _Row(*columns) for key, *columns in rows}

    async def _remember(self, attempt: _Attempt, reply: Reply) -> None:
        """Write the answer; never fails, as the command has left."""
        call = attempt.call
        kept_for = max(self._ttl, call.seconds_left())
        values = (*self._owner(attempt), kept_for, written_down(reply, call))
        try:
            await self._database.execute(_ANSWERED, values, deadline=self._soon())
        except Exception as error:
            # Elsewhere a duplicate is told that the outcome is unknown; here our memory has it.
            logger.warning("the outcome of a command could not be kept in the database: %r", error)
        else:
            self._ours.note_kept_elsewhere(attempt.key)

    async def _forget(self, attempt: _Attempt, within: float) -> None:
        """Remove the intent, which came to nothing; if it can't be, a retry here knows of it."""
        deadline = asyncio.get_running_loop().time() + within
        values = ((attempt.key,), (attempt.number,))
        try:
            with self._unsent_if_it_fails(attempt):
                await self._database.execute(_NOT_SENT, values, deadline=deadline)
        except BridgeError as error:
            logger.debug("an intent that came to nothing was not removed: %s", error)

    @contextmanager
    def _unsent_if_it_fails(self, attempt: _Attempt) -> Iterator[None]:
        """Remember an attempt as one that sent nothing, should the body be left by an exception."""
        try:
            yield
        except BaseException:
            if len(self._unsent) >= _MOST_UNSENT:
                del self._unsent[next(iter(self._unsent))]
            self._unsent[attempt.number] = attempt.key
            raise

    def _owner(self, attempt: _Attempt) -> tuple[bytes, bytes, bytes, str]:
        return attempt.key, attempt.fingerprint, attempt.number, self._instance

    def _is_ours(self, row: _Row) -> bool:
        return row.attempt.startswith(self._process)

    def _next_number(self) -> bytes:
        number = next(self._begun) % (1 << 8 * _COUNT_BYTES)
        return self._process + number.to_bytes(_COUNT_BYTES)

    def _soon(self) -> float:
        return asyncio.get_running_loop().time() + self._timeout


@contextmanager
def _in_time(call: Call) -> Iterator[None]:
    """Ask the table in the body, within the call's own time too.

    Raises:
        RequestTimeout: that is over; nothing was sent.
        OutcomeUnknown: that is over, and another has been executing it.
        DatabaseUnavailable: the table can't be reached.
    """
    try:
        if call.seconds_left() <= 0:
            raise RequestTimeout()
        with call.in_time():
            yield
    except RequestTimeout:
        raise (OutcomeUnknown() if call.repeated else RequestTimeout()) from None
    except DatabaseTimeout:
        raise DatabaseUnavailable() from None
