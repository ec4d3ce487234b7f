"""How boards and platform are connected: MQTT 3.1.1, and again whenever the connection is lost."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from ..link import BrokerAddress, Link, LinkError, packets
from .loopback import LOOPBACK

_RECONNECT_SECONDS = 1.0


async def stay_connected(
    port: int,
    identifier: str,
    filters: Sequence[str],
    *,
    on_message: Callable[[Link, packets.Message], None],
    live: Callable[[Link], Awaitable[None]],
) -> None:
    """Run `live` on connections that are subscribed to `filters`, until cancelled.

    `live` ends, or raises `LinkError`, when its connection is lost.
    """
    while True:
        link = Link(
            BrokerAddress(LOOPBACK, port, version5=False),
            identifier=identifier,
            on_message=on_message,
        )
        # A task of its own, which no cancellation of ours reaches: before Python 3.12 the
        # `asyncio.wait_for` on which aiomqtt builds may swallow one, and we would live on.
        opening = asyncio.create_task(_open(link, filters), name=f"connect {identifier}")
        try:
            await asyncio.shield(opening)
            await live(link)
        except LinkError:
            # The bridge loses its own connection too, and logs it.
            pass
        finally:
            await asyncio.gather(opening, return_exceptions=True)
            await link.close()
        await asyncio.sleep(_RECONNECT_SECONDS)


async def _open(link: Link, filters: Sequence[str]) -> None:
    await link.open()
    await link.subscribe(filters)
