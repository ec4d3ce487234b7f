"""Where one request ends and the next begins, in what a connection receives.

aiohttp's parser is given one head or one body at a time. So it is known which bytes are a request
line, where raw UTF-8 is mended, and no body is ever taken for one; and nothing is lost that its
parser (of aiohttp 3.14) would lose in one piece with more: good requests before a bad one, and what
stands behind an upgrade that it does not know.
"""

import re
from typing import NamedTuple
from urllib.parse import quote_from_bytes

from aiohttp import StreamReader
from aiohttp.http import RawRequestMessage

_BLANK_LINE = b"\r\n\r\n"


# A request whose head the parser has read.
Begun = tuple[RawRequestMessage, StreamReader]


class Framing:
    """How far one connection's stream of requests has been read, piece by piece."""

    __slots__ = ("_body", "_ending", "_line_read", "_owed", "known")

    def __init__(self) -> None:
        # False once it is not known where requests begin; nothing is cut or mended any more then.
        self.known = True
        # Whether the request line of the head that is arriving has been passed on whole.
        self._line_read = False
        # The last bytes of that head, or of a body in chunks: either ends with a blank line.
        self._ending = b""
        # How much of a body is still to come; None where its chunks tell.
        self._owed: int | None = 0
        self._body: StreamReader | None = None

    @property
    def between(self) -> bool:
        """Whether all that came was whole requests, as far as is known."""
        return self.known and self._owed == 0 and not self._ending

    def end_of_piece(self, data: bytes, start: int) -> int:
        """Where the head or body that goes on, or begins, at `start` ends in `data`."""
        if not self.known or self._owed is None:
            return len(data)
        if self._owed:
            return min(len(data), start + self._owed)
        return self._end_of_head(data, start)

    def mended(self, piece: bytes) -> bytes:
        """The piece with its part of a request line in ASCII.

        All that is ASCII stays as it was, odd or not: judging it is the parser's.
        """
        if self._line_read or self._owed != 0 or not self.known:
            return piece
        if piece.isascii():
            self._line_read = b"\n" in piece
            return piece
        line, newline, rest = piece.partition(b"\n")
        self._line_read = bool(newline)
        encoded = quote_from_bytes(line, safe=bytes(range(128))).encode("ascii")
        return b"".join((encoded, newline, rest))

    def took(self, piece: bytes, begun: Begun | None) -> None:
        """Note that the parser took a piece, in which this request began, if any did."""
        if not self.known:
            return
        if self._owed:
            self._owed -= len(piece)
            self.known = begun is None
        elif self._owed is None:
            self._took_chunks(piece, begun)
        elif begun is None:
            self._took_part_of_a_head(piece)
        else:
            self.known = self._ended_with(piece)
            self._expect_body(begun)

    def _end_of_head(self, data: bytes, start: int) -> int:
        # The blank line may have begun in the piece before.
        seam = self._ending[-3:]
        if seam and (at := (seam + data[start : start + 3]).find(_BLANK_LINE)) >= 0:
            return start + at + len(_BLANK_LINE) - len(seam)
        at = data.find(_BLANK_LINE, start)
        return len(data) if at < 0 else at + len(_BLANK_LINE)

    def _took_part_of_a_head(self, piece: bytes) -> None:
        if self._ending or piece.strip(b"\r\n"):
            self.known = not self._ended_with(piece)
        else:
            # Blank lines may stand before a request (RFC 9112, section 2.2).
            self._line_read = False

    def _took_chunks(self, piece: bytes, begun: Begun | None) -> None:
        whole = self._ended_with(piece)
        assert self._body is not None
        if self._body.is_eof():
            # With the beginning of another request behind it, nothing tells where that began.
            self.known = whole and begun is None
            self._expect(0)
        else:
            self.known = begun is None

    def _expect_body(self, begun: Begun) -> None:
        message, body = begun
        if body.is_eof():
            # There is none.
            self._expect(0)
            return
        length = int(message.headers.get("Content-Length", 0))
        self._expect(None if message.chunked else length)
        self._body = body

    def _expect(self, owed: int | None) -> None:
        self._owed, self._ending, self._line_read = owed, b"", False

    def _ended_with(self, piece: bytes) -> bool:
        """Whether a blank line ends what came so far, with this piece."""
        self._ending = (self._ending + piece[-4:])[-4:]
        return self._ending == _BLANK_LINE


# A request line, and fields each by itself on a line; in nothing but characters that belong there.
_HEAD = re.compile(
    rb"[\x20-\x7e\x80-\xff]+\r\n(?:[a-z0-9!#$%&'*+.^_`|~-]+:[\t\x20-\x7e\x80-\xff]*\r\n)+"
)
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r")
# What makes more of a message, or of its connection, than a head and a body of known length.
_SPECIAL = re.compile(
    rb"\n(?:connection:(?![ \t]*keep-alive[ \t]*\r)|expect:|transfer-encoding:|upgrade:)"
)


class Plain(NamedTuple):
    """A request that HTTP/1.1 reads in one way only: a head, and a body of known length."""

    # In lower case.
    head: bytes
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> "Plain | None":
        """What `data` is, if it is one such request, whole, and nothing else.

        Anything odd is left to the real parser: a line end by half, a line that goes on in the
        next, a length that is said twice or is other than what came, and whatever changes how the
        connection goes on.
        """
        head, blank, body = data.partition(_BLANK_LINE)
        head = (head + b"\r\n").lower()
        if not blank or not _HEAD.fullmatch(head) or _SPECIAL.search(head):
            return None
        lengths = _LENGTH.findall(head)
        if len(lengths) > 1 or len(lengths) != head.count(b"\ncontent-length:"):
            return None
        whole = head.count(b"\nhost:") == 1 and len(body) == sum(map(int, lengths))
        return cls(head, body) if whole else None
