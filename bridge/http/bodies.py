"""Bodies of HTTP requests: JSON, and declared as such (RFC 6839 for `+json`)."""

from aiohttp import hdrs, web
from multidict import CIMultiDictProxy

from ..core.deadlines import Limit
from ..errors import Text, UnsupportedMediaType
from .server import read_body

_JSON = "application/json"
_IDENTITY = "identity"


class EncodedBody(UnsupportedMediaType):
    """Inflated, a few bytes may be any number of them."""

    text = Text(
        "不接受压缩或编码过的请求体；请去掉 Content-Encoding，直接发送 JSON",
        "No compressed or otherwise encoded body is taken: send the JSON as it is, without "
        "Content-Encoding",
    )


async def json_body(request: web.Request, limit: int, in_time: Limit) -> bytes:
    """A body that is declared to be plain JSON; not yet parsed.

    Raises UnsupportedMediaType if it is declared as something else or as encoded, and what
    `read_body` raises.
    """
    _check_media_type(request.headers)
    return await read_body(request, limit, in_time)


def _check_media_type(headers: CIMultiDictProxy[str]) -> None:
    # Not aiohttp's `content_type`: it reads parameters as those of an e-mail are read, on which a
    # header of 8 KiB can spend half a second.
    declared = headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip(" \t").lower()
    if declared != _JSON and not (declared.endswith("+json") and "/" in declared):
        raise UnsupportedMediaType()
    codings = headers.getall(hdrs.CONTENT_ENCODING, ())
    if any(coding.lower() != _IDENTITY for coding in codings):
        raise EncodedBody()
