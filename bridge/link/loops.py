"""What a link needs of the event loop."""

import asyncio
import socket


def check(loop: asyncio.AbstractEventLoop) -> None:
    """Check that the loop can watch a socket.

    Raises:
        RuntimeError: it can't, as Windows' own (`ProactorEventLoop`).
    """
    with socket.socket() as probe:
        try:
            loop.add_reader(probe, lambda: None)
            loop.remove_reader(probe)
        except NotImplementedError:
            raise RuntimeError(
                f"{type(loop).__name__} can't watch a socket (no add_reader); start the program by "
                "asyncio.Runner(loop_factory=asyncio.SelectorEventLoop), or use bridge.client.sync"
            ) from None
