"""From an HTTP request, whose body was read, to the request that it is."""

from aiohttp import web

from ..core.envelope import Envelope, checked_id, open_fields, open_payload, traceparent_of
from ..core.grant import Grant
from ..core.operations import Operation
from ..core.request import Request
from ..devices.models import JsonObject


def request_of(
    row: Operation,
    request: web.Request,
    body: bytes,
    *,
    limit: int,
    received: float,
    grant: Grant | None,
) -> Request:
    """The request, with a refusal if its fields can't be read or are over `limit` bytes.

    Raises:
        MalformedRequest: its Idempotency-Key is none.
    """
    envelope = _open(row, request, body, limit)
    headers = request.headers
    key = headers.get("Idempotency-Key")
    if key is not None:
        key = checked_id(_unquoted(key))
    return Request(
        transport="http",
        operation=row.name,
        received=received,
        fields=envelope.fields,
        refusal=envelope.refusal,
        requester="" if grant is None else grant.name,
        is_named=grant is not None,
        request_id=envelope.request_id,
        idempotency_key=key or envelope.request_id,
        expires_at=envelope.expires_at,
        grant=grant,
        traceparent=traceparent_of(headers.get("traceparent")),
    )


def _open(row: Operation, request: web.Request, body: bytes, limit: int) -> Envelope:
    if row.method == "POST":
        return open_payload(body, limit, is_batch=row.name == "batch")
    fields: JsonObject = {**request.query}
    if "{" in row.path:
        fields |= request.match_info
    return open_fields(fields)


def _unquoted(key: str) -> str:
    """An Idempotency-Key as it is meant: a structured header writes it in quotes."""
    return key[1:-1] if len(key) > 1 and key[0] == key[-1] == '"' else key
