"""The HTTP transport: an aiohttp sidecar that carries the same operations.

Routes follow from the table of operations. Every answer is the wire contract's JSON, those to
requests that never parsed included.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

import orjson
from aiohttp import web

from ..core.dispatcher import Admitted, Dispatcher
from ..core.envelope import TRACE_SHAPES
from ..core.grant import Grant
from ..core.operations import OPERATIONS, Operation
from ..core.replies import Reply, reply_to_error
from ..core.request import Request
from ..devices.models import Health
from ..errors import (
    BridgeError,
    Busy,
    Draining,
    Forbidden,
    MalformedRequest,
    MethodNotAllowed,
    OperationNotFound,
    Unauthorized,
)
from ..observability.activity import Activity
from ..observability.metrics import Metrics
from ..observability.observations import UNKNOWN, Observers, RequestAnswered
from ..settings import Settings
from .answer import JSON_UTF8, Answer
from .authentication import Keys, WrongKey
from .bodies import Bodies
from .browsers import PREFLIGHT, Browsers, Headers, hosts_of, origin_of
from .console import Console, Readings
from .descriptors import connection_cap
from .operator_pages import OperatorPages
from .pages import Handler as Guarded
from .pages import Place, redirect, swagger_ui
from .port import PortTakenError
from .reading import request_of
from .server import NOT_HTTP, Handler, Server, is_surplus, meet_expectation
from .wrong_keys import WrongKeys

logger = logging.getLogger(__name__)


# A connection that sends no request, or only part of one's head, is closed after so long.
_IDLE_SECONDS = 75.0
_RETRY_AFTER = ("Retry-After", "1")
# What a connection above the cap is answered for.
_HEALTH_PATHS = frozenset({"/livez", "/readyz", "/health"})


class HttpTransport:
    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        dispatcher: Dispatcher,
        *,
        metrics: Metrics,
        observers: Observers,
        activity: Activity,
        health: Callable[[], Health],
        readings: Readings,
        is_ready: Callable[[], bool],
        mqtt_connected: Callable[[], bool],
        mounted: Sequence[Place] = (),
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._browsers = Browsers(settings)
        self._loop = asyncio.get_running_loop()
        self._observers = observers
        self._dispatcher = dispatcher
        self._server: Server | None = None
        self._handlers: dict[tuple[str, str], Handler] = {}
        pages = OperatorPages(
            settings,
            metrics,
            is_guarded=lambda: keys.required,
            is_ready=is_ready,
            mqtt_connected=mqtt_connected,
        )
        console = Console(settings, activity, health, readings)
        self._places = (*pages.places(), *swagger_ui(self._admit), *console.places(), *mounted)
        self._bodies = Bodies(settings.max_payload)
        self._wrong_keys = WrongKeys(metrics.wrong_key)

    async def start(self) -> None:
        """Listen; raises PortTakenError if the address can't be bound."""
        app = web.Application(client_max_size=self._settings.max_payload)
        self._add_routes(app)
        self._server = Server(
            app,
            on_error=self._answer_outside,
            direct=self._handlers,
            most_connections=connection_cap(),
            access_log=None,
            keepalive_timeout=_IDLE_SECONDS,
        )
        settings = self._settings
        try:
            await self._server.start(
                settings.service_host, settings.service_port, reuse_port=settings.workers > 1
            )
        except OSError as error:
            raise PortTakenError(settings, error) from None

    async def drain(self) -> None:
        """Wait a moment for requests that are on their way on open connections; they get 503."""
        if self._server is not None:
            await self._server.emptied(within=0.25)

    async def stop(self) -> None:
        """Stop listening, and close the connections; those busy after 0.25 s are aborted."""
        if self._server is not None:
            await self._server.close(within=0.25)
        self._wrong_keys.close()

    def _add_routes(self, app: web.Application) -> None:
        for row in OPERATIONS.values():
            is_health = row.name == "health"
            handler = self._health if is_health else partial(self._answer, row)
            self._add(app, Place(row.path, handler, open=is_health, method=row.method))
        for place in self._places:
            self._add(app, place)
        app.router.add_route(
            "*", "/{path:.*}", self._guarded(self._not_found), expect_handler=meet_expectation
        )

    def _add(self, app: web.Application, place: Place) -> None:
        path = place.path.rstrip("/")
        slashed = place._replace(handler=redirect(path)) if place.is_page else place
        for form, shown in {path or "/": place, f"{path}/": slashed}.items():
            self._add_form(app, form, shown)

    def _add_form(self, app: web.Application, form: str, place: Place) -> None:
        """Serve a place at its path, or at its path with a trailing slash."""
        resource = app.router.add_resource(form)
        add_route = partial(resource.add_route, expect_handler=meet_expectation)
        method, is_health = place.method, place.path in _HEALTH_PATHS
        guarded = partial(self._guarded, open_=place.open, is_health=is_health)
        handler = guarded(place.handler, cors=place.cors)
        add_route(method, handler)
        self._handlers[method, form] = handler
        if method == "GET":
            add_route("HEAD", handler)
        add_route("OPTIONS", self._preflight(is_health))

        async def not_allowed(request: web.Request, _: Grant | None) -> web.StreamResponse:
            reply = self._refused(MethodNotAllowed(allowed=method))
            return self._respond(request, reply, headers=(("Allow", f"{method}, OPTIONS"),))

        add_route("*", guarded(not_allowed))

    def _guarded(
        self, handler: Guarded, *, open_: bool = False, is_health: bool = False, cors: bool = False
    ) -> Handler:
        """Admit the caller, unless the place is open to all; whatever is raised is answered."""

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                grant = self._admitted(request, open_=open_, is_health=is_health)
                if is_surplus(request) and not is_health:
                    raise Busy()
                response = await handler(request, grant)
                if cors and isinstance(response, Answer):
                    response.add_headers(self._browsers.cors(origin_of(request)))
                return response
            except WrongKey as wrong:
                error = await self._delayed(wrong, request)
                # Busy closes the connection, on which thousands a second could be shown.
                return self._respond(request, self._refused(error), keep_alive=error is wrong)
            except Exception as error:
                return self._respond(request, self._refused(error))

        return handle

    async def _delayed(self, wrong: WrongKey, request: web.Request) -> BridgeError:
        """What a wrong key is answered with, once its address has waited long enough."""
        try:
            await self._wrong_keys.shown(request.remote, partial(_is_connected, request))
        except Busy as error:
            return error
        return wrong

    def _admitted(self, request: web.Request, *, open_: bool, is_health: bool) -> Grant | None:
        """What the caller may do, None for everything; raises Unauthorized or Forbidden."""
        try:
            grant = self._admit(request)
        except Unauthorized:
            if not open_:
                raise
            return None
        if grant is None and not is_health:
            for host in hosts_of(request):
                self._browsers.check(host, origin_of(request))
        return grant

    def _admit(self, request: web.Request) -> Grant | None:
        if not self._keys.required:
            return None
        return self._keys.admit(_secret(request), request.remote)

    def _preflight(self, is_health: bool) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            announced = request.headers.get("Access-Control-Request-Headers", "")
            try:
                for host in () if is_health else hosts_of(request):
                    self._browsers.check_preflight(host, origin_of(request), announced)
            except Forbidden as error:
                return self._respond(request, self._refused(error))
            return self._send(request, b"", 204, PREFLIGHT)

        return handle

    async def _answer(
        self, row: Operation, request: web.Request, grant: Grant | None
    ) -> web.StreamResponse:
        received = self._dispatcher.deadlines.came()
        limit = self._settings.max_payload
        payload = await self._payload(row, request, received)
        async with Admitted(self._dispatcher, "http", row.name, received, len(payload)) as admitted:
            asked = request_of(row, request, payload, limit=limit, received=received, grant=grant)
            answer = self._respond(request, await admitted.answer(asked), asked.request_id)
            await answer.send(request)
        return answer

    async def _payload(self, row: Operation, request: web.Request, received: float) -> bytes:
        if row.method == "GET":
            return b""
        in_time = self._dispatcher.deadlines.until(received + self._settings.request_timeout)
        return await self._bodies.json(request, in_time)

    async def _health(self, request: web.Request, _: Grant | None) -> web.StreamResponse:
        """The health object bare, for monitors that read it so."""
        asked = Request("http", "health", self._loop.time(), {})
        reply = await self._dispatcher.answer(asked)
        healthy = reply.error is None and reply.data.status == "healthy"
        return self._send(request, orjson.dumps(reply.data), 200 if healthy else 503)

    async def _not_found(self, _: web.Request, __: Grant | None) -> web.StreamResponse:
        raise OperationNotFound(
            operations=", ".join(f"{row.method} {row.path}" for row in OPERATIONS.values())
        )

    def _refused(self, error: Exception) -> Reply:
        """The reply to what never got as far as the dispatcher, counted here for that reason."""
        reply = reply_to_error(error, self._settings.language)
        self._observers.request_answered(
            RequestAnswered("http", UNKNOWN, None, reply.code, reply.error or "ok", 0.0, "http")
        )
        return reply

    def _answer_outside(self, error: BaseException | None) -> Answer:
        """The answer to what failed before or after a handler; None: it could not be parsed."""
        failed = error if isinstance(error, Exception) else MalformedRequest(reason=NOT_HTTP)
        reply = self._refused(failed)
        headers = (*self._browsers.cors(None), *((_RETRY_AFTER,) if reply.code == 429 else ()))
        return Answer(reply.code, JSON_UTF8, reply.encode(), headers, keep_alive=False)

    def _respond(
        self,
        request: web.Request,
        reply: Reply,
        request_id: str | None = None,
        headers: Headers = (),
        *,
        keep_alive: bool = True,
    ) -> Answer:
        asked = request.headers
        more = [
            (name, asked[name])
            for name, shape in TRACE_SHAPES.items()
            if name in asked and shape.fullmatch(asked[name])
        ]
        if reply.code == 429:
            more.append(_RETRY_AFTER)
        elif reply.code == 401:
            more.append(("WWW-Authenticate", "Bearer"))
        # What comes on this connection next would be lost with it.
        keep_alive = keep_alive and reply.error != Draining.error
        headers = (*more, *headers)
        return self._send(request, reply.encode(request_id), reply.code, headers, keep_alive)

    def _send(
        self,
        request: web.Request,
        body: bytes,
        status: int = 200,
        headers: Headers = (),
        keep_alive: bool = True,
    ) -> Answer:
        cors = self._browsers.cors(origin_of(request))
        return Answer(status, JSON_UTF8, body, (*cors, *headers), keep_alive=keep_alive)


def _is_connected(request: web.Request) -> bool:
    return request.transport is not None


def _secret(request: web.Request) -> str | None:
    """What the caller shows: `X-API-Key`, else a bearer token; of a header sent twice, nothing."""
    keys = request.headers.getall("X-API-Key", ())
    if keys:
        return keys[0] if len(keys) == 1 else ""
    shown = request.headers.getall("Authorization", ())
    if len(shown) > 1:
        return ""
    scheme, _, token = "".join(shown).partition(" ")
    return token.strip() if scheme.casefold() == "bearer" and token.strip() else None
