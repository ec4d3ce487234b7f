"""Bodies of HTTP requests: plain JSON, declared as such, within the limit and in time."""

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy

from .deadlines import Limit
from .errors import MalformedRequest, PayloadTooLarge, RequestTimeout, Text, UnsupportedMediaType

NOT_HTTP = Text("不是有效的 HTTP 请求", "this is no valid HTTP request")

_JSON = "application/json"
_IDENTITY = "identity"


class EncodedBody(UnsupportedMediaType):
    """Inflated, a few bytes may be any number of them."""

    text = Text(
        "不接受压缩或编码过的请求体；请去掉 Content-Encoding，直接发送 JSON",
        "No compressed or otherwise encoded body is taken: send the JSON as it is, without "
        "Content-Encoding",
    )


async def json_body(request: web.Request, most: int, in_time: Limit) -> bytes:
    """A body that is declared to be JSON; not yet parsed.

    Raises:
        BridgeError: it is declared as something else, larger than `most`, too late, or broken off.
    """
    _check_declared(request.headers)
    try:
        with in_time:
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise PayloadTooLarge(limit=most) from None
    except TimeoutError:
        raise RequestTimeout() from None
    except (web.RequestPayloadError, HttpProcessingError, ConnectionError):
        # The last of these: the client went away amidst its body, and nobody reads the answer.
        raise MalformedRequest(reason=NOT_HTTP) from None


def _check_declared(headers: CIMultiDictProxy[str]) -> None:
    # Not aiohttp's `content_type`: it reads parameters as those of an e-mail are read, on which a
    # header of 8 KiB can spend half a second.
    declared = headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0]
    if declared.strip(" \t").lower() != _JSON:
        raise UnsupportedMediaType()
    codings = headers.getall(hdrs.CONTENT_ENCODING, ())
    if any(coding.lower() != _IDENTITY for coding in codings):
        raise EncodedBody()
