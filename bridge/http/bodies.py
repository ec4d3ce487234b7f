"""Bodies of HTTP requests: JSON, and declared as such (RFC 6839 for `+json`)."""

import asyncio

from aiohttp import hdrs, web
from multidict import CIMultiDictProxy

from ..core.deadlines import Limit
from ..errors import (
    Busy,
    MalformedRequest,
    PayloadTooLarge,
    RequestTimeout,
    Text,
    UnsupportedMediaType,
)
from .server import CLIENT_FAULTS, NOT_HTTP

_JSON = "application/json"
_IDENTITY = "identity"
# Each chunk costs time, however small. A body may have so many, or where more than 64 KiB are taken
# as many as if each had so many bytes.
_MOST_CHUNKS = 1024
_SMALL_CHUNK = 64
_CHUNKS_AT_ONCE = 64
# Bodies that are longer than this and have not come whole share so much memory (bytes).
_SMALL = 4 * 1024
_ALL_LARGE = 16 * 1024 * 1024
_FEWEST_LARGE = 16
_TOO_MANY_CHUNKS = Text(
    "请求体被分成了过多的小块；请用更大的块或 Content-Length 发送",
    "the body has too many small chunks; send larger ones, or a Content-Length",
)


class EncodedBody(UnsupportedMediaType):
    """Inflated, a few bytes may be any number of them."""

    text = Text(
        "不接受压缩或编码过的请求体；请去掉 Content-Encoding，直接发送 JSON",
        "No compressed or otherwise encoded body is taken: send the JSON as it is, without "
        "Content-Encoding",
    )


class Bodies:
    """Reads bodies of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._most_chunks = max(_MOST_CHUNKS, limit // _SMALL_CHUNK)
        self._most_large = max(_FEWEST_LARGE, _ALL_LARGE // limit)
        # Those whose large bodies are on their way, by id; the first has been so for longest.
        self._large: dict[int, web.Request] = {}

    async def json(self, request: web.Request, in_time: Limit) -> bytes:
        """A body that is declared to be plain JSON; not yet parsed.

        Raises:
            UnsupportedMediaType: it is declared as something else, or as encoded.
            PayloadTooLarge: it has more than `limit` bytes.
            RequestTimeout: it did not arrive in time.
            MalformedRequest: it broke off, its encoding is wrong, or it has too many chunks.
            Busy: it is large, and had been on its way longest when there was no room for another.
        """
        _check_media_type(request.headers)
        if (request.content_length or 0) > self._limit:
            raise PayloadTooLarge(limit=self._limit)
        body = bytearray()
        try:
            with in_time:
                await self._read(request, body)
            return bytes(body)
        except TimeoutError:
            raise RequestTimeout() from None
        except CLIENT_FAULTS:
            raise MalformedRequest(reason=NOT_HTTP) from None
        except Busy:
            # Else aiohttp meets it when it reads on before it closes the connection.
            request.content.set_exception(None)  # type: ignore[arg-type]
            raise
        finally:
            self._large.pop(id(request), None)
            # Whoever holds the exception holds no body.
            body.clear()

    async def _read(self, request: web.Request, body: bytearray) -> None:
        content, chunks = request.content, 0
        # Not `iter_chunks`: where there is no body, it never ends.
        while not content.at_eof():
            part, ends_chunk = await content.readchunk()
            body += part
            chunks += ends_chunk
            if len(body) > _SMALL and id(request) not in self._large and not content.at_eof():
                self._make_room()
                self._large[id(request)] = request
            if len(body) > self._limit:
                raise PayloadTooLarge(limit=self._limit)
            if chunks > self._most_chunks:
                raise MalformedRequest(reason=_TOO_MANY_CHUNKS)
            if ends_chunk and chunks % _CHUNKS_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _make_room(self) -> None:
        """Give up the large body that has been on its way longest, if there are too many.

        A client that stalls keeps nobody out: what others send arrives in less time.
        """
        if len(self._large) >= self._most_large:
            oldest = self._large.pop(next(iter(self._large)))
            oldest.content.set_exception(Busy())


def _check_media_type(headers: CIMultiDictProxy[str]) -> None:
    # Not aiohttp's `content_type`: it reads parameters as those of an e-mail are read, on which a
    # header of 8 KiB can spend half a second.
    declared = headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip(" \t").lower()
    if declared != _JSON and not (declared.endswith("+json") and "/" in declared):
        raise UnsupportedMediaType()
    codings = headers.getall(hdrs.CONTENT_ENCODING, ())
    if any(coding.lower() != _IDENTITY for coding in codings):
        raise EncodedBody()
