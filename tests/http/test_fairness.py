"""Many busy connections leave others their turn: accepting, and what takes long to make."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import ExitStack

import aiohttp
import pytest
import uvloop
from aiohttp import web

from bridge.http.coalesced import Coalesced
from bridge.http.server import Server
from tests.http.test_attacks import hello
from tests.http.test_server import get, on_error
from tests.lab.bridge import Bridge
from tests.lab.servers import LOOPBACK, free_port

WAITING = 256


@pytest.mark.parametrize("host", [LOOPBACK, "localhost", ""])
@pytest.mark.parametrize("reuse_port", [False, True])
def test_many_connections_are_accepted_in_one_turn_of_the_loop(host, reuse_port):
    """uvloop accepts one a turn by each listening socket, and a turn of a busy bridge is long."""

    async def turns_until_all_are_served() -> int:
        served = 0

        async def count(request: web.Request) -> web.StreamResponse:
            nonlocal served
            served += 1
            return await hello(request)

        app = web.Application()
        app.router.add_get("/", count)
        server = Server(app, on_error=on_error, access_log=None)
        port = free_port()
        await server.start(host, port, reuse_port=reuse_port)
        turns = 0
        with ExitStack() as stack:
            # The kernel accepts them, and keeps what they send.
            for _ in range(WAITING):
                client = stack.enter_context(socket.create_connection((LOOPBACK, port)))
                client.send(get("/"))
            async with asyncio.timeout(10):
                while served < WAITING:
                    await asyncio.sleep(0)
                    turns += 1
        await server.close(within=0.1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, port)).close()
        return turns

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        turns = runner.run(turns_until_all_are_served())
    assert turns < WAITING / 4


class Source:
    """Numbers, as bytes; fails while it is `broken`."""

    def __init__(self) -> None:
        self.made = 0
        self.broken = False

    def __call__(self) -> bytes:
        self.made += 1
        if self.broken:
            raise ZeroDivisionError
        return str(self.made).encode()


async def test_those_who_ask_soon_after_one_another_share_what_is_made_after_they_asked():
    source = Source()
    ask = Coalesced(source)
    assert await ask() == b"1"
    waiting = [asyncio.create_task(ask()) for _ in range(100)]
    await asyncio.sleep(0)
    assert source.made == 1
    assert set(await asyncio.gather(*waiting)) == {b"2"}
    # They were answered by one that was made before this one asks.
    assert await ask() == b"3"


async def test_an_error_reaches_all_who_wait_and_none_who_ask_later():
    source = Source()
    ask = Coalesced(source)
    await ask()
    source.broken = True
    outcomes = await asyncio.gather(*(ask() for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError] * 3
    source.broken = False
    assert await ask() == b"3"


async def test_one_who_leaves_takes_nothing_from_the_others():
    ask = Coalesced(Source())
    await ask()
    leaver, other = asyncio.create_task(ask()), asyncio.create_task(ask())
    await asyncio.sleep(0)
    leaver.cancel()
    assert await other == b"2"
    assert leaver.cancelled()


async def test_metrics_are_made_once_for_all_who_ask_at_the_same_time(bridge: Bridge):
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(bridge.url, connector=connections) as session:

        async def ask() -> str:
            async with session.get("/metrics") as answer:
                assert answer.status == 200
                return await answer.text()

        began = time.monotonic()
        answers = await asyncio.gather(*(ask() for _ in range(200)))
        seconds = time.monotonic() - began
    # Each making tells the processor time of the process.
    assert len(set(answers)) <= 2 + seconds / 0.05
