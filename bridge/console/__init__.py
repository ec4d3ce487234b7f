"""The console: one page on which people see what the bridge does, and what a device says.

The page, its style and its scripts hold nothing of anyone's, not even our version: they are
served to all, so that the page can ask for an API key. Everything shown on it comes from
`/console/events`, and from the operations, which the key guards. The page carries the key in a
header, which a browser's EventSource can't: it reads the stream of events with `fetch`.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files

from aiohttp import web

from ..access import Grant
from ..activity import Activity
from ..errors import Busy, Unauthorized
from ..models import Health
from ..pages import Fixed, Place, fixed
from ..settings import Settings
from ..sidecar import Answer
from .editions import Editions

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
# Timers of some loops are a millisecond early; a second must be over when it is told.
_AFTER_THE_SECOND = 0.005


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
        self._editions = Editions(self.activity, settings, health)
        self._language = settings.language.encode()
        self._admit = admit
        self._closing = asyncio.Event()
        self._readers = 0

    def places(self) -> Iterator[Place]:
        """All that is to be served."""
        yield Place("/console", fixed(self._page), open=True)
        yield Place("/console/", _to_the_page, open=True)
        for file in _STATIC.iterdir():
            suffix = file.name[file.name.rfind(".") :]
            if file.name != "page.html" and suffix in _CONTENT_TYPES:
                read = partial(_file, file.name, _CONTENT_TYPES[suffix])
                yield Place(f"/console/{file.name}", fixed(read), open=True)
        yield Place("/console/events", self._events)

    def close(self) -> None:
        """End the streams."""
        self._closing.set()

    def _page(self) -> Fixed:
        page = (_STATIC / "page.html").read_bytes().replace(b"{{language}}", self._language)
        return Fixed.of(page, _CONTENT_TYPES[".html"], _PAGE_HEADERS)

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
        finally:
            self._readers -= 1
        return response

    async def _tell(self, request: web.Request, response: web.StreamResponse) -> None:
        """Send the history at once, then an event a second; the history again if one was missed.

        Raises:
            ConnectionError: the reader is gone, or reads nothing.
            Unauthorized: the key is no longer one of ours.
        """
        told = None
        while not self._closing.is_set():
            # Anew each time: keys may be read again while someone watches.
            grant = self._admit(request)
            edition = self._editions.latest()
            if edition.number != told:
                await response.write(edition.event(grant, told))
                told = edition.number
            await self._second_over()

    async def _second_over(self) -> None:
        left = self.activity.second_left() + _AFTER_THE_SECOND
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._closing.wait()


def _file(name: str, content_type: str) -> Fixed:
    return Fixed.of((_STATIC / name).read_bytes(), content_type, _PAGE_HEADERS)


async def _to_the_page(request: web.Request, grant: Grant | None) -> web.StreamResponse:
    """`/console/` is where people land; relative, so that it holds behind a proxy's prefix too."""
    del request, grant
    return Answer(308, "text/plain", b"", (("Location", "../console"),))
