"""Bodies of HTTP requests: plain JSON, and declared as such."""

from aiohttp import hdrs
from multidict import CIMultiDictProxy

from .errors import Text, UnsupportedMediaType

_JSON = "application/json"
_IDENTITY = "identity"


class EncodedBody(UnsupportedMediaType):
    """Inflated, a few bytes may be any number of them."""

    text = Text(
        "不接受压缩或编码过的请求体；请去掉 Content-Encoding，直接发送 JSON",
        "No compressed or otherwise encoded body is taken: send the JSON as it is, without "
        "Content-Encoding",
    )


def check_media_type(headers: CIMultiDictProxy[str]) -> None:
    """Whether a body is declared to be plain JSON.

    Raises:
        UnsupportedMediaType: it is declared as something else, or as encoded.
    """
    # Not aiohttp's `content_type`: it reads parameters as those of an e-mail are read, on which a
    # header of 8 KiB can spend half a second.
    declared = headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0]
    if declared.strip(" \t").lower() != _JSON:
        raise UnsupportedMediaType()
    codings = headers.getall(hdrs.CONTENT_ENCODING, ())
    if any(coding.lower() != _IDENTITY for coding in codings):
        raise EncodedBody()
