"""The connections by which replies and commands leave: one, or more where that takes too few.

How many messages at QoS 1 a broker takes unacknowledged is its Receive Maximum (MQTT 5.0, section
4.9): 20 for a Mosquitto as it comes. When requests come faster than 20 messages leave in a round
trip, replies pile up here until the broker, whose requests they hold up, drops some. But the quota
is a connection's own, and further ones add theirs.
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

# So many messages at a time are enough, and so many further connections are the most.
_ENOUGH = 160
_MOST_LINKS = 8
# How many messages wait for the broker before there is more than one connection.
_CLOGGED = 256
# The others are closed when they had nothing to do for so long, which is looked at so often; and
# they are not opened again sooner than this (seconds).
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
        self._began = self._used = -math.inf
        self._suspicions = 0
        self._ways: dict[str, _Way] = {}

    def for_reply(self, main: Link) -> Link:
        """The connection for a reply: the main one, while half of its quota is free.

        The main one also takes presence and, until others have proved themselves, commands.
        """
        if main.backlog * 2 < main.quota:
            return main
        if not self._further and main.backlog > _CLOGGED and main.quota < _ENOUGH:
            self._begin(math.ceil(_ENOUGH / main.quota))
        return self._least_laden(main)

    def for_command(self, main: Link, topic: str) -> Link:
        """The connection for a command: the one on which others to its topic are under way.

        So they stay in order.
        """
        way = self._ways.get(topic)
        if way is not None and not way.link.lost.done():
            return way.link
        if main.backlog * 2 < main.quota:
            return main
        return self._least_laden(main)

    def under_way(self, topic: str, link: Link, acknowledged: "asyncio.Future[int]") -> None:
        """Note that a command leaves by this connection, until it is acknowledged."""
        if link.quota >= _ENOUGH:
            # There will be no other.
            return
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

    def _least_laden(self, main: Link) -> Link:
        if not self._further:
            return main
        self._used = time.monotonic()
        return min(self._further, key=lambda link: link.backlog)

    def _arrived(self, topic: str, way: _Way, _: "asyncio.Future[int]") -> None:
        way.unacknowledged -= 1
        if not way.unacknowledged and self._ways.get(topic) is way:
            del self._ways[topic]

    # ---- further connections --------------------------------------------------------------------

    def _begin(self, wanted: int) -> None:
        now = time.monotonic()
        rested = now - self._began > _PAUSE_SECONDS
        if self._owner is None and rested and self._suspicions < _SUSPICIONS:
            self._began = self._used = now
            self._owner = asyncio.get_running_loop().create_task(
                self._keep(min(_MOST_LINKS, wanted)), name="mqtt outbound"
            )

    async def _keep(self, count: int) -> None:
        """Open so many, and close them when they are needed no longer."""
        try:
            await self._open(count)
            while self._further and time.monotonic() - self._used < _IDLE_SECONDS:
                await asyncio.wait({link.lost for link in self._further}, timeout=_LOOK_SECONDS)
        finally:
            links, self._further = self._further, []
            await asyncio.gather(*(link.close() for link in links))
            self._owner = None

    async def _open(self, count: int) -> None:
        for number in range(1, count + 1):
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
        logger.info("messages leave by further connections", extra={"further": count})

    def _forget(self, link: Link, _: "asyncio.Future[LinkError]") -> None:
        if link in self._further:
            self._further.remove(link)


def _ignore(_: Link, message: wire.Message) -> None:
    """Take no message there: nothing was subscribed to."""
    logger.debug("an unexpected message on %s", printable(message.topic))
