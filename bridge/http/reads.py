"""What is read from a connection at a time: bounded, for a connection may keep that much unparsed.

uvloop reads 64,000 bytes, asyncio 256 KiB. They may hold several requests and most of a head, and
a connection keeps them while its parser is paused.
"""

import asyncio

READ_BYTES = 4 * 1024


def read_buffer() -> memoryview:
    """A buffer for all connections of a loop: it is filled and emptied in one turn."""
    return memoryview(bytearray(READ_BYTES))


class BoundedReads(asyncio.BufferedProtocol):
    """Passes what a connection receives to its protocol, at most `READ_BYTES` at a time."""

    __slots__ = ("_buffer", "_protocol")

    def __init__(self, protocol: asyncio.Protocol, buffer: memoryview) -> None:
        self._protocol = protocol
        self._buffer = buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.data_received(bytes(self._buffer[:nbytes]))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._protocol.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
