"""What a link needs of the event loop."""

import asyncio
import socket


def check(loop: asyncio.AbstractEventLoop) -> None:
    """Raise RuntimeError if the loop can't watch a socket, as Windows' `ProactorEventLoop`."""
    with socket.socket() as probe:
        try:
            loop.add_reader(probe, lambda: None)
            loop.remove_reader(probe)
        except NotImplementedError:
            raise RuntimeError(
                f"{type(loop).__name__} can't watch a socket (no add_reader); start the program by "
                "asyncio.Runner(loop_factory=asyncio.SelectorEventLoop), or use bridge.client.sync"
            ) from None
