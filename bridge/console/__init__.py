"""The console: one page on which people see what the bridge does, and what a device says.

The page, its style and its scripts hold nothing of anyone's, not even our version: they are
served to all, so that the page can ask for an API key. Everything shown on it comes from
`/console/events`, and from the operations, which the key guards. The page carries the key in a
header, which a browser's EventSource can't: it reads the stream of events with `fetch`.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from importlib.resources import files
from typing import NamedTuple

import orjson
from aiohttp import web

from ..access import Grant
from ..activity import Activity, AnsweredRequest, Follower
from ..errors import Busy, Forbidden, Unauthorized
from ..models import Health
from ..settings import Settings

Handler = Callable[[web.Request, Grant | None], Awaitable[web.StreamResponse]]

_STATIC = files(__name__) / "static"
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, in no one's frame.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_PAGE_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_EVENTS_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    # nginx would hold the events back.
    "X-Accel-Buffering": "no",
}
_MOST_READERS = 64
# A reader who takes nothing for so long is gone, or might as well be.
_WRITE_SECONDS = 10.0
# Timers of some loops are a millisecond early; a second must be over when it is told.
_AFTER_THE_SECOND = 0.005


class Place(NamedTuple):
    """A path that is served with GET; to all if it is `open`."""

    path: str
    handler: Handler
    open: bool


class Console:
    """The page, and the stream of events behind it.

    Args:
        health: our state; never waits.
        admit: what the bearer of a request may do, as `Keys.admit` tells it.
    """

    def __init__(
        self,
        settings: Settings,
        health: Callable[[], Health],
        admit: Callable[[web.Request], Grant | None],
    ) -> None:
        self.activity = Activity()
        self._settings = settings
        self._health = health
        self._admit = admit
        self._closing = asyncio.Event()
        self._readers = 0

    def places(self) -> Iterator[Place]:
        """All that is to be served."""
        page = (_STATIC / "page.html").read_bytes()
        page = page.replace(b"{{language}}", self._settings.language.encode())
        yield Place("/console", _served(page, ".html"), open=True)
        yield Place("/console/", _to_the_page, open=True)
        for file in _STATIC.iterdir():
            suffix = file.name[file.name.rfind(".") :]
            if file.name != "page.html" and suffix in _CONTENT_TYPES:
                yield Place(f"/console/{file.name}", _served(file.read_bytes(), suffix), open=True)
        yield Place("/console/events", self._events, open=False)

    def close(self) -> None:
        """End the streams."""
        self._closing.set()

    async def _events(self, request: web.Request, grant: Grant | None) -> web.StreamResponse:
        del grant
        if self._readers >= _MOST_READERS:
            raise Busy()
        response = web.StreamResponse(headers=_EVENTS_HEADERS)
        self._readers += 1
        try:
            await response.prepare(request)
            if request.method != "HEAD":
                await self._tell(request, response)
        except (ConnectionError, Unauthorized):
            # They went away, or their key was taken back: the stream just ends.
            pass
        except TimeoutError:
            # What is still to be written would wait for them again.
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._readers -= 1
        return response

    async def _tell(self, request: web.Request, response: web.StreamResponse) -> None:
        """Send the history at once, then an event a second.

        Raises:
            ConnectionError, TimeoutError: the reader is gone.
            Unauthorized: the key is no longer one of ours.
        """
        follower = self.activity.follow()
        kind = "history"
        while not self._closing.is_set():
            # Anew each time: keys may be read again while someone watches.
            event = self._event(kind, follower, self._admit(request))
            async with asyncio.timeout(_WRITE_SECONDS):
                await response.write(event)
            kind = "second"
            await self._second_over()

    async def _second_over(self) -> None:
        left = self.activity.second_left() + _AFTER_THE_SECOND
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._closing.wait()

    def _event(self, kind: str, follower: Follower, grant: Grant | None) -> bytes:
        news = follower.news()
        body = {
            "second": news.second,
            "time": news.time,
            "window": news.window,
            "seconds": news.seconds,
            "requests": [seen for seen in news.requests if _may_see(grant, seen)],
            "health": self._health(),
            "instance": self._settings.instance,
            "workers": self._settings.workers,
        }
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(body))


def _may_see(grant: Grant | None, seen: AnsweredRequest) -> bool:
    """Whether a key may be told of a request: what it may not do itself, it is not told of."""
    if grant is None:
        return True
    if grant.devices is not None and seen.device_uuid is None:
        return False
    try:
        grant.check(seen.operation, seen.device_uuid)
    except Forbidden:
        return False
    return True


def _served(body: bytes, suffix: str) -> Handler:
    headers = {**_PAGE_HEADERS, "Content-Type": _CONTENT_TYPES[suffix]}

    async def serve(request: web.Request, grant: Grant | None) -> web.StreamResponse:
        del request, grant
        return web.Response(body=body, headers=headers)

    return serve


async def _to_the_page(request: web.Request, grant: Grant | None) -> web.StreamResponse:
    """`/console/` is where people land; relative, so that it holds behind a proxy's prefix too."""
    del request, grant
    return web.Response(status=308, headers={"Location": "../console"})
