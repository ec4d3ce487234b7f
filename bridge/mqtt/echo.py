"""A message that we send to ourselves, to learn what this connection's session delivers."""

import asyncio
import os
from contextlib import suppress

import orjson

from ..link import Link
from ..link.packets import Message
from ..link.topics import Topics

# A message of QoS 0 may be dropped where the broker has much to send: so it is sent again.
_TRIES, _TRY_SECONDS = 4, 0.25


class Echo:
    """Is sent on `topic`, at QoS 0: it is not held up by requests that are not acknowledged yet."""

    def __init__(self, topics: Topics, topic: str) -> None:
        self.topic = topic
        self._statuses = topics.statuses
        self._payload: bytes | None = None
        # By which subscription it is to come.
        self._identifier: int | None = None
        self._heard = asyncio.Event()
        # Whether it came by any subscription.
        self._came = False

    def takes(self, message: Message) -> bool:
        """Whether a message is the one that was sent."""
        if message.payload != self._payload or message.topic != self.topic:
            return False
        self._came = True
        if self._identifier is None or self._identifier in message.subscription_identifiers:
            self._heard.set()
        return True

    async def returns(self, link: Link, *, identifier: int | None = None) -> bool:
        """Whether it comes back, by the subscription with this identifier if there is one.

        Raises:
            LinkError: the connection was lost.
        """
        self._payload = orjson.dumps({"status": "offline", "check": os.urandom(8).hex()})
        self._identifier = identifier
        self._heard.clear()
        self._came = False
        # A bridge without its database subscribes to these, and would hear it by that.
        await link.unsubscribe([self._statuses])
        for _ in range(_TRIES):
            link.publish(self.topic, self._payload, qos=0)
            with suppress(TimeoutError):
                async with asyncio.timeout(_TRY_SECONDS):
                    await self._heard.wait()
                    return True
            if self._came:
                break
        return False
