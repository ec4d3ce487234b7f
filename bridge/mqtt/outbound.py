"""The connections by which replies and commands leave: one, or more in a flood.

Requests and the acknowledgements of what we send come by the same connection. In a flood the latter
arrive seconds late, behind requests; until then no more messages leave than the broker takes
unacknowledged (its Receive Maximum, MQTT 5.0, section 4.9: 20 for a Mosquitto as it comes). Replies
pile up, requests stay unacknowledged for want of replies, and of what is beyond 65,535 of these the
broker drops some. By connections of their own, on which nothing comes in but acknowledgements,
messages leave as fast as the broker takes them.
"""

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from functools import partial

from .. import wire
from ..link import BrokerAddress, Link, LinkError
from ..logs import printable
from ..settings import Settings

logger = logging.getLogger(__name__)

# How many further connections there are. Not fewer where the quota is large: a busy Mosquitto reads
# one packet in turn from each connection, whose share of its time is thus one among those who ask.
_LINKS = 8
# How many messages wait for acknowledgements before there is more than one connection.
_CLOGGED = 256
# The others are closed when one would have done for so long, and opened again after a pause at the
# soonest (seconds).
_IDLE_SECONDS, _LOOK_SECONDS = 60.0, 1.0
_PAUSE_SECONDS = 5.0
# A broker that names its clients by itself takes all of ours for one and the same client, and ends
# the main connection. That shows at once (seconds); and what shows twice is no accident.
_SUSPICIOUS_SECONDS = 2.0
_SUSPICIONS = 2


@dataclass(slots=True)
class _Way:
    """The connection by which a device's commands leave just now."""

    link: Link
    unacknowledged: int = 0


class Outbound:
    """Chooses the connection for each message; opens further ones, and closes them again."""

    def __init__(self, settings: Settings, instance: str) -> None:
        self._settings = settings
        self._instance = instance
        self._further: list[Link] = []
        self._owner: asyncio.Task[None] | None = None
        self._began = self._needed = -math.inf
        self._suspicions = 0
        self._ways: dict[str, _Way] = {}

    def for_reply(self, main: Link) -> Link:
        """The connection for a reply: the least laden of the further ones, where there are any."""
        if self._further:
            return self._least_laden()
        if main.backlog > _CLOGGED:
            self._begin()
        return main

    def for_command(self, main: Link, topic: str) -> Link:
        """As `for_reply`; but while others to its topic are under way it follows them.

        So they stay in order.
        """
        way = self._ways.get(topic)
        if way is not None and not way.link.lost.done():
            return way.link
        return self._least_laden() if self._further else main

    def under_way(self, topic: str, link: Link, acknowledged: "asyncio.Future[int]") -> None:
        """Note that a command leaves by this connection, until it is acknowledged."""
        way = self._ways.get(topic)
        if way is None or way.link is not link:
            way = self._ways[topic] = _Way(link)
        way.unacknowledged += 1
        acknowledged.add_done_callback(partial(self._arrived, topic, way))

    def main_lost(self) -> bool:
        """Note that the main connection was lost; whether a further one may be why."""
        if time.monotonic() - self._began > _SUSPICIOUS_SECONDS:
            return False
        self._suspicions += 1
        if self._suspicions == _SUSPICIONS:
            logger.warning(
                "the broker ends our connection when we open further ones; "
                "we do so no more, and a flood of requests is answered slowly"
            )
        return True

    async def close(self) -> None:
        """Close the further ones, and with them what they have not brought out."""
        self._suspicions = _SUSPICIONS
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)

    def _least_laden(self) -> Link:
        link = min(self._further, key=lambda further: further.backlog)
        if link.backlog * len(self._further) > _CLOGGED / 4:
            self._needed = time.monotonic()
        return link

    def _arrived(self, topic: str, way: _Way, _: "asyncio.Future[int]") -> None:
        way.unacknowledged -= 1
        if not way.unacknowledged and self._ways.get(topic) is way:
            del self._ways[topic]

    # ---- further connections --------------------------------------------------------------------

    def _begin(self) -> None:
        now = time.monotonic()
        rested = now - self._began > _PAUSE_SECONDS
        if self._owner is None and rested and self._suspicions < _SUSPICIONS:
            self._began = self._needed = now
            self._owner = asyncio.get_running_loop().create_task(self._keep(), name="mqtt outbound")

    async def _keep(self) -> None:
        """Open them, and close them when they are needed no longer."""
        opened: list[Link] = []
        try:
            await self._open()
            while self._further and time.monotonic() - self._needed < _IDLE_SECONDS:
                await asyncio.wait({link.lost for link in self._further}, timeout=_LOOK_SECONDS)
            opened, self._further = self._further, []
            await self._all_arrived(opened)
        finally:
            opened += self._further
            self._further = []
            await asyncio.gather(*(link.close() for link in opened))
            self._owner = None

    async def _all_arrived(self, links: list[Link]) -> None:
        """Wait until nothing is under way by these, nor has to follow what was."""
        while living := [link for link in links if not link.lost.done()]:
            followed = {id(way.link) for way in self._ways.values()}
            if not any(link.backlog or id(link) in followed for link in living):
                return
            await asyncio.wait({link.lost for link in living}, timeout=_LOOK_SECONDS / 10)

    async def _open(self) -> None:
        for number in range(1, _LINKS + 1):
            try:
                link = Link(
                    BrokerAddress.of(self._settings),
                    identifier=f"{self._instance}-out-{number}",
                    on_message=_ignore,
                    # Of no use here, but one without would end the main one's session on a broker
                    # that takes the two for one client.
                    session_expiry=self._settings.mqtt_session_expiry,
                )
                await link.open()
            except (LinkError, OSError) as error:
                logger.warning(
                    "a further connection to the broker failed: %s",
                    printable(str(error)),
                    extra={"further": number - 1},
                )
                return
            self._further.append(link)
            link.lost.add_done_callback(partial(self._forget, link))
        logger.info("messages leave by further connections", extra={"further": _LINKS})

    def _forget(self, link: Link, _: "asyncio.Future[LinkError]") -> None:
        if link in self._further:
            self._further.remove(link)


def _ignore(_: Link, message: wire.Message) -> None:
    """Take no message there: nothing was subscribed to."""
    logger.debug("an unexpected message on %s", printable(message.topic))
