"""Which messages came by our own subscriptions, where that can be told.

A login that knows our client id can connect with it and subscribe in our session. The broker then
delivers each request once more. On MQTT 5 it names the identifier of the subscription by which it
delivers (MQTT 5.0, section 3.3.2.3.8): what comes without ours came by such a subscription.
"""

import asyncio
import hashlib
import logging

from ..link import Link, LinkError
from ..link.packets import Message
from ..link.topics import Topics
from ..observability.metrics import Metrics
from ..settings import Settings
from .echo import Echo

logger = logging.getLogger(__name__)

_LARGEST_IDENTIFIER = 268_435_455
# Who sees the identifier should not learn the password from it.
_ROUNDS = 100_000
# Some brokers close the connection instead of refusing a subscription or a publish.
_MOST_PROBES = 3


class OwnSubscriptions:
    """Our subscriptions to requests.

    A session that is new holds these only. What comes in it shows whether the broker sends the
    identifier; in a session that was kept, `probe` does.
    """

    def __init__(self, settings: Settings, topics: Topics, echo: Echo, metrics: Metrics) -> None:
        # The same after a restart, and known to nobody who does not know the password.
        digest = hashlib.pbkdf2_hmac(
            "sha256",
            settings.mqtt_password.get_secret_value().encode(),
            "\n".join((settings.instance, *topics.filters)).encode(),
            _ROUNDS,
            dklen=16,
        )
        self.identifier = int.from_bytes(digest[:8]) % _LARGEST_IDENTIFIER + 1
        # Of the marker and the probe: what others can publish to must not tell them the first one.
        self.probes_identifier = int.from_bytes(digest[8:]) % _LARGEST_IDENTIFIER + 1
        self._instance = settings.instance
        # Of the kind of our subscriptions to requests; where these are plain, the marker is one.
        shared = topics.filters[0].partition(topics.requests)[0]
        self._probe = [shared + echo.topic] if shared else []
        self._echo = echo
        self._metrics = metrics
        # Whether the broker sends the identifier; None while nothing tells.
        self._is_sent: bool | None = None
        self._probes = 0
        # Whether the session holds a subscription that is not ours.
        self.are_broken = asyncio.Event()

    async def probe(self, link: Link) -> None:
        """Learn whether the broker sends the identifier, in a session that was kept.

        Raises:
            LinkError: the connection was lost.
        """
        is_possible = link.version5 and link.limits.subscription_identifiers
        if self._is_sent is not None or not is_possible or self._probes == _MOST_PROBES:
            return
        self._probes += 1
        try:
            if self._probe:
                await link.subscribe(self._probe, identifier=self.probes_identifier)
            if await self._echo.returns(link, identifier=self.probes_identifier):
                self._is_sent = True
            if self._probe:
                await link.unsubscribe(self._probe)
        except LinkError:
            # A refusal leaves it unknown.
            if link.lost.done():
                raise

    def delivered(self, link: Link, message: Message) -> bool:
        """Whether a request came by one of them, or nothing tells."""
        is_named = self.identifier in message.subscription_identifiers
        if not link.session_present:
            # A broker that leaves it out once is not relied on again.
            self._is_sent = is_named and self._is_sent is not False
            return True
        if self._is_sent is None and is_named:
            self._is_sent = True
        return is_named or not self._is_sent

    def drop(self, link: Link) -> None:
        """Count a message that did not; its session is to be ended, unless that is a new one."""
        self._metrics.dropped("foreign_subscription")
        if link.session_present and not self.are_broken.is_set():
            self.are_broken.set()
            logger.warning(
                "a message came by a subscription that is not ours: another client has used the "
                "client id %r; the session is ended",
                self._instance,
            )
