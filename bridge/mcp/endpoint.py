"""`/mcp/`: the MCP server in the HTTP sidecar, over the streamable HTTP transport.

Without sessions, so that any worker can answer any request, and each answer is one JSON body: no
tool sends anything before its result. The SDK's ASGI application gets a request that was read
already, within our limits, and its answer is written by the sidecar like any other. aiohttp-asgi
has no limit on a body, and after its end returns empty pieces without end, on which an application
that waits for a disconnect blocks the event loop.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from ..core.admission import Admission
from ..core.admission import Place as Turn
from ..core.device_list import listable_devices
from ..core.dispatcher import Admitted, Dispatcher
from ..core.envelope import open_fields, open_payload, traceparent_of
from ..core.grant import Grant
from ..core.request import Request
from ..devices.models import JsonObject
from ..errors import Draining, Forbidden, OperationNotFound
from ..http.answer import Answer
from ..http.bodies import Bodies
from ..http.pages import Place
from ..settings import Settings
from . import check_installed

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    from .server import Ask, Context, MayList

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]

_CALLER = "bridge.caller"
# A message is kept several times over until it is answered: what came, what the SDK made of it, and
# what we read again. So many are in flight, of one API key half of them, so that one key leaves
# places to the others. So many of one key wait for a place, for so long (seconds).
_IN_FLIGHT = 128
_IN_FLIGHT_OF_A_KEY = 64
_MOST_WAITING_OF_A_KEY = 512
_WAIT_SECONDS = 1.0
# The SDK takes some milliseconds to read a message, in many turns of the event loop. So many of
# those in flight are read at a time.
_READ_AT_ONCE = 32
# MCP has had no batches since its revision of 2025-06-18.
_NO_BATCHES = orjson.dumps(
    {
        "jsonrpc": "2.0",
        "id": None,
        "error": {"code": -32600, "message": "no batches: send each message by itself"},
    }
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a message, and when; the SDK carries it to the tool that the message calls."""

    grant: Grant | None
    # On the monotonic clock.
    received: float
    traceparent: str | None
    # Its place among the messages that the SDK reads.
    turn: Turn


class Endpoint:
    def __init__(self, settings: Settings, dispatcher: Dispatcher) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._bodies = Bodies(settings.max_payload)
        # By the key's name, which is empty for those without a key.
        of_a_key: defaultdict[str, Admission] = defaultdict(
            lambda: Admission(
                _IN_FLIGHT_OF_A_KEY, _WAIT_SECONDS, most_waiters=_MOST_WAITING_OF_A_KEY
            )
        )
        self._messages = Admission(_IN_FLIGHT, _WAIT_SECONDS, narrow=of_a_key.__getitem__)
        # These are in flight already, and wait as long as they may take.
        self._turns = Admission(_READ_AT_ONCE, settings.request_timeout)
        self._closing = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[StreamableHTTPSessionManager] | None = None

    def places(self) -> Iterator[Place]:
        yield Place("/mcp/", self.handle, method="POST", cors=True)
        # After a 401 clients look here for an authorization server (RFC 9728, RFC 8414).
        # There is none, which only a 404 tells them.
        for name in ("oauth-", "openid-"):
            yield Place(f"/.well-known/{{document:{name}.*}}", _no_document, open=True)

    async def handle(self, request: web.Request, grant: Grant | None) -> web.StreamResponse:
        """Answer one message.

        Raises a BridgeError if it is no JSON object, is too large or late, if too many are in
        flight already, the bridge stops, or the SDK is missing.
        """
        received = self._dispatcher.deadlines.came()
        headers = request.headers
        in_time = self._dispatcher.deadlines.until(received + self._settings.request_timeout)
        payload = await self._bodies.json(request, in_time)
        if payload.lstrip()[:1] == b"[":
            return Answer(400, "application/json", _NO_BATCHES)
        manager = await self._manager()
        exchange = _Exchange(payload)
        key = "" if grant is None else grant.name
        with (
            await self._messages.enter_for(key, size=len(payload), asks_again=True),
            await self._turns.enter(size=len(payload), asks_again=True) as turn,
        ):
            # The SDK's parser accepts what ours rejects, such as NaN.
            refusal = open_payload(payload, self._settings.max_payload).refusal
            if refusal is not None:
                raise refusal
            caller = Caller(grant, received, traceparent_of(headers.get("traceparent")), turn)
            scope = _scope(request, caller)
            try:
                await manager.handle_request(scope, exchange.receive, exchange.send)
                return exchange.answer()
            except Exception:
                if self._closing.is_set():
                    # The SDK's tasks were cancelled, or had ended before it got this message.
                    raise Draining() from None
                raise

    async def close(self) -> None:
        """End it, and cancel what is still in flight."""
        self._closing.set()
        if self._serving is not None:
            await self._serving

    async def _manager(self) -> "StreamableHTTPSessionManager":
        if self._ready is None:
            check_installed()
            self._ready = asyncio.get_running_loop().create_future()
            self._serving = asyncio.create_task(self._serve(self._ready), name="mcp")
        return await asyncio.shield(self._ready)

    async def _serve(self, ready: "asyncio.Future[StreamableHTTPSessionManager]") -> None:
        """Own the SDK's tasks from the first message on."""
        try:
            # In a thread: it takes half a second.
            manager = await asyncio.to_thread(_load, self._settings, self._ask, self._may_list)
            async with manager.run():
                ready.set_result(manager)
                await self._closing.wait()
        except Exception as error:
            # The next message tries again.
            self._ready = None
            if ready.done():
                logger.exception("the MCP server failed")
            else:
                ready.set_exception(error)

    def _may_list(self, context: "Context") -> bool:
        assert context.request is not None
        caller: Caller = context.request.scope[_CALLER]
        try:
            listable_devices(self._settings, "mcp", caller.grant)
        except Forbidden:
            return False
        return True

    async def _ask(self, operation: str, fields: JsonObject, context: "Context") -> JsonObject:
        assert context.request is not None
        caller: Caller = context.request.scope[_CALLER]
        envelope = open_fields(fields)
        grant = caller.grant
        asked = Request(
            transport="mcp",
            operation=operation,
            received=caller.received,
            fields=envelope.fields,
            refusal=envelope.refusal,
            requester="" if grant is None else grant.name,
            is_named=grant is not None,
            request_id=envelope.request_id,
            idempotency_key=envelope.request_id,
            expires_at=envelope.expires_at,
            grant=grant,
            traceparent=caller.traceparent,
        )
        async with Admitted(self._dispatcher, "mcp", operation, caller.received) as admitted:
            # Not before: who waits for the dispatcher's place keeps what the SDK read.
            caller.turn.release()
            reply = await admitted.answer(asked)
            body: JsonObject = orjson.loads(reply.encode())
        return body


async def _no_document(_: web.Request, __: Grant | None) -> web.StreamResponse:
    raise OperationNotFound(operations="/openapi.json, /asyncapi.json, /docs")


def _load(settings: Settings, ask: "Ask", may_list: "MayList") -> "StreamableHTTPSessionManager":
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from mcp.server.transport_security import TransportSecuritySettings

    from .server import make_server

    return StreamableHTTPSessionManager(
        make_server(settings, ask, may_list),
        stateless=True,
        json_response=True,
        # `http.browsers` has judged Host and Origin before a message comes here.
        security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )


@dataclass(slots=True)
class _Exchange:
    """One request and its answer, as an ASGI application receives and sends them."""

    payload: bytes
    status: int = 0
    content_type: str = "application/json"
    body: bytearray = field(default_factory=bytearray)
    received: bool = False

    async def receive(self) -> Message:
        """The whole body; after it nothing, until the application ends: we don't watch for clients
        that leave, since a command half done helps no one.
        """
        if self.received:
            await asyncio.get_running_loop().create_future()
        self.received = True
        return {"type": "http.request", "body": self.payload, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = dict(message.get("headers", ()))
            self.content_type = headers.get(b"content-type", b"application/json").decode("latin-1")
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    def answer(self) -> Answer:
        """The answer, once the application has ended."""
        if not self.status:
            raise RuntimeError("the MCP server ended without an answer")
        return Answer(self.status, self.content_type, bytes(self.body))


def _scope(request: web.Request, caller: Caller) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": f"{request.version.major}.{request.version.minor}",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.raw_path.encode("utf-8", "surrogateescape"),
        "root_path": "",
        "query_string": request.rel_url.raw_query_string.encode("ascii", "replace"),
        "headers": [(name.lower(), value) for name, value in request.raw_headers],
        "client": (request.remote or "", 0),
        "server": None,
        _CALLER: caller,
    }
