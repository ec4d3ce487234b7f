"""Reading a socket that does not block, in the clear or by TLS."""

import socket
import ssl

# What a turn of the loop reads at the most.
READ_MOST = 1024 * 1024
WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_READ_BYTES = 256 * 1024
_TLS_RECORD = 16 * 1024


def received(connected: socket.socket) -> bytes:
    """What the socket holds, up to `READ_MOST`; nothing at the end of the stream.

    Raises:
        OSError: the connection is broken, or (of `WOULD_BLOCK`) there is nothing yet.
    """
    piece = data = connected.recv(_READ_BYTES)
    full = _TLS_RECORD if isinstance(connected, ssl.SSLSocket) else _READ_BYTES
    while len(piece) >= full and len(data) < READ_MOST:
        try:
            piece = connected.recv(_READ_BYTES)
        except WOULD_BLOCK:
            break
        data += piece
    return data
