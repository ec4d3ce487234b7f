"""At most once across crashes, workers and bridges: the outcomes in one small table of ours.

The intent is written before anything is published, so that after a crash the id is known to be
used: the outcome of its command is then `outcome_unknown`.

A row's life: INSERT (intended) -> REPLACE (answered) -> removed when it has expired; or INSERT ->
DELETE, when nothing was sent. Each statement may be repeated without harm, and may be executed
late: a stopped server executes one that we gave up when it goes on. Its effect is therefore bound
to the attempt that it was for. Times are on the database server's clock.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice

from ..core.context import DRAIN_MARGIN, Drain
from ..core.deadlines import Deadlines
from ..core.idempotency import Attempt, CommandId, MemoryIdempotency, Outcome, encode_kept
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
from ..settings import Settings
from .batch_loader import BatchLoader
from .idempotency_table import ANSWERED, GONE, INTEND, LOOK, NOT_SENT, SWEEP, OutcomeRow
from .pool import Database

logger = logging.getLogger(__name__)

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
# For tidying up when we are cancelled, which is when we have to end.
_MOMENT = 0.1


class _Claim:
    """An attempt of this process, by a number that no other has; executed by way of the table."""

    def __init__(
        self, store: "MysqlIdempotency", number: bytes, command: CommandId, attempt: Attempt
    ) -> None:
        self._store = store
        self.number = number
        self.command = command
        self.attempt = attempt
        # Whether another process executes it.
        self.waited = False
        # Whether another attempt had executed it.
        self.is_duplicate = False

    @property
    def deadline(self) -> float:
        return self.attempt.deadline

    @property
    def has_left(self) -> bool:
        return self.attempt.has_left

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.attempt.deadline - time.monotonic())

    async def run(self) -> Reply:
        return await self._store.run(self)

    def step_aside(self) -> None:
        self.attempt.step_aside()


class MysqlIdempotency:
    """Kept in the database; what this process executes is kept in its memory besides."""

    def __init__(
        self, database: Database, settings: Settings, deadlines: Deadlines, drain: Drain
    ) -> None:
        self._database = database
        self._deadlines = deadlines
        self._drain = drain
        self._language = settings.language
        self._instance = settings.instance
        self._ttl = settings.dedup_ttl
        self._timeout = settings.db_timeout
        self._process = secrets.token_bytes(_PROCESS_BYTES)
        self._begun = count()
        self._ours = MemoryIdempotency(self._ttl, deadlines, settings.language)
        # Attempts that sent nothing, and whose row may be there or come late: number and id. That
        # a row of ours means nothing is known from here alone; any other may have been sent.
        self._unsent: dict[bytes, bytes] = {}
        # Looked up in batches, so that a flood of rejected commands costs few statements.
        self._rows = BatchLoader(self._load, self._timeout, database.deadlines)

    async def execute(self, command: CommandId, attempt: Attempt) -> Outcome:
        """See `Idempotency.execute`.

        Raises:
            DatabaseUnavailable: the table can't be reached; nothing was executed.
            RequestTimeout: the attempt's own time ended before that; nothing was executed.
            OutcomeUnknown: whoever executed it has crashed, or has not answered in our time.
            Draining: it is being executed elsewhere, and we can't wait for it.
        """
        number = next(self._begun) % (1 << 8 * _COUNT_BYTES)
        claim = _Claim(self, self._process + number.to_bytes(_COUNT_BYTES), command, attempt)
        outcome = await self._ours.execute(command, claim)
        return Outcome(outcome.reply, outcome.duplicate or claim.is_duplicate)

    async def recall(self, command: CommandId, attempt: Attempt) -> Reply | None:
        """See `Idempotency.recall`; raises as `execute` does."""
        return await self._known(_Claim(self, b"", command, attempt), claimed=False)

    async def close(self) -> None:
        """Cancel the look-ups that run."""
        await self._rows.close()

    async def sweep(self) -> None:
        """Call `sweep_once` at intervals until cancelled; its errors are logged."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await self.sweep_once()
            except BridgeError as error:
                logger.debug("rows without a meaning were not removed: %s", error)

    async def sweep_once(self) -> None:
        """Remove expired rows, and those of our attempts that sent nothing.

        Raises as `Database.execute` does.
        """
        while unsent := dict(islice(self._unsent.items(), _SWEEP_MOST)):
            numbers, keys = tuple(unsent), tuple(unsent.values())
            await self._database.execute(NOT_SENT, (keys, numbers), deadline=self._soon())
            for number in numbers:
                self._unsent.pop(number, None)
        removed = _SWEEP_MOST
        while removed == _SWEEP_MOST:
            removed = await self._database.execute(SWEEP, (_SWEEP_MOST,), deadline=self._soon())

    async def run(self, own: _Claim) -> Reply:
        """The reply to an attempt that our memory let in."""
        while not await self._intend(own):
            known = await self._known(own, claimed=True)
            if known is not None:
                own.is_duplicate = True
                return known
        return await self._execute(own)

    async def _execute(self, own: _Claim) -> Reply:
        try:
            reply = await own.attempt.run()
        except BaseException:
            # Cancelled by the end of a drain. A command that was sent stays `intended`: unknown.
            if not own.has_left:
                await self._forget(own, _MOMENT)
            raise
        if own.has_left:
            await self._remember(own, reply)
        else:
            await self._forget(own, self._timeout)
        return reply

    async def _intend(self, own: _Claim) -> bool:
        """Write that we are going to execute it; false if the id is taken."""
        left = own.seconds_left
        # With some time on top for writing the reply.
        times = (left + self._timeout, left + self._ttl)
        values = (*self._owner(own), *times, own.number)
        with self._unsent_if_it_fails(own), self._in_time(own):
            return await self._database.execute(INTEND, values, deadline=self._soon()) > 0

    async def _known(self, own: _Claim, *, claimed: bool) -> Reply | None:
        """The reply that there is, or will be; None when the id is free to use.

        `claimed`: our memory holds the id for this very attempt.
        """
        while True:
            if not claimed:
                # Again each time: another request of this process may have begun it meanwhile.
                known = await self._ours.recall(own.command, own.attempt)
                if known is not None:
                    return known
            row = await self._row(own)
            if row is None:
                return None
            if row.reply is not None:
                return Reply.load(row.reply)
            await self._wait(row, own)

    async def _row(self, own: _Claim) -> OutcomeRow | None:
        """What is written under an id; None when the id is free to use."""
        with self._in_time(own):
            row = await self._rows.get(own.command.key)
            if row is not None and await self._is_removed(own.command.key, row):
                row = None
        if row is not None and row.fingerprint != own.command.fingerprint:
            raise IdempotencyConflict()
        own.waited = row is not None
        return row

    async def _is_removed(self, key: bytes, row: OutcomeRow) -> bool:
        """Whether a row meant nothing any more, and is gone."""
        if row.expires_in < 0:
            await self._database.execute(GONE, (key,), deadline=self._soon())
        elif self._unsent.get(row.attempt) == key:
            values = ((key,), (row.attempt,))
            await self._database.execute(NOT_SENT, values, deadline=self._soon())
        else:
            return False
        return True

    async def _wait(self, row: OutcomeRow, own: _Claim) -> None:
        """Wait a little for whoever executes it; raises OutcomeUnknown or Draining."""
        by_our_predecessor = row.instance == self._instance and not row.attempt.startswith(
            self._process
        )
        if by_our_predecessor or row.works_for < 0 or own.seconds_left <= _LOOK_SECONDS:
            raise OutcomeUnknown()
        next_look = asyncio.get_running_loop().time() + _LOOK_SECONDS
        if self._drain.begun.is_set() and next_look > self._drain.until - DRAIN_MARGIN:
            raise Draining()
        # It will most likely send nothing itself, and need not hold a place in a queue.
        own.step_aside()
        await asyncio.sleep(_LOOK_SECONDS)

    async def _load(self, keys: Sequence[bytes], deadline: float) -> dict[bytes, OutcomeRow]:
        rows = await self._database.fetch(LOOK, (keys,), deadline=deadline)
        return {key: OutcomeRow(*columns) for key, *columns in rows}

    async def _remember(self, own: _Claim, reply: Reply) -> None:
        """Write the reply; never fails, as the command has left."""
        kept_for = max(self._ttl, own.seconds_left)
        values = (*self._owner(own), kept_for, encode_kept(reply, self._language))
        try:
            await self._database.execute(ANSWERED, values, deadline=self._soon())
        except Exception as error:
            # Other processes answer `outcome_unknown` to a duplicate; this one remembers the reply.
            logger.warning("the outcome of a command could not be kept in the database: %r", error)
        else:
            self._ours.note_kept_elsewhere(own.command.key)

    async def _forget(self, own: _Claim, within: float) -> None:
        """Remove the intent, which came to nothing; if it can't be, a retry here knows of it."""
        deadline = asyncio.get_running_loop().time() + within
        values = ((own.command.key,), (own.number,))
        try:
            with self._unsent_if_it_fails(own):
                await self._database.execute(NOT_SENT, values, deadline=deadline)
        except BridgeError as error:
            logger.debug("an intent that came to nothing was not removed: %s", error)

    @contextmanager
    def _unsent_if_it_fails(self, own: _Claim) -> Iterator[None]:
        """Remember an attempt as one that sent nothing, should the body be left by an exception."""
        try:
            yield
        except BaseException:
            if len(self._unsent) >= _MOST_UNSENT:
                del self._unsent[next(iter(self._unsent))]
            self._unsent[own.number] = own.command.key
            raise

    @contextmanager
    def _in_time(self, own: _Claim) -> Iterator[None]:
        """Bound the body by the attempt's deadline: RequestTimeout, or OutcomeUnknown."""
        try:
            if own.seconds_left <= 0:
                raise TimeoutError
            with self._deadlines.until(own.deadline):
                yield
        except TimeoutError:
            raise (OutcomeUnknown() if own.waited else RequestTimeout()) from None
        except DatabaseTimeout:
            raise DatabaseUnavailable() from None

    def _owner(self, own: _Claim) -> tuple[bytes, bytes, bytes, str]:
        return own.command.key, own.command.fingerprint, own.number, self._instance

    def _soon(self) -> float:
        return asyncio.get_running_loop().time() + self._timeout
