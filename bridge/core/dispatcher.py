"""A request's whole life, the same for every transport: admitted, read, answered, and sent."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from ..devices.models import BatchFields, BatchResult, Fields
from ..devices.names import device_key
from ..errors import (
    BridgeError,
    Busy,
    Draining,
    Expired,
    IdempotencyConflict,
    OperationNotFound,
    RequestTimeout,
    as_property,
)
from ..observability.observations import UNKNOWN, CommandExecuted, Observers, RequestAnswered
from .admission import Admission, Place
from .attempt import CommandAttempt, Context
from .batch import READING_BATCHES, READING_ITEMS, Item, bodies_of, grouped, item_of
from .context import Services
from .deadlines import Deadlines
from .idempotency import CommandId, Idempotency, Outcome, fingerprint_of, key_of
from .operations import OPERATION_NAMES, OPERATIONS, Operation
from .replies import Reply, reply_to_error
from .request import Request, Transport
from .validation import validated

OnBegun = Callable[[], None]


class Dispatcher:
    """Answers requests, whoever carried them here."""

    def __init__(
        self,
        services: Services,
        idempotency: Idempotency,
        admission: Admission,
        observers: Observers,
    ) -> None:
        self._services = services
        self._language = services.settings.language
        self._idempotency = idempotency
        self._observers = observers
        # All that is being answered, also what waits for a duplicate's first attempt.
        self._answering = 0
        self._idle = asyncio.Event()
        self._admission = admission
        self._reading_batches = asyncio.Semaphore(READING_BATCHES)
        self._reading_items = asyncio.Semaphore(READING_ITEMS)
        # For what a transport waits for before it has a request, too.
        self.deadlines: Deadlines = services.deadlines

    async def idle(self) -> None:
        """Wait until no request is being answered; new ones are not kept out."""
        while self._answering:
            await self._idle.wait()

    def takes_place(self, transport: Transport, operation: str) -> bool:
        """Whether it must hold a place: not if unknown, rejected, or always answered."""
        row = _row_of(transport, operation)
        return row is not None and not row.always and not self._is_draining(transport)

    def _is_draining(self, transport: Transport) -> bool:
        """Whether a request is rejected since we stop: over MQTT nobody else would answer it."""
        return self._services.drain.begun.is_set() and transport != "mqtt"

    def reject(self, request: Request, error: BridgeError) -> Reply:
        """The reply to a request that is rejected unserved; it is observed like any other reply."""
        reply = reply_to_error(error, self._language)
        self._observe(_row_of(request.transport, request.operation), request, reply)
        return reply

    async def answer(
        self, request: Request, place: Place | None = None, on_begun: OnBegun | None = None
    ) -> Reply:
        """The reply to a request; whatever goes wrong becomes one, except a cancellation."""
        row = _row_of(request.transport, request.operation)
        self._answering += 1
        self._idle.clear()
        try:
            reply = await self._begin(row, request, place, on_begun)
        except Exception as error:
            reply = reply_to_error(error, self._language)
        finally:
            self._answering -= 1
            if not self._answering:
                self._idle.set()
        if reply.property_name is not None and reply.property_value is None:
            reply.property_value = as_property(request.fields.get(reply.property_name))
        self._observe(row, request, reply)
        return reply

    def _begin(
        self,
        row: Operation | None,
        request: Request,
        place: Place | None,
        on_begun: OnBegun | None,
    ) -> Awaitable[Reply]:
        """The work on a request that may begin; raises a BridgeError if it may not."""
        if request.refusal is not None:
            raise request.refusal
        if row is None:
            raise OperationNotFound(operations=", ".join(OPERATION_NAMES))
        if self._is_draining(request.transport) and not row.always:
            raise Draining()
        attempt = self._attempt(row, request, place, on_begun)
        return self._perform(row, self._checked(row, request, attempt), request, attempt)

    def _attempt(
        self,
        row: Operation,
        request: Request,
        place: Place | None = None,
        on_begun: OnBegun | None = None,
        until: float = float("inf"),
    ) -> CommandAttempt:
        """An attempt at a request; its deadline is `until` at the latest, on the loop's clock."""
        settings = self._services.settings
        seconds = settings.preset_timeout if row.slow else settings.request_timeout
        deadline = min(until, request.received + seconds)
        if request.expires is not None:
            deadline = min(deadline, request.expires)
        if request.expires_at is not None and not request.is_expired:
            deadline = min(deadline, time.monotonic() + request.expires_at - time.time())
        return CommandAttempt(self._services, deadline, place, on_begun, request.share)

    def _checked(self, row: Operation, request: Request, attempt: CommandAttempt) -> Fields:
        """The validated fields; raises a BridgeError if the request may not begin."""
        # A command with an id may be a duplicate, which gets the first one's reply, expired or not.
        may_be_duplicate = row.commands and request.idempotency_key is not None
        if request.is_expired and not may_be_duplicate:
            raise Expired()
        if attempt.seconds_left() <= 0:
            raise RequestTimeout()
        fields = validated(row.fields, request.fields)
        if request.grant is not None:
            request.grant.check(row.permission or row.name, getattr(fields, "device_uuid", None))
        if row.check is not None:
            row.check(fields)
        return fields

    def _perform(
        self, row: Operation, fields: Any, request: Request, attempt: CommandAttempt
    ) -> Awaitable[Reply]:
        if row.commands:
            return self._command(row, fields, request, attempt)
        if row.name == "batch":
            return self._batch(fields, request, attempt)
        return self._run(row, fields, request, attempt)

    async def _run(
        self, row: Operation, fields: Fields, request: Request, attempt: CommandAttempt
    ) -> Reply:
        context = Context(self._services, attempt.deadline, request, attempt)
        # The store ends every read itself within DB_TIMEOUT.
        is_long = attempt.seconds_left() > self._services.settings.db_timeout + 1.0
        if row.keeps_time or (row.reads and is_long):
            return Reply(200, await row.handle(fields, context))
        with context.in_time():
            return Reply(200, await row.handle(fields, context))

    async def _command(
        self, row: Operation, fields: Any, request: Request, attempt: CommandAttempt
    ) -> Reply:
        """Run what sends commands: in its device's order, and once under one id."""
        with self._services.queues.place(device_key(fields.device_uuid)) as ticket:
            attempt.prepare(ticket, partial(self._execute, row, fields, request))
            if request.idempotency_key is None:
                outcome = Outcome(await attempt.run(), duplicate=False)
            else:
                outcome = await self._once(row, fields, request, attempt)
        reply = outcome.reply
        self._observers.command_executed(
            CommandExecuted(
                request.who,
                fields.device_uuid,
                row.name,
                vars(fields),
                reply.code,
                reply.error or "ok",
                request.request_id,
                request.traceparent,
                outcome.duplicate,
            )
        )
        return reply

    async def _execute(
        self, row: Operation, fields: Fields, request: Request, attempt: CommandAttempt
    ) -> Reply:
        try:
            return await self._run(row, fields, request, attempt)
        except Exception as error:
            return reply_to_error(error, self._language)

    async def _once(
        self, row: Operation, fields: Fields, request: Request, attempt: CommandAttempt
    ) -> Outcome:
        """The outcome under an id; of an expired request only if it is a duplicate."""
        assert request.idempotency_key is not None
        command = CommandId(
            key_of(request.who, request.idempotency_key),
            fingerprint_of(row.name, fields),
            request.share,
        )
        try:
            if not request.is_expired:
                return await self._idempotency.execute(command, attempt)
            known = await self._idempotency.recall(command, attempt)
        except IdempotencyConflict as conflict:
            raise conflict.about(*request.id_property()) from None
        if known is None:
            raise Expired()
        return Outcome(known, duplicate=True)

    async def _batch(self, fields: BatchFields, request: Request, attempt: CommandAttempt) -> Reply:
        """Several requests in one: reads together, commands in list order."""
        items = [item_of(request, raw, number) for number, raw in enumerate(fields.requests)]
        for item in items:
            self._open(item, attempt)
        commands, single, alike = grouped(items)

        async def run_in_order() -> None:
            for item in commands:
                await self._run_item(item, attempt)

        together = (self._run_together(group, attempt) for group in alike)
        await asyncio.gather(run_in_order(), *together, self._read_each(single, attempt))
        return Reply(200, BatchResult(bodies_of(items, self._language)))

    def _open(self, item: Item, batch: CommandAttempt) -> None:
        """Check an item; one that may not begin gets its reply."""
        try:
            if item.request.refusal is not None:
                raise item.request.refusal
            attempt = self._attempt(item.operation, item.request, until=batch.deadline)
            item.fields = self._checked(item.operation, item.request, attempt)
        except Exception as error:
            item.reply = reply_to_error(error, self._language)

    async def _read_each(self, items: Sequence[Item], batch: CommandAttempt) -> None:
        """Answer items that can't be read together, a few of a few batches at a time."""

        async def read(item: Item) -> None:
            async with self._reading_items:
                await self._run_item(item, batch)
                # Of what may be large, only the JSON is kept.
                item.encode()
                assert item.reply is not None
                item.reply.data = None

        if items:
            async with self._reading_batches:
                await asyncio.gather(*(read(item) for item in items))

    async def _run_item(self, item: Item, batch: CommandAttempt) -> None:
        attempt = self._attempt(item.operation, item.request, until=batch.deadline)
        try:
            if attempt.seconds_left() <= 0:
                raise RequestTimeout()
            item.reply = await self._perform(item.operation, item.fields, item.request, attempt)
        except Exception as error:
            item.reply = reply_to_error(error, self._language)

    async def _run_together(self, items: Sequence[Item], batch: CommandAttempt) -> None:
        row = items[0].operation
        assert row.handle_many is not None
        context = Context(self._services, batch.deadline, items[0].request, batch)
        outcomes: Sequence[Any]
        try:
            with context.in_time():
                outcomes = await row.handle_many([item.fields for item in items], context)
        except Exception as error:
            outcomes = [error] * len(items)
        for item, outcome in zip(items, outcomes, strict=True):
            failed = isinstance(outcome, Exception)
            item.reply = reply_to_error(outcome, self._language) if failed else Reply(200, outcome)

    def _observe(self, row: Operation | None, request: Request, reply: Reply) -> None:
        uuid = request.fields.get("device_uuid")
        self._observers.request_answered(
            RequestAnswered(
                request.transport,
                UNKNOWN if row is None else row.name,
                uuid if isinstance(uuid, str) else None,
                reply.code,
                reply.error or "ok",
                time.monotonic() - request.received,
                request.who,
                request.request_id,
                request.traceparent,
                reply.detail,
            )
        )


@dataclass(slots=True, eq=False)
class Admitted:
    """A request's place among those in flight, or that there is none, until its reply has left.

    `async with Admitted(dispatcher, …) as admitted:` read, answer and send in the body. A request
    waits for its place unread: parsed, it may be thirty times as large.
    """

    _dispatcher: Dispatcher
    _transport: Transport
    _operation: str
    # On the loop's clock.
    _received: float
    # Of what it keeps while it waits, in bytes.
    _size: int = 0
    _place: Place | None = None
    _busy: Busy | None = None

    async def __aenter__(self) -> Self:
        if not self._dispatcher.takes_place(self._transport, self._operation):
            return self
        admission = self._dispatcher._admission
        waits = (self._received, self._size, self._transport == "http")
        try:
            self._place = admission.take_for(self._operation) or await admission.enter_for(
                self._operation, *waits
            )
        except Busy as error:
            self._busy = error.with_traceback(None)
        return self

    async def answer(self, request: Request, on_begun: OnBegun | None = None) -> Reply:
        """The reply to the request; `on_begun` is called when a sequence's first step has left."""
        if self._busy is not None and request.refusal is None:
            return self._dispatcher.reject(request, self._busy)
        return await self._dispatcher.answer(request, self._place, on_begun)

    async def __aexit__(self, *_: object) -> None:
        if self._place is not None:
            self._place.release()


def _row_of(transport: Transport, operation: str) -> Operation | None:
    row = OPERATIONS.get(operation)
    return None if row is None or (transport == "mqtt" and not row.over_mqtt) else row
