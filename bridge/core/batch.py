"""The items of a batch: each is checked, observed and answered as a request of its own would be."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ..devices.models import Fields, JsonObject
from ..errors import (
    FieldError,
    Language,
    OperationNotFound,
    PayloadTooLarge,
    ValidationFailed,
    fault_text,
)
from .envelope import open_fields
from .operations import OPERATIONS, Operation
from .replies import Reply, reply_to_error
from .request import Request

# What the replies of all items may take together, in bytes.
MOST_BYTES = 4 * 1024 * 1024
# Of the items that can't be read together so many are read at a time, of so many batches. A hundred
# descriptions of devices may be megabytes, and keep the event loop for a tenth of a second.
READING_ITEMS = 8
READING_BATCHES = 4


@dataclass(slots=True)
class Item:
    """One request of a batch; with a `reply` from the start if it was rejected."""

    request: Request
    row: Operation | None = None
    fields: Fields | None = None
    reply: Reply | None = None
    # The reply as JSON, once it was encoded.
    body: bytes | None = None

    def encode(self) -> bytes:
        """The reply as JSON; encoded once."""
        assert self.reply is not None
        if self.body is None:
            self.body = self.reply.encode(self.request.request_id)
        return self.body

    @property
    def operation(self) -> Operation:
        """That of an item which was not rejected."""
        assert self.row is not None
        return self.row

    @property
    def runs_alone(self) -> bool:
        """Whether it can't be answered together with others of its operation."""
        return self.operation.handle_many is None or self.request.expires_at is not None


def item_of(batch: Request, raw: JsonObject, number: int) -> Item:
    """One item as a request of its own; never raises: a fault becomes the request's refusal."""
    envelope = open_fields(raw)
    refusal = envelope.refusal
    row = None
    try:
        row = _row_of(raw)
    except (ValidationFailed, OperationNotFound) as error:
        refusal = error
    request = Request(
        transport=batch.transport,
        operation="" if row is None else row.name,
        received=batch.received,
        fields=envelope.fields,
        refusal=refusal,
        requester=batch.requester,
        is_named=batch.is_named,
        request_id=envelope.request_id,
        idempotency_key=envelope.request_id or _item_key(batch.idempotency_key, number),
        expires_at=envelope.expires_at,
        grant=batch.grant,
        traceparent=batch.traceparent,
    )
    return Item(request, row)


def bodies_of(items: Iterable[Item], language: Language) -> list[Any]:
    """The items' reply bodies in order, as parts of a JSON text.

    Past `MOST_BYTES` only outcomes of commands are left.
    """
    bodies = []
    size = 0
    for item in items:
        body = item.encode()
        size += len(body)
        is_command = item.row is not None and item.row.commands
        if size > MOST_BYTES and not is_command:
            reply = reply_to_error(PayloadTooLarge(limit=MOST_BYTES), language)
            body = reply.encode(item.request.request_id)
        bodies.append(orjson.Fragment(body))
    return bodies


def grouped(items: Sequence[Item]) -> tuple[list[Item], list[Item], list[list[Item]]]:
    """Those without a reply yet: commands in order, those that run alone, and those alike."""
    open_items = [item for item in items if item.reply is None]
    commands = [item for item in open_items if item.operation.commands]
    others = [item for item in open_items if not item.operation.commands]
    alike: dict[str, list[Item]] = {}
    for item in others:
        if not item.runs_alone:
            alike.setdefault(item.operation.name, []).append(item)
    return commands, [item for item in others if item.runs_alone], list(alike.values())


def _row_of(raw: JsonObject) -> Operation:
    name: Any = raw.get("operation")
    if not isinstance(name, str):
        raise ValidationFailed([FieldError(("operation",), fault_text("missing"), "missing")])
    row = OPERATIONS.get(name.strip().casefold())
    if row is None or not row.in_batch:
        allowed = (row.name for row in OPERATIONS.values() if row.in_batch)
        raise OperationNotFound(operations=", ".join(allowed))
    return row


def _item_key(batch_key: str | bytes | None, number: int) -> bytes | None:
    """An item without an id of its own has one by its batch's: a retried batch repeats nothing."""
    if batch_key is None:
        return None
    whole = batch_key.encode() if isinstance(batch_key, str) else batch_key
    return whole + b"#%d" % number
