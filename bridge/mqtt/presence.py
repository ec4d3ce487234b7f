"""Our presence: a retained message that says whether we serve, and what we subscribed to."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import aiomqtt
import orjson

from .. import __version__
from ..link import REFUSED_FROM, Link, LinkError
from ..link.packets import Message
from ..link.topics import Topics

logger = logging.getLogger(__name__)


class OtherBridges:
    """Those of our share that say that they serve, as far as we have heard.

    What the broker has retained does not count: it may be of a bridge that ended with the broker.
    """

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        # The topics of their presence.
        self.online: set[str] = set()
        self._collected: dict[str, Any] = {}

    def collect(self, topics: Iterable[str]) -> dict[str, Any]:
        """What the presence on these topics says, from now on; None while it says nothing."""
        self._collected = dict.fromkeys(topics)
        return self._collected

    def hear(self, message: Message) -> None:
        """Take note of a bridge's presence."""
        said = None
        try:
            said = orjson.loads(message.payload)
            serves = said["status"] == "online" and said["subscribed"] == self._topics.digest
        except (orjson.JSONDecodeError, KeyError, TypeError):
            serves = False
        if message.topic in self._collected:
            self._collected[message.topic] = said
        if serves and message.retain:
            return
        if serves and message.topic != self._topics.presence:
            self.online.add(message.topic)
        else:
            self.online.discard(message.topic)


class Presence:
    """Announces it, and leaves a will; on a broker that retains nothing, neither."""

    def __init__(self, topics: Topics, workers: int) -> None:
        self._topics = topics
        self._workers = workers
        self._retains = True
        # The broker's last refusal that was logged.
        self._refused: int | None = None
        # When we started, in ISO 8601.
        self.since: str | None = None

    def give_up(self) -> None:
        """Announce it no more: the broker keeps no retained messages. Said once."""
        if self._retains:
            self._retains = False
            logger.warning(
                "the broker keeps no retained messages: presence is not announced; in Mosquitto, "
                "retain_available true lets it keep them"
            )

    def will(self) -> aiomqtt.Will | None:
        """What the broker publishes when we are gone; None if it keeps no retained messages."""
        if not self._retains:
            return None
        return aiomqtt.Will(self._topics.presence, self._payload("offline"), qos=1, retain=True)

    async def open_again(
        self, error: LinkError, link: Callable[[], Link], elsewhere: Callable[[], Link]
    ) -> Link:
        """Connect to a broker of MQTT 3.1.1 that hung up, without a will if that is the reason.

        It can't say that it retains nothing. One that is only starting, or a proxy without a
        broker, hangs up as well: so it must take us without a will, and again not with it.

        Args:
            elsewhere: without a will, and with a client id that leaves our session alone.

        Raises:
            LinkError: that was not the reason.
        """
        if not self._retains:
            raise error
        bare = elsewhere()
        try:
            await bare.open()
        except LinkError:
            raise error from None
        await bare.close()
        second = link()
        try:
            await second.open()
            return second
        except LinkError:
            if not second.hung_up:
                raise
        self.give_up()
        third = link()
        await third.open()
        return third

    async def announce(self, link: Link, status: str) -> None:
        """Publish `online` or `offline`, retained; a broker's refusal is only logged.

        Raises LinkError if the connection is lost.
        """
        if not self._retains:
            return
        # Before the replies that wait for a slow broker: there may be no time for all of these.
        acknowledged = link.publish(
            self._topics.presence, self._payload(status), qos=1, retain=True, never_late=True
        )
        assert acknowledged is not None
        reason = await acknowledged
        if reason < REFUSED_FROM:
            self._refused = None
        elif reason != self._refused:
            self._refused = reason
            logger.warning(
                "the broker refuses our presence on %s (reason code 0x%02X)",
                self._topics.presence,
                reason,
            )

    def _payload(self, status: str) -> bytes:
        said: dict[str, Any] = {
            "status": status,
            "version": __version__,
            "since": self.since,
            # Not the filters: who knows the share's name may take turns in it.
            "subscribed": self._topics.digest,
        }
        if self._workers > 1:
            said["workers"] = self._workers
        return orjson.dumps(said)
