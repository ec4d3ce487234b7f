"""At most once across crashes, workers and bridges: the outcomes in one small table of ours.

The intent is written before anything is published, so that after a crash the id is known to be
spent: what became of the command can't be known then, and is told as `outcome_unknown`.

A row's life: INSERT (intended) -> UPDATE (answered) -> removed when it has expired; or INSERT ->
DELETE, when nothing was sent. Each statement may be repeated without harm. Times are the database
server's own clock, so that bridges whose clocks differ agree.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from .calls import Call
from .database import Database
from .errors import BridgeError, DatabaseUnavailable, IdempotencyConflict, OutcomeUnknown
from .once import Execute, MemoryOnce
from .replies import Reply
from .store import Together

logger = logging.getLogger(__name__)

TABLE = "bridge_once"

CREATE_TABLE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    id BINARY(16) NOT NULL PRIMARY KEY COMMENT 'who asked, and the id of the request',
    fingerprint BINARY(16) NOT NULL COMMENT 'the operation and its fields',
    process BINARY(8) NOT NULL COMMENT 'the process that executes it',
    instance VARCHAR(255) NOT NULL COMMENT 'the MQTT_INSTANCE of that process',
    works_until DOUBLE NOT NULL COMMENT 'when that process has given up, in Unix seconds',
    expires_at DOUBLE NOT NULL COMMENT 'when the row may go, in Unix seconds',
    reply MEDIUMBLOB NULL COMMENT 'the answer; null until there is one',
    KEY expires_at (expires_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COMMENT='At-most-once commands of the MQTT bridge'
"""

_NOW = "UNIX_TIMESTAMP(NOW(3))"
_INTEND = f"""
INSERT INTO {TABLE} (id, fingerprint, process, instance, works_until, expires_at)
VALUES (%s, %s, %s, %s, {_NOW} + %s, {_NOW} + %s)
    ON DUPLICATE KEY UPDATE id = id
"""  # noqa: S608  the names are our own constants
_LOOK = f"""
SELECT id, fingerprint, process, instance, works_until - {_NOW}, expires_at - {_NOW}, reply
  FROM {TABLE} WHERE id IN %s
"""  # noqa: S608
_ANSWERED = f"UPDATE {TABLE} SET reply = %s, expires_at = {_NOW} + %s WHERE id = %s"  # noqa: S608
_NOT_SENT = f"DELETE FROM {TABLE} WHERE id = %s AND process = %s"  # noqa: S608
_GONE = f"DELETE FROM {TABLE} WHERE id = %s AND expires_at < {_NOW}"  # noqa: S608
_SWEEP = f"DELETE FROM {TABLE} WHERE expires_at < {_NOW} LIMIT 1000"  # noqa: S608

_SWEEP_SECONDS = 30.0
_SWEEP_MOST = 1000
# Between two looks at a command that another process is executing.
_LOOK_SECONDS = 0.1


class _Row(NamedTuple):
    """What is written under an id; times in seconds from now."""

    fingerprint: bytes
    process: bytes
    instance: str
    works_for: float
    expires_in: float
    reply: bytes | None


class MysqlOnce:
    """Kept in the database; what this process executes is kept in its memory besides."""

    def __init__(self, database: Database, instance: str, ttl: float, timeout: float) -> None:
        self._database = database
        self._instance = instance
        self._process = secrets.token_bytes(8)
        self._ttl = ttl
        self._timeout = timeout
        self._ours = MemoryOnce(ttl)
        # Looked up together: a flood of commands that are refused is to cost few statements.
        self._rows = Together(self._load, timeout, database.deadlines)

    async def answer(self, key: bytes, fingerprint: bytes, call: Call, execute: Execute) -> Reply:
        """See `Once.answer`.

        Raises:
            DatabaseUnavailable: the table can't be reached; nothing was executed.
            OutcomeUnknown: whoever executed it has crashed, or has not answered in our time.
        """

        async def execute_alone() -> Reply:
            return await self._execute_alone(key, fingerprint, call, execute)

        return await self._ours.answer(key, fingerprint, call, execute_alone)

    async def recall(self, key: bytes, fingerprint: bytes, call: Call) -> Reply | None:
        """See `Once.recall`.

        Raises:
            DatabaseUnavailable: the table can't be reached.
            OutcomeUnknown: whoever executed it has crashed, or has not answered in our time.
        """
        known = await self._ours.recall(key, fingerprint, call)
        return known or await self._look(key, fingerprint, call, claimed=False)

    def may_know(self, key: bytes) -> bool:
        """See `Once.may_know`: the table may, and is yet to be asked."""
        del key
        return True

    async def close(self) -> None:
        """End the look-ups that are under way."""
        await self._rows.close()

    async def sweep(self) -> None:
        """Remove expired rows, again and again, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                removed = _SWEEP_MOST
                while removed == _SWEEP_MOST:
                    removed = await self._database.execute(_SWEEP, deadline=self._soon())
            except BridgeError as error:
                logger.debug("expired ids were not removed: %s", error)

    async def _execute_alone(
        self, key: bytes, fingerprint: bytes, call: Call, execute: Execute
    ) -> Reply:
        while not await self._intend(key, fingerprint, call):
            known = await self._look(key, fingerprint, call, claimed=True)
            if known is not None:
                return known
        try:
            reply = await execute()
        except BaseException:
            # Cancelled by the end of a drain. What was sent stays intended, which is the truth.
            if not call.sent:
                await asyncio.shield(self._forget(key))
            raise
        if call.sent:
            await self._remember(key, reply, call)
        else:
            await self._forget(key)
        return reply

    async def _intend(self, key: bytes, fingerprint: bytes, call: Call) -> bool:
        """Write that we are going to execute it; false if the id is taken."""
        left = call.seconds_left()
        # A little more than it has, for writing the answer here.
        gives_up = left + self._timeout
        values = (key, fingerprint, self._process, self._instance, gives_up, left + self._ttl)
        try:
            return await self._database.execute(_INTEND, values, deadline=self._soon()) == 1
        except BridgeError:
            raise DatabaseUnavailable() from None

    async def _look(
        self, key: bytes, fingerprint: bytes, call: Call, *, claimed: bool
    ) -> Reply | None:
        """The answer that the table has, or will have; None when the id is free to use.

        Args:
            claimed: whether our memory holds the id for this very call.

        Raises:
            IdempotencyConflict, OutcomeUnknown, DatabaseUnavailable: see `answer`.
        """
        while True:
            try:
                row = await self._rows.get(key)
                if row is not None and row.expires_in < 0:
                    await self._database.execute(_GONE, (key,), deadline=self._soon())
                    return None
            except BridgeError:
                raise DatabaseUnavailable() from None
            if row is None:
                return None
            if row.fingerprint != fingerprint:
                raise IdempotencyConflict()
            if row.process == self._process and not claimed:
                # Another call of this process has begun it meanwhile.
                return await self._ours.recall(key, fingerprint, call)
            if row.process == self._process and row.reply is None:
                # Ours, and nobody's in our memory: an attempt whose INSERT was not confirmed in
                # time, and which therefore sent nothing.
                await self._forget(key)
                return None
            call.repeated = True
            if row.reply is not None:
                return Reply.load(row.reply)
            if row.instance == self._instance or row.works_for < 0:
                # An earlier process of our name, or one that is past its time: it has crashed.
                raise OutcomeUnknown()
            if call.seconds_left() <= _LOOK_SECONDS:
                raise OutcomeUnknown()
            if call.turn is not None:
                # It will most likely send nothing itself, so that nobody need wait for it.
                call.turn.give_up()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _load(self, keys: Sequence[bytes], deadline: float) -> dict[bytes, _Row]:
        rows = await self._database.fetch(_LOOK, (keys,), deadline=deadline)
        return {key: _Row(*columns) for key, *columns in rows}

    async def _remember(self, key: bytes, reply: Reply, call: Call) -> None:
        values = (reply.dump(), max(self._ttl, call.seconds_left()), key)
        try:
            await self._database.execute(_ANSWERED, values, deadline=self._soon())
        except BridgeError:
            # Elsewhere a duplicate is told that the outcome is unknown; here our memory has it.
            logger.warning("the outcome of a command could not be kept in the database")

    async def _forget(self, key: bytes) -> None:
        try:
            await self._database.execute(_NOT_SENT, (key, self._process), deadline=self._soon())
        except BridgeError:
            # Here a retry finds the row to be ours; elsewhere it is told the outcome is unknown.
            logger.debug("an intent that was not carried out could not be removed")

    def _soon(self) -> float:
        return asyncio.get_running_loop().time() + self._timeout
