"""Whether the broker delivers by our shared subscription, where its CONNACK does not tell.

Brokers of 3.1.1 without shared subscriptions take `$share/…` for a literal topic: they grant it and
never deliver. So we send ourselves a request, by the share and then by a plain subscription. It is
for `health` and on a topic of our own, which the sample ACL allows: if it reaches another member of
the share, that one answers it, and nobody hears the reply.
"""

import asyncio
import logging
import os
import re
from collections.abc import Sequence

import orjson

from ..link import Link, LinkError
from ..link.packets import Message
from ..settings import Settings

logger = logging.getLogger(__name__)

_UNSHARED = ", set MQTT_SHARE= (empty)"
NO_SHARES = f"the broker has no shared subscriptions{_UNSHARED}"

# What a broker under load may take; one that takes longer is asked again on the next connection.
_DELIVERY_SECONDS = 1.0
# Some brokers close the connection instead of refusing a publish; others just restart.
_MOST_LOSSES = 2


class DeliveryCheck:
    """Run once the subscriptions stand, until one of its runs has ended without a fault."""

    def __init__(self, settings: Settings) -> None:
        user = settings.mqtt_username or ""
        name = user if re.fullmatch(r"[^+#/\x00-\x1f]+", user) else settings.instance
        self._topic = f"{settings.mqtt_topic_prefix}/request/health/{name}"
        self._shared = f"$share/{settings.mqtt_share}/{self._topic}"
        self._is_due = bool(settings.mqtt_share) and settings.mqtt_protocol != "5"
        self._losses = 0
        self._payload: bytes | None = None
        self._heard = asyncio.Event()

    def takes(self, message: Message) -> bool:
        """Whether a message is ours, and no request."""
        if message.payload != self._payload or message.topic != self._topic:
            return False
        self._heard.set()
        return True

    async def subscribe(self, link: Link, filters: Sequence[str], identifier: int | None) -> None:
        """Subscribe.

        Raises:
            LinkError: the broker refused a filter, or the connection was lost.
        """
        try:
            await link.subscribe(filters, identifier=identifier)
        except LinkError as error:
            if not (self._is_due and link.lost.done()):
                raise
            # As ejabberd does on 3.1.1.
            raise LinkError(
                f"{error} on our shared subscription; if it has none{_UNSHARED}"
            ) from None

    async def run(self, link: Link) -> None:
        """Check it, where that is due.

        Raises:
            LinkError: the share delivers nothing, or the connection was lost.
        """
        if not self._is_due:
            return
        try:
            delivered = await self._delivers(link, self._shared)
            if not delivered and await self._delivers(link, self._topic):
                raise LinkError(NO_SHARES)
        except LinkError as error:
            if not link.lost.done() and str(error) == NO_SHARES:
                raise
            delivered = False
            if link.lost.done():
                self._losses += 1
                if self._losses < _MOST_LOSSES:
                    raise
        self._is_due = False
        if not delivered:
            logger.warning(
                "that requests arrive could not be checked: the broker lets us publish no request "
                "on %s; if none arrives, set MQTT_SHARE= (empty)",
                self._topic,
            )

    async def _delivers(self, link: Link, topic_filter: str) -> bool:
        """Whether what we publish comes back by this subscription."""
        self._payload = orjson.dumps({"request_id": os.urandom(8).hex()})
        self._heard.clear()
        await link.subscribe([topic_filter])
        try:
            acknowledged = link.publish(self._topic, self._payload, qos=1, never_late=True)
            assert acknowledged is not None
            async with asyncio.timeout(_DELIVERY_SECONDS):
                await acknowledged
                await self._heard.wait()
        except TimeoutError:
            return False
        finally:
            if not link.lost.done():
                await link.unsubscribe([topic_filter])
        return True
