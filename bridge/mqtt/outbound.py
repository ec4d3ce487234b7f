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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .. import wire
from ..link import REFUSED_FROM, BrokerAddress, Link, LinkError
from ..logs import printable
from ..settings import Settings

logger = logging.getLogger(__name__)

# How many further connections there are. Not fewer where the quota is large: a busy Mosquitto reads
# one packet in turn from each connection, whose share of its time is thus one among those who ask.
_LINKS = 8
# How many messages wait for acknowledgements before there is more than one connection, and how many
# are so few that one would do.
_CLOGGED, _FEW = 256, 64
# They are closed when one would have done for so long. They are opened again after a pause at the
# soonest, and after a longer one where the broker had no room for them (seconds).
_IDLE_SECONDS, _LOOK_SECONDS = 60.0, 1.0
_PAUSE_SECONDS, _LONG_PAUSE_SECONDS = 5.0, 60.0
# A broker that names its clients by itself takes all of ours for one and the same client, and ends
# the main connection as another opens. That shows at once (seconds); and what shows twice in a row
# is no accident.
_SUSPICIOUS_SECONDS = 2.0
_SUSPICIONS = 2


@dataclass(slots=True)
class _Way:
    """The connection by which a device's commands leave just now."""

    link: Link
    is_further: bool
    unacknowledged: int = 0


class Outbound:
    """Chooses the connection for each message; opens further ones, and closes them again."""

    def __init__(self, settings: Settings, instance: str) -> None:
        self._settings = settings
        self._instance = instance
        self._further: list[Link] = []
        # They are no longer needed, and closed when all that they carry has arrived.
        self._closing: list[Link] = []
        self._owner: asyncio.Task[None] | None = None
        # Before which none is opened, and up to when opening one may be why the main one is lost.
        # On 3.1.1 the broker could not say that it lets only the main one publish.
        self._not_before = -math.inf if settings.mqtt_protocol == "5" else math.inf
        self._suspicious_until = self._needed = -math.inf
        self._suspicions = 0
        # Some brokers know us by our client id, and refuse what comes by another.
        self._commands_by_main = False
        self._ways: dict[str, _Way] = {}

    def for_reply(self, main: Link) -> Link:
        """The connection for a reply at QoS 1: a further one, where there are any."""
        if not self._further and main.backlog > _CLOGGED:
            self._open_soon()
        return self._least_laden(main)

    def for_command(self, main: Link, topic: str) -> Link:
        """As `for_reply`; but while others to its topic are under way it follows them.

        So they stay in order.
        """
        way = self._ways.get(topic)
        if way is not None and not way.link.lost.done():
            return way.link
        return main if self._commands_by_main else self._least_laden(main)

    def under_way(self, topic: str, link: Link) -> Callable[[int | None], None]:
        """Note that a command leaves by this connection; to be told when that is settled."""
        way = self._ways.get(topic)
        if way is None or way.link is not link:
            way = self._ways[topic] = _Way(link, link in self._further)
        way.unacknowledged += 1
        return partial(self._settled, topic, way)

    def main_lost(self) -> bool:
        """Note that the main connection was lost; whether a further one may be why."""
        if time.monotonic() > self._suspicious_until:
            return False
        self._suspicions += 1
        if self._suspicions == _SUSPICIONS:
            self._not_before = math.inf
            logger.warning(
                "the broker ends our connection when we open further ones; "
                "we do so no more, and a flood of requests is answered slowly"
            )
        return True

    def known_by_client_id(self) -> None:
        """Close the further ones for good: the broker refuses by them what it takes by the main."""
        if self._not_before < math.inf:
            self._not_before = math.inf
            logger.warning(
                "the broker lets only our first connection publish; we open no further ones, "
                "and a flood of requests is answered slowly"
            )
            self._needed = -math.inf

    async def close(self) -> None:
        """Close the further ones, and with them what they have not brought out."""
        self._not_before = math.inf
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.gather(self._owner, return_exceptions=True)

    def _settled(self, topic: str, way: _Way, reason: int | None) -> None:
        way.unacknowledged -= 1
        if not way.unacknowledged and self._ways.get(topic) is way:
            del self._ways[topic]
        if reason is not None and reason >= REFUSED_FROM and way.is_further:
            # It may be for another reason; then this costs no more than time in a flood.
            self._commands_by_main = True

    def _least_laden(self, main: Link) -> Link:
        living = [link for link in self._further if not link.lost.done()]
        if not living:
            return main
        link = min(living, key=lambda further: further.backlog)
        if link.backlog * len(living) > _FEW:
            self._needed = time.monotonic()
        return link

    # ---- further connections --------------------------------------------------------------------

    def _open_soon(self) -> None:
        now = time.monotonic()
        if now < self._not_before:
            return
        self._needed = now
        if self._closing:
            self._further, self._closing = self._closing, []
        elif self._owner is None:
            self._not_before = now + _PAUSE_SECONDS
            self._owner = asyncio.get_running_loop().create_task(self._keep(), name="mqtt outbound")

    async def _keep(self) -> None:
        """Open them, and close them when they are needed no longer."""
        try:
            if await self._open():
                while self._further:
                    await self._while_needed()
                    self._further, self._closing = [], self._further
                    await self._while_closing()
        finally:
            links = [*self._further, *self._closing]
            self._further, self._closing = [], []
            await asyncio.gather(*(link.close() for link in links))
            self._owner = None

    async def _while_needed(self) -> None:
        while self._further and time.monotonic() - self._needed < _IDLE_SECONDS:
            await asyncio.wait({link.lost for link in self._further}, timeout=_LOOK_SECONDS)
            if time.monotonic() > self._suspicious_until:
                # The broker has borne with them.
                self._suspicions = 0

    async def _while_closing(self) -> None:
        """Wait until nothing is under way by these, nor has to follow what was."""
        while living := [link for link in self._closing if not link.lost.done()]:
            followed = {id(way.link) for way in self._ways.values()}
            if not any(link.backlog or id(link) in followed for link in living):
                return
            await asyncio.wait({link.lost for link in living}, timeout=_LOOK_SECONDS / 10)

    async def _open(self) -> bool:
        """Whether all could be opened: where the broker has no room, others need what there is."""
        for number in range(1, _LINKS + 1):
            self._suspicious_until = math.inf
            try:
                link = await self._opened(f"{self._instance}-out-{number}")
            except (LinkError, OSError) as error:
                self._not_before += _LONG_PAUSE_SECONDS
                logger.warning(
                    "a further connection to the broker failed: %s",
                    printable(str(error)),
                    extra={"further": number - 1},
                )
                return False
            finally:
                self._suspicious_until = time.monotonic() + _SUSPICIOUS_SECONDS
            self._further.append(link)
            link.lost.add_done_callback(partial(self._forget, link))
        logger.info("messages leave by further connections", extra={"further": _LINKS})
        return True

    async def _opened(self, identifier: str) -> Link:
        link = Link(
            BrokerAddress.of(self._settings),
            identifier=identifier,
            on_message=_ignore,
            # Of no use here, but one without would end the main one's session on a broker that
            # takes the two for one client.
            session_expiry=self._settings.mqtt_session_expiry,
        )
        await link.open()
        return link

    def _forget(self, link: Link, _: "asyncio.Future[LinkError]") -> None:
        if link in self._further:
            self._further.remove(link)


def _ignore(_: Link, message: wire.Message) -> None:
    """Take no message there: nothing was subscribed to."""
    logger.debug("an unexpected message on %s", printable(message.topic))
