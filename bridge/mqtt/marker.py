"""A subscription by which a session that the broker kept is known to be ours.

Its topic names our subscriptions, and it is placed before them, in a session that is new or known
to hold nothing else. So a session that holds it holds no other bridge's subscriptions, nor those of
our own former settings.

On MQTT 5 it is looked for by removing it. A spare one stays meanwhile: without it, the session of a
bridge that is killed at that moment would be lost, and with it all that waits there.
"""

import hashlib
import logging
import os

from ..link import Link, LinkError
from ..link.topics import Topics
from ..settings import Settings
from .echo import Echo

logger = logging.getLogger(__name__)

# Reason codes of an UNSUBACK.
_SUCCESS, _NO_SUBSCRIPTION_EXISTED = 0x00, 0x11
# Some brokers close the connection instead of refusing a subscription or a publish.
_MOST_LOSSES = 2


class SessionMarker:
    """Is placed in our session, and looked for in a session that the broker kept."""

    def __init__(self, settings: Settings, topics: Topics) -> None:
        # By another protocol the retain flag of live messages is lost.
        held = "\n".join((settings.mqtt_protocol, *topics.filters))
        # Beside the presence: the documented ACL lets us read and write one level there.
        self._topic = f"{topics.presence}-{hashlib.sha256(held.encode()).hexdigest()[:16]}"
        self._spare = f"{self._topic}-spare"
        self.echo = Echo(topics, self._topic)
        # Whether it was placed and not removed since; unknown on 3.1.1.
        self._is_placed = False
        self._losses = 0

    @property
    def is_possible(self) -> bool:
        """Whether the broker has not closed connections over it."""
        return self._losses < _MOST_LOSSES

    async def place(self, link: Link, identifier: int) -> None:
        """Subscribe to it, before anything else is subscribed; a refusal is only logged.

        With an identifier, as the requests': a broker that hangs up on one shows it here.

        Raises:
            LinkError: the connection was lost.
        """
        if not self.is_possible:
            return
        try:
            places = [self._topic, self._spare] if link.version5 else [self._topic]
            await link.subscribe(places, identifier=identifier)
        except LinkError as error:
            is_lost = link.lost.done()
            self._losses += is_lost
            if not is_lost or self._losses == _MOST_LOSSES:
                logger.warning(
                    "the session can't be marked (%s): requests that wait in it while the bridge "
                    "restarts will be lost",
                    error,
                )
            if is_lost:
                raise
            return
        self._losses = 0
        self._is_placed = True

    async def is_in(self, link: Link, *, known: bool) -> bool:
        """Whether the session of this connection is ours; with MQTT 5 one is removed thereby.

        Args:
            known: whether the session was ours on the connection before.

        Raises:
            LinkError: the connection was lost.
        """
        if not link.version5:
            return known or await self._returns(link)
        if known and not self._is_placed:
            return True
        self._is_placed = False
        # The second one was never subscribed: the codes of some brokers say `success` of all.
        never = f"{self._topic}/{os.urandom(8).hex()}"
        for place in (self._topic, self._spare):
            codes = await link.unsubscribe([place, never])
            if list(codes[1:]) != [_NO_SUBSCRIPTION_EXISTED]:
                return known
            if codes[0] == _SUCCESS:
                return True
        return False

    async def _returns(self, link: Link) -> bool:
        """Whether what we publish there comes back: an UNSUBACK of 3.1.1 has no reason codes."""
        if not self.is_possible:
            return False
        try:
            return await self.echo.returns(link)
        except LinkError:
            self._losses += 1
            raise
