"""Our turns in the share: left to other bridges while our database is away.

A bridge that can only answer 503 unsubscribes if another one is online in its share, and subscribes
again when its database is back, or when no other is left. It says `offline` meanwhile: of two that
share a database, the second one then sees that it is alone, and stays. A bridge that serves says so
every few seconds: what the broker has retained may be of one that is gone.
"""

import asyncio
import logging
import random
from collections.abc import Callable

from ..link import Link, LinkError
from ..link.topics import Topics
from .session import Session

logger = logging.getLogger(__name__)

# How long the database may be away; a little more for some, so that not all leave at once.
_AWAY_SECONDS, _SPREAD_SECONDS = 3.0, 1.5
_LOOK_SECONDS = 0.5
_ANNOUNCE_SECONDS = 5.0


class Turns:
    """Leaves our turns in the share, and takes them again.

    Args:
        is_able: whether the database is there.
    """

    def __init__(self, topics: Topics, session: Session, is_able: Callable[[], bool]) -> None:
        self._topics = topics
        self._session = session
        self._is_able = is_able
        # When the turns are to be left, on the loop's clock; None while the database is there.
        self._due: float | None = None
        # When we say next that we serve, on the loop's clock.
        self._announces = 0.0
        # The connections on which we hear who is online, and have left our turns.
        self._hearing: Link | None = None
        self._left: Link | None = None

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS * random.uniform(0.7, 1.3))  # noqa: S311  no secret
            link = self._session.link
            if link is None or not self._session.ready:
                continue
            try:
                if self._is_able():
                    await self._come_back(link)
                else:
                    await self._look_for_others(link)
            except LinkError as error:
                # The next connection subscribes by itself.
                logger.debug("turns stay as they are: %s", error)

    async def _come_back(self, link: Link) -> None:
        self._due = None
        if self._left is link:
            await self._take(link)
        if self._hearing is link:
            self._hearing = None
            await link.unsubscribe([self._topics.statuses])
        now = asyncio.get_running_loop().time()
        if now >= self._announces:
            self._announces = now + _ANNOUNCE_SECONDS
            await self._session.announce(link)

    async def _look_for_others(self, link: Link) -> None:
        now = asyncio.get_running_loop().time()
        if self._due is None:
            self._due = now + _AWAY_SECONDS + random.uniform(0, _SPREAD_SECONDS)  # noqa: S311
        if now < self._due:
            return
        online = self._session.others.online
        if self._hearing is not link:
            online.clear()
            await link.subscribe([self._topics.statuses], retained=True)
            self._hearing = link
        elif online and self._left is not link:
            await self._session.leave_turns(link)
            self._left = link
            logger.warning("the database is away: requests are left to %s", min(online))
        elif not online and self._left is link:
            await self._take(link)

    async def _take(self, link: Link) -> None:
        await self._session.take_turns(link)
        self._left = None
        logger.warning("requests are taken again")
