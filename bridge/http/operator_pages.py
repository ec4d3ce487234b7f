"""What operators and tools ask of a service: its state, its metrics, its documents."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import orjson
from aiohttp import web

from .. import __version__
from ..apidocs import Address, Document, Documents
from ..core.grant import Grant
from ..observability.metrics import Metrics
from ..settings import Settings
from .answer import JSON_UTF8, Answer
from .coalesced import Coalesced
from .pages import Handler, Place

_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class OperatorPages:
    """The pages; none of them waits for the database or the broker."""

    settings: Settings
    metrics: Metrics
    is_guarded: Callable[[], bool]
    is_ready: Callable[[], bool]
    mqtt_connected: Callable[[], bool]

    def places(self) -> Iterator[Place]:
        yield Place("/", self._root, open=True, cors=True)
        yield Place("/livez", self._livez, open=True, cors=True)
        yield Place("/readyz", self._readyz, open=True, cors=True)
        yield Place("/metrics", self._exposition(), cors=True)
        for path, document in Documents(self.settings).by_path.items():
            yield Place(path, self._document(document), cors=True)

    async def _root(self, _: web.Request, __: Grant | None) -> web.StreamResponse:
        body = {
            "service": "mqtt-request-reply-bridge",
            "version": __version__,
            "status": "running" if self.is_ready() else "degraded",
            "mqtt_connected": self.mqtt_connected(),
        }
        return Answer(200, JSON_UTF8, orjson.dumps(body))

    async def _livez(self, _: web.Request, __: Grant | None) -> web.StreamResponse:
        return Answer(200, JSON_UTF8, b'{"status":"alive"}')

    async def _readyz(self, _: web.Request, __: Grant | None) -> web.StreamResponse:
        if self.is_ready():
            return Answer(200, JSON_UTF8, b'{"status":"ready"}')
        return Answer(503, JSON_UTF8, b'{"status":"not ready"}')

    def _exposition(self) -> Handler:
        exposition = Coalesced(self.metrics.exposition)

        async def handle(_: web.Request, __: Grant | None) -> web.StreamResponse:
            return Answer(200, _EXPOSITION, await exposition())

        return handle

    def _document(self, document: Document) -> Handler:
        async def handle(request: web.Request, _: Grant | None) -> web.StreamResponse:
            forwarded = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip()
            secure = request.secure or forwarded.casefold() == "https"
            reached = Address.of(request.headers.get("Host"), self.settings, secure=secure)
            guarded = self.is_guarded()
            # In a thread, since making one for the first time takes some milliseconds.
            await asyncio.to_thread(document.parts, guarded)
            return Answer(200, JSON_UTF8, document(guarded, reached))

        return handle
