"""Pages: what is read with a browser, and served as it is to all who may read it."""

from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import cache, partial
from hashlib import sha256
from typing import NamedTuple, Self

from aiohttp import hdrs, web

from ..apidocs import page
from ..core.grant import Grant
from ..errors import Unauthorized
from .answer import Answer
from .authentication import WrongKey

Handler = Callable[[web.Request, Grant | None], Awaitable[web.StreamResponse]]


class Place(NamedTuple):
    """A path that is served, with or without a trailing slash; to all if it is `open`."""

    path: str
    handler: Handler
    open: bool = False
    method: str = "GET"
    # Whether pages of other origins may read the answer, as `CORS_ORIGINS` says.
    cors: bool = False
    # Whether it is a page whose links are relative to its path.
    is_page: bool = False


class Fixed(NamedTuple):
    """What stays the same as long as we run; a browser that has it is told so."""

    body: bytes
    content_type: str
    headers: tuple[tuple[str, str], ...]
    tag: str

    @classmethod
    def of(cls, body: bytes, content_type: str, headers: Mapping[str, str]) -> Self:
        """`headers` are to say how long a browser may keep it."""
        tag = f'"{urlsafe_b64encode(sha256(body).digest()[:12]).decode()}"'
        return cls(body, content_type, (*headers.items(), (hdrs.ETAG, tag)), tag)

    def answer(self, request: web.Request, status: int = 200) -> Answer:
        if status == 200 and request.headers.get(hdrs.IF_NONE_MATCH) == self.tag:
            return Answer(304, self.content_type, b"", self.headers)
        return Answer(status, self.content_type, (self.body,), self.headers)


def fixed(read: Callable[[], Fixed]) -> Handler:
    """A handler that serves what `read` gives; it is read once, when it is first asked for."""
    # Not in a thread: of 3,000 that ask at once each would have a copy of its own.
    read = cache(read)

    async def serve(request: web.Request, _: Grant | None) -> web.StreamResponse:
        return read().answer(request)

    return serve


def redirect(path: str) -> Handler:
    """A handler for a page's path with a trailing slash.

    The redirect is relative, so that it holds behind a proxy's prefix too.
    """

    async def to_page(_: web.Request, __: Grant | None) -> web.StreamResponse:
        return Answer(308, "text/plain", b"", ((hdrs.LOCATION, f"..{path}"),))

    return to_page


def swagger_ui(admit: Callable[[web.Request], Grant | None]) -> Iterator[Place]:
    """The page that shows the API documents, and its files."""

    async def page_for(request: web.Request, _: Grant | None) -> web.StreamResponse:
        # A browser can't show a key when it opens a page: with the 401 it gets the page all the
        # same, which holds nothing yet and asks for the key.
        try:
            admit(request)
        except WrongKey:
            raise
        except Unauthorized:
            if "text/html" not in request.headers.get(hdrs.ACCEPT, ""):
                raise
            return _swagger_page().answer(request, 401)
        return _swagger_page().answer(request)

    yield Place("/docs", page_for, open=True, is_page=True)
    for name, content_type in page.FILES.items():
        yield Place(f"/docs/{name}", fixed(partial(_swagger_file, name, content_type)))


@cache
def _swagger_page() -> Fixed:
    headers = {
        "Content-Security-Policy": page.security_policy(),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Fixed.of(page.html(), "text/html; charset=utf-8", headers)


def _swagger_file(name: str, content_type: str) -> Fixed:
    return Fixed.of(page.file(name), content_type, {"Cache-Control": "private, no-cache"})
