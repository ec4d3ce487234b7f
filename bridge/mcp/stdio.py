"""`run.py mcp`: an MCP server on standard input and output, which asks a running bridge over MQTT.

Standard output carries the protocol and nothing else; the log goes to standard error.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, cast

from ..client import BridgeClient, CallError
from ..devices.models import JsonObject
from ..link import BrokerAddress
from ..settings import Settings
from . import NotInstalled, check_installed

if TYPE_CHECKING:
    from anyio import AsyncFile

    from .server import Context

_UNAVAILABLE = 503


async def serve(settings: Settings, client_level: str | None) -> int:
    """Serve until standard input ends or a signal comes; the exit status.

    What a model has asked for until then goes on at the bridge, only nobody hears the answer.
    """
    try:
        check_installed()
    except NotInstalled as missing:
        print(f"mcp: {missing.detail('en')}", file=sys.stderr)
        return 2
    from mcp.server.stdio import stdio_server

    from .server import make_server

    async with AsyncExitStack() as connection:
        asker = _Asker(settings, client_level, connection)
        # The bridge decides; what is offered goes by the same setting here, which asks nobody.
        may_list = settings.device_list == "open"
        server = make_server(settings, asker, lambda _: may_list)
        # The SDK reads lines from whatever yields them; its own reader can't be interrupted.
        lines = cast("AsyncFile[str]", _Lines())
        async with stdio_server(stdin=lines) as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())
    return 0


class _Asker:
    """Asks the bridge, over one connection that is made when the first question comes.

    A client starts us when its own program starts, and shows our tools or an error for good: a
    broker that is away for the moment must not decide that.
    """

    def __init__(
        self, settings: Settings, client_level: str | None, connection: AsyncExitStack
    ) -> None:
        self._client = BridgeClient(
            BrokerAddress.of(settings),
            prefix=settings.mqtt_topic_prefix,
            client_level=client_level,
        )
        self._connection = connection
        self._connecting = asyncio.Lock()
        self._connected = False

    async def __call__(self, operation: str, fields: JsonObject, _: "Context") -> JsonObject:
        try:
            await self._connect()
            return await self._client.request(operation, fields)
        except CallError as error:
            return {"code": _UNAVAILABLE, "detail": str(error)}

    async def _connect(self) -> None:
        async with self._connecting:
            if not self._connected:
                await self._connection.enter_async_context(self._client)
                self._connected = True


class _Lines:
    """The lines of standard input, until it ends or a signal tells us to.

    A thread that reads from a terminal or a pipe can't be woken. This one is left behind.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[str]:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):
                self._loop.add_signal_handler(number, self._lines.put_nowait, None)
        # Of its own, since the interpreter's could not be closed while the thread reads from it.
        own = os.dup(0)
        threading.Thread(target=self._read, args=(own,), name="stdin", daemon=True).start()
        while (line := await self._lines.get()) is not None:
            yield line

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as stdin:
            for line in stdin:
                self._put(line)
        self._put(None)

    def _put(self, line: str | None) -> None:
        # The loop may have been closed meanwhile: then nobody waits for the line.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
