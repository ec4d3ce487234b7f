"""Sessions that workers of an earlier start have left behind, where `WORKERS` was another number.

Until the broker forgets such a session it takes turns of our share, and on MQTT 3.1.1 that may be
never. It is known by the presence that its worker has left: retained, by its name, and offline.
"""

import asyncio
import logging
from typing import Any

from ..link import BrokerAddress, Link, LinkError
from ..link.packets import Message
from ..link.topics import Topics
from ..settings import Settings
from .session import Session

logger = logging.getLogger(__name__)

_MOST_WORKERS = 64
_LOOK_SECONDS = 0.5
# Some brokers take no more in one packet.
_FILTERS_AT_ONCE = 8


class FormerWorkers:
    """Looks for them once, after the first connection; the first of several workers does so."""

    def __init__(self, settings: Settings, topics: Topics, session: Session) -> None:
        self._settings = settings
        self._session = session
        ours, number, first = settings.instance, "1", 1
        if settings.workers > 1:
            ours, _, number = settings.instance.rpartition("-")
            first = settings.workers + 1
        self._is_first = number == "1"
        names = [f"{ours}-{n}" for n in range(first, _MOST_WORKERS + 1)]
        if settings.workers > 1:
            names.append(ours)
        # By the topics of their presence.
        self._names = {f"{topics.statuses.removesuffix('+')}{name}": name for name in names}
        self._alone = ours

    async def end(self) -> None:
        """End the sessions of those that are there and offline."""
        while self._is_first:
            await asyncio.sleep(_LOOK_SECONDS)
            link = self._session.link
            if link is None or not self._session.ready:
                continue
            try:
                for topic, said in (await self._said(link)).items():
                    if self._is_left(self._names[topic], said):
                        await self._end(topic)
            except LinkError as error:
                logger.debug("former workers were not looked for: %s", error)
            return

    async def _said(self, link: Link) -> dict[str, Any]:
        """What their presence says, by its topic."""
        said = self._session.others.collect(self._names)
        topics = list(self._names)
        for at in range(0, len(topics), _FILTERS_AT_ONCE):
            await link.subscribe(topics[at : at + _FILTERS_AT_ONCE], retained=True)
        await asyncio.sleep(_LOOK_SECONDS)
        for at in range(0, len(topics), _FILTERS_AT_ONCE):
            await link.unsubscribe(topics[at : at + _FILTERS_AT_ONCE])
        return said

    def _is_left(self, name: str, said: Any) -> bool:
        """Whether it has gone, and was one of several workers, or alone as we are several.

        Else it is a bridge that just bears such a name.
        """
        if not isinstance(said, dict) or said.get("status") != "offline":
            return False
        return ("workers" in said) != (name == self._alone)

    async def _end(self, topic: str) -> None:
        """Take its place with a clean session, which ends with its connection."""
        name = self._names[topic]
        logger.warning("the session of the former worker %r is ended", name)
        try:
            address = BrokerAddress.of(self._settings)
        except OSError as unusable:
            raise LinkError(str(unusable)) from None
        link = Link(address, identifier=name, on_message=_ignore)
        await link.open()
        acknowledged = link.publish(topic, b"", qos=1, retain=True)
        assert acknowledged is not None
        await acknowledged
        await link.close()


def _ignore(_link: Link, _message: Message) -> None:
    """What came for the former worker is not ours to answer."""
