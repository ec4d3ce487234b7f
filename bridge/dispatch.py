"""`answer(request) -> reply`: a request's whole life, the same for every transport."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError

from .access import Grant
from .calls import Call, Item, Services
from .deadlines import Deadlines
from .envelope import Envelope, open_fields
from .errors import (
    Busy,
    Draining,
    Expired,
    FieldError,
    IdempotencyConflict,
    OperationNotFound,
    RequestTimeout,
    ValidationFailed,
    as_property,
)
from .logs import printable
from .metrics import UNKNOWN, Metrics
from .models import Fields, Health, JsonObject
from .once import Execute, Once, fingerprint_of
from .once import key_of as once_key
from .operations import OPERATION_NAMES, OPERATIONS, Operation
from .replies import Reply, reply_to_error
from .store import key_of as device_key

logger = logging.getLogger(__name__)
audit = logging.getLogger("bridge.commands")


@dataclass(slots=True)
class Request:
    """A request as a transport read it. Times are on the monotonic clock, which is the loop's."""

    transport: str
    operation: str
    envelope: Envelope
    received: float
    # Who asked: the API key's name, else the client level, else the reply topic, else "http" or
    # "mcp".
    requester: str
    # The id for at-most-once: Idempotency-Key or `request_id`, else Correlation Data.
    once_id: str | bytes | None = None
    # From Message Expiry.
    expires: float | None = None
    # What the API key may do; None where the broker guards, or there are no keys.
    grant: Grant | None = None
    # Called when a sequence's first step has left.
    on_begun: Callable[[], None] | None = None
    traceparent: str | None = None


class Observation(NamedTuple):
    """One request answered, for logs, metrics and the console."""

    operation: str
    transport: str
    device_uuid: str | None
    code: int
    outcome: str
    seconds: float


class Dispatcher:
    """Answers requests, whoever carried them here."""

    def __init__(self, services: Services, once: Once, metrics: Metrics) -> None:
        self._services = services
        self._once = once
        self._metrics = metrics
        self._in_hand = 0
        # All that is being answered: also what waits for an id's first attempt, or is refused.
        self._answering = 0
        self._busy = reply_to_error(Busy(), services.settings.language)
        self._when_idle: asyncio.Future[None] | None = None
        self.observers: list[Callable[[Observation], None]] = []

    @property
    def in_flight(self) -> int:
        """How many requests are in hand."""
        return self._in_hand

    def is_full(self, arriving: int = 0) -> bool:
        """Whether as many requests are in hand as may be, with so many more on their way in."""
        return self._in_hand + arriving >= self._services.settings.max_in_flight

    def turns_away(
        self, row: Operation, requester: str, once_id: str | bytes | None, arriving: int = 0
    ) -> bool:
        """Whether a request is refused as busy, whatever else is in it.

        A duplicate is answered however busy we are, and so is what is always answered.
        """
        if row.always or self._services.drain.begun.is_set():
            return False
        if not row.commands or once_id is None:
            return self.is_full(arriving)
        if self._answering - self._in_hand > self._services.settings.max_in_flight:
            # So many wait for others' outcomes already; they are not free either.
            return True
        return self.is_full(arriving) and not self._once.may_know(once_key(requester, once_id))

    def turned_away(self, row: Operation, request: Request) -> Reply:
        """The reply to a request that is turned away without a call of `answer`."""
        self._observe(row, request, self._busy)
        return self._busy

    def health(self) -> Health:
        """Our state; never waits."""
        return self._services.health()

    @property
    def deadlines(self) -> Deadlines:
        """For what a transport waits for before it has a request."""
        return self._services.deadlines

    async def idle(self) -> None:
        """Wait until nothing is being answered."""
        while self._answering:
            self._when_idle = asyncio.get_running_loop().create_future()
            await self._when_idle

    async def answer(self, request: Request) -> Reply:
        """The reply to a request; whatever goes wrong becomes one, except a cancellation."""
        row = OPERATIONS.get(request.operation)
        if row is not None and request.transport == "mqtt" and not row.over_mqtt:
            row = None
        self._answering += 1
        try:
            reply = await self._answer(row, request)
        except Exception as error:
            reply = reply_to_error(error, self._services.settings.language)
        finally:
            self._answering -= 1
            if not self._answering:
                self._tell_idle()
        if reply.property_name is not None and reply.property_value is None:
            reply.property_value = as_property(request.envelope.fields.get(reply.property_name))
        self._observe(row, request, reply)
        return reply

    async def _answer(self, row: Operation | None, request: Request) -> Reply:
        envelope = request.envelope
        if envelope.refusal is not None:
            raise envelope.refusal
        if row is None:
            raise OperationNotFound(operations=", ".join(OPERATION_NAMES))
        if self._services.drain.begun.is_set() and request.transport != "mqtt" and not row.always:
            raise Draining()
        if self.turns_away(row, request.requester, request.once_id):
            raise Busy()
        settings = self._services.settings
        deadline = request.received + (
            settings.preset_timeout if row.slow else settings.request_timeout
        )
        if request.expires is not None:
            deadline = min(deadline, request.expires)
        call = Call(self._services, deadline, self, request, request.on_begun)
        # What is always answered does no work that could pile up.
        fields = _checked(row, envelope, request.grant, call)
        return await self._perform(row, fields, request, call, counted=not row.always)

    async def _perform(
        self, row: Operation, fields: Any, request: Request, call: Call, *, counted: bool
    ) -> Reply:
        if row.commands:
            return await self._command(row, fields, request, call, counted=counted)
        return await self._run(row, fields, call, counted=counted)

    async def _command(
        self, row: Operation, fields: Any, request: Request, call: Call, *, counted: bool
    ) -> Reply:
        """Run what sends commands: in its device's order, and once under one id."""

        async def execute() -> Reply:
            try:
                return await self._run(row, fields, call, counted=counted)
            except Exception as error:
                return reply_to_error(error, self._services.settings.language)

        with self._services.lines.place(device_key(fields.device_uuid)) as call.turn:
            if request.once_id is None:
                reply = await execute()
            else:
                may_begin = not (call.too_late or (counted and self.is_full()))
                reply = await self._execute_once(
                    row, fields, request, call, execute if may_begin else None
                )
        if not call.repeated:
            self._audit(row, fields, request, reply)
        return reply

    async def _execute_once(
        self, row: Operation, fields: Any, request: Request, call: Call, execute: Execute | None
    ) -> Reply:
        """The outcome under an id; without `execute` nothing new may begin, and only a duplicate
        has one.

        Raises:
            Expired, Busy: it is no duplicate.
            BridgeError: see `Once.answer`, `Once.recall`.
        """
        assert request.once_id is not None
        key = once_key(request.requester, request.once_id)
        fingerprint = fingerprint_of(row.name, fields)
        try:
            if execute is not None:
                return await self._once.answer(key, fingerprint, call, execute)
            if call.turn is not None:
                call.turn.give_up()
            reply = await self._once.recall(key, fingerprint, call)
        except IdempotencyConflict as conflict:
            raise conflict.about(*_id_of(request)) from None
        finally:
            if call.repeated:
                self._metrics.duplicates.inc()
        if reply is None:
            raise Expired() if call.too_late else Busy()
        return reply

    async def _run(self, row: Operation, fields: Fields, call: Call, *, counted: bool) -> Reply:
        """Run the handler, within the capacity if it counts, and until the deadline."""
        if counted:
            self._take_in_hand()
        try:
            if row.keeps_time or (row.reads and call.unhurried):
                return Reply(200, await row.handle(fields, call))
            with call.in_time():
                return Reply(200, await row.handle(fields, call))
        finally:
            if counted:
                self._let_go()

    def open_item(self, batch: Call, raw: JsonObject, number: int) -> Item:
        """See `Items.open_item`."""
        whole: Request = batch.origin
        envelope = open_fields(raw)
        item = Item(str(raw.get("operation")), None, envelope.request_id, None)
        try:
            row = _row_of_item(raw)
            if envelope.refusal is not None:
                raise envelope.refusal
            call = batch
            if row.handle_many is None or envelope.expires_at is not None:
                call = item.origin = self._call_of_item(row, envelope, whole, batch, number)
            item.fields = _checked(row, envelope, whole.grant, call)
        except Exception as error:
            item.reply = reply_to_error(error, self._services.settings.language)
        return item

    def _call_of_item(
        self, row: Operation, envelope: Envelope, whole: Request, batch: Call, number: int
    ) -> Call:
        request = Request(
            transport=whole.transport,
            operation=row.name,
            envelope=envelope,
            received=whole.received,
            requester=whole.requester,
            once_id=envelope.request_id or _item_id(whole.once_id, number),
            grant=whole.grant,
        )
        return Call(self._services, batch.deadline, self, request)

    async def run_item(self, item: Item) -> Reply:
        """See `Items.run_item`."""
        row = OPERATIONS[item.operation]
        call: Call = item.origin
        try:
            if call.seconds_left() <= 0:
                raise RequestTimeout()
            return await self._perform(row, item.fields, call.origin, call, counted=False)
        except Exception as error:
            return reply_to_error(error, self._services.settings.language)

    def _take_in_hand(self) -> None:
        if self.is_full():
            raise Busy()
        self._in_hand += 1

    def _let_go(self) -> None:
        self._in_hand -= 1

    def _tell_idle(self) -> None:
        # It is cancelled when a drain runs out of time.
        if self._when_idle is not None and not self._when_idle.done():
            self._when_idle.set_result(None)
        self._when_idle = None

    def _observe(self, row: Operation | None, request: Request, reply: Reply) -> None:
        seconds = time.monotonic() - request.received
        operation = UNKNOWN if row is None else row.name
        outcome = reply.error or "ok"
        self._metrics.answered(request.transport, operation, outcome, seconds)
        if self.observers:
            uuid = request.envelope.fields.get("device_uuid")
            observation = Observation(
                operation,
                request.transport,
                uuid if isinstance(uuid, str) else None,
                reply.code,
                outcome,
                seconds,
            )
            for observer in self.observers:
                observer(observation)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "request",
                extra={
                    "id": request.envelope.request_id,
                    "operation": printable(request.operation),
                    "transport": request.transport,
                    "code": reply.code,
                    "error": reply.error,
                    "ms": round(seconds * 1000, 2),
                    "traceparent": request.traceparent,
                },
            )

    def _audit(self, row: Operation, fields: Fields, request: Request, reply: Reply) -> None:
        if not audit.isEnabledFor(logging.INFO):
            return
        asked = fields.model_dump(exclude_none=True)
        audit.info(
            "command",
            extra={
                "who": printable(request.requester),
                "device": printable(asked.pop("device_uuid")),
                "operation": row.name,
                "asked": printable(orjson.dumps(asked).decode()),
                "code": reply.code,
                "outcome": reply.error or "ok",
                "id": request.envelope.request_id,
                "traceparent": request.traceparent,
            },
        )


def _checked(row: Operation, envelope: Envelope, grant: Grant | None, call: Call) -> Any:
    """The validated fields of a request that may begin.

    Raises:
        BridgeError: it may not: expired, invalid, or not allowed to this key.
    """
    _check_begun_in_time(row, envelope, call)
    fields = _validated(row, envelope.fields)
    if grant is not None:
        grant.check(row.permission or row.name, getattr(fields, "device_uuid", None))
    if row.check is not None:
        row.check(fields)
    return fields


def _check_begun_in_time(row: Operation, envelope: Envelope, call: Call) -> None:
    """Bring the call's deadline down to `expires_at`, and begin nothing past it.

    A command with an id may be a duplicate, which gets the answer of the first, be it late.

    Raises:
        Expired: `expires_at` has passed.
        RequestTimeout: the deadline has passed for another reason.
    """
    if envelope.expires_at is not None:
        left = envelope.expires_at - time.time()
        call.too_late = left <= 0
        if not call.too_late:
            call.deadline = min(call.deadline, asyncio.get_running_loop().time() + left)
        elif not row.commands or call.origin.once_id is None:
            raise Expired()
    left = call.seconds_left()
    if left <= 0:
        raise RequestTimeout()
    # A read ends by itself in DB_TIMEOUT and a little; only less needs a time limit of its own.
    call.unhurried = left > call.services.settings.db_timeout + 1.0


def _validated(row: Operation, raw: JsonObject) -> Fields:
    try:
        return row.fields.model_validate(raw)
    except ValidationError as invalid:
        faults = [
            FieldError(tuple(fault["loc"]), fault["msg"], fault["type"])
            for fault in invalid.errors(
                include_url=False, include_context=False, include_input=False
            )
        ]
        raise ValidationFailed(faults, _value_at(raw, faults[0].loc)) from None


def _value_at(value: Any, place: Sequence[str | int]) -> Any:
    """What was sent at a place within the fields; None where there is nothing."""
    for step in place:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _id_of(request: Request) -> tuple[str, str | None]:
    """The property that holds the id, and the id where it is text."""
    if request.envelope.request_id == request.once_id:
        return "request_id", request.envelope.request_id
    if isinstance(request.once_id, str):
        return "Idempotency-Key", request.once_id
    return "Correlation Data", None


def _row_of_item(item: JsonObject) -> Operation:
    name = item.get("operation")
    if not isinstance(name, str):
        raise ValidationFailed([FieldError(("operation",), "Field required", "missing")])
    row = OPERATIONS.get(name)
    if row is None or not row.in_batch:
        allowed = (row.name for row in OPERATIONS.values() if row.in_batch)
        raise OperationNotFound(operations=", ".join(allowed))
    return row


def _item_id(batch_id: str | bytes | None, number: int) -> bytes | None:
    """An item without an id of its own has one by its batch's: a retried batch repeats nothing."""
    if batch_id is None:
        return None
    whole = batch_id.encode() if isinstance(batch_id, str) else batch_id
    return whole + b"#%d" % number
