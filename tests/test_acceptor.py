"""Accepting connections: many in one turn of the loop, and on, when descriptors have run out."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import uvloop

from bridge.acceptor import Acceptor
from tests.lab.servers import LOOPBACK, free_port


class Greeter(asyncio.Protocol):
    """Says hello, and counts how many it has greeted."""

    greeted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Greeter.greeted += 1
        transport.write(b"hello")  # type: ignore[attr-defined]


@pytest.fixture
async def acceptor() -> AsyncIterator[tuple[Acceptor, int]]:
    Greeter.greeted = 0
    acceptor, port = Acceptor(Greeter), free_port()
    await acceptor.listen(LOOPBACK, port, reuse_port=False)
    yield acceptor, port
    acceptor.close()


@contextmanager
def connected(port: int, count: int) -> Iterator[list[socket.socket]]:
    """So many clients that the kernel has connected; nobody need have accepted them."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((LOOPBACK, port), timeout=10))
            for _ in range(count)
        ]


async def greeted(count: int) -> None:
    async with asyncio.timeout(10):
        while Greeter.greeted < count:
            await asyncio.sleep(0.01)


def test_many_are_accepted_in_one_turn_of_the_loop_that_we_serve_with():
    async def serve() -> int:
        Greeter.greeted = 0
        acceptor, port = Acceptor(Greeter), free_port()
        await acceptor.listen(LOOPBACK, port, reuse_port=False)
        turns = 0
        with connected(port, 300):
            while Greeter.greeted < 300:
                await asyncio.sleep(0)
                turns += 1
        acceptor.close()
        return turns

    assert uvloop.run(serve()) < 100


async def test_connection_gets_its_protocol(acceptor):
    _, port = acceptor
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
    writer.close()
    await writer.wait_closed()


async def test_closed_one_takes_no_more(acceptor):
    closed, port = acceptor
    closed.close()
    with pytest.raises(OSError):
        await asyncio.open_connection(LOOPBACK, port)


async def test_taken_port_is_told(acceptor):
    _, port = acceptor
    with pytest.raises(OSError):
        await Acceptor(Greeter).listen(LOOPBACK, port, reuse_port=False)


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_when_descriptors_have_run_out_it_goes_on_as_soon_as_there_are_some(acceptor, caplog):
    _, port = acceptor
    with connected(port, 3):
        with no_more_descriptors():
            async with asyncio.timeout(10):
                while "no connection can be accepted" not in caplog.text:
                    await asyncio.sleep(0.01)
            assert Greeter.greeted < 3
        await greeted(3)
