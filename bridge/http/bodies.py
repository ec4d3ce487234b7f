"""Bodies of HTTP requests: JSON, and declared as such (RFC 6839 for `+json`)."""

import asyncio

from aiohttp import hdrs, web
from multidict import CIMultiDictProxy

from ..core.deadlines import Limit
from ..errors import (
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


async def json_body(request: web.Request, limit: int, in_time: Limit) -> bytes:
    """A body that is declared to be plain JSON; not yet parsed.

    Raises:
        UnsupportedMediaType: it is declared as something else, or as encoded.
        PayloadTooLarge: it has more than `limit` bytes.
        RequestTimeout: it did not arrive in time.
        MalformedRequest: it broke off, its encoding is wrong, or it has too many chunks.
    """
    _check_media_type(request.headers)
    if (request.content_length or 0) > limit:
        raise PayloadTooLarge(limit=limit)
    try:
        with in_time:
            return await _read(request, limit)
    except TimeoutError:
        raise RequestTimeout() from None
    except CLIENT_FAULTS:
        raise MalformedRequest(reason=NOT_HTTP) from None


async def _read(request: web.Request, limit: int) -> bytes:
    body = bytearray()
    chunks = 0
    # Not `iter_chunks`: where there is no body, it never ends.
    while not request.content.at_eof():
        part, ends_chunk = await request.content.readchunk()
        body += part
        chunks += ends_chunk
        if len(body) > limit:
            raise PayloadTooLarge(limit=limit)
        if chunks > max(_MOST_CHUNKS, limit // _SMALL_CHUNK):
            raise MalformedRequest(reason=_TOO_MANY_CHUNKS)
        if ends_chunk and chunks % _CHUNKS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return bytes(body)


def _check_media_type(headers: CIMultiDictProxy[str]) -> None:
    # Not aiohttp's `content_type`: it reads parameters as those of an e-mail are read, on which a
    # header of 8 KiB can spend half a second.
    declared = headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip(" \t").lower()
    if declared != _JSON and not (declared.endswith("+json") and "/" in declared):
        raise UnsupportedMediaType()
    codings = headers.getall(hdrs.CONTENT_ENCODING, ())
    if any(coding.lower() != _IDENTITY for coding in codings):
        raise EncodedBody()
