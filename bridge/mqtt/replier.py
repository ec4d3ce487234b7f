"""Replies on their way out: published, acknowledged, and then their requests settled.

A reply whose connection was lost before its PUBACK is published again on the next one, alone: if
that connection is lost too, the reply is what the broker hangs up on, and it is given up.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from ..core.deadlines import Deadlines
from ..core.replies import Reply, reply_to_error
from ..errors import PayloadTooLarge
from ..link import REFUSED_FROM, Link, LinkError, NotSentError
from ..observability.logs import printable
from ..observability.metrics import Metrics
from ..settings import Settings
from .deliveries import Deliveries, Delivery
from .reply_address import ReplyAddress, properties
from .session import Session

logger = logging.getLogger(__name__)

# How long a reply waits for a connection to come back, at the least (seconds).
_RECONNECT_SECONDS = 30.0
# How long a request counts as in flight whose reply the broker does not take (seconds).
_LEAVE_SECONDS = 1.0
# While no more replies than this wait, the messages that they answer are not worth forgetting.
_MANY_REPLIES = 256


class Replier:
    def __init__(
        self,
        settings: Settings,
        session: Session,
        deliveries: Deliveries,
        *,
        deadlines: Deadlines,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._session = session
        self._deliveries = deliveries
        self._deadlines = deadlines
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        # Replies that wait for their PUBACK, and those that are published again.
        self._unacknowledged: set[asyncio.Future[int]] = set()
        self._again: set[asyncio.Task[None]] = set()
        # Replies that lost their connection are published one by one.
        self._one_by_one = asyncio.Lock()
        self._closed = False

    @property
    def owes(self) -> set[asyncio.Future[Any]]:
        return {*self._unacknowledged, *self._again}

    async def close(self) -> None:
        """Cancel the replies that wait for another try."""
        self._closed = True
        again = list(self._again)
        for task in again:
            task.cancel()
        await asyncio.gather(*again, return_exceptions=True)

    async def send(self, reply: Reply, address: ReplyAddress, delivery: Delivery) -> None:
        """Publish a reply; returns when it has left, or after a second."""
        departure = _Departure()
        acknowledged = self.post(reply, address, delivery, departure.note)
        if acknowledged is None or departure.has_left:
            return
        departure.left = self._loop.create_future()
        acknowledged.add_done_callback(departure.end)
        entry = self._deadlines.call_at(self._loop.time() + _LEAVE_SECONDS, departure.end)
        try:
            await departure.left
        finally:
            self._deadlines.cancel(entry)

    def post(
        self,
        reply: Reply,
        address: ReplyAddress,
        delivery: Delivery,
        on_left: Callable[[], None] | None = None,
    ) -> "asyncio.Future[int] | None":
        """Publish a reply without waiting; the PUBACK to come, if one is."""
        try:
            link = self._session.link
            if link is None:
                raise LinkError("not connected")
            acknowledged = self._publish(link, reply, address, on_left=on_left)
        except (LinkError, PayloadTooLarge):
            self._begin(self._deliver(reply, address, delivery))
            return None
        if acknowledged is None:
            self._deliveries.settle(delivery)
            return None
        if len(self._unacknowledged) > _MANY_REPLIES:
            delivery.forget_message()
        self._unacknowledged.add(acknowledged)
        acknowledged.add_done_callback(partial(self._acknowledged, reply, address, delivery))
        return acknowledged

    def _acknowledged(
        self,
        reply: Reply,
        address: ReplyAddress,
        delivery: Delivery,
        acknowledged: "asyncio.Future[int]",
    ) -> None:
        self._unacknowledged.discard(acknowledged)
        error = acknowledged.exception()
        if error is None:
            self._note_reason(acknowledged.result(), address)
            self._deliveries.settle(delivery)
        elif not self._closed:
            lost = not isinstance(error, NotSentError)
            self._begin(self._deliver(reply, address, delivery, lost_before=lost))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work, name="mqtt reply")
        self._again.add(task)
        task.add_done_callback(self._again.discard)

    async def _deliver(
        self,
        reply: Reply,
        address: ReplyAddress,
        delivery: Delivery,
        *,
        lost_before: bool = False,
    ) -> None:
        """Publish a reply that could not just be sent: later, or with less in it."""
        wait = max(_RECONNECT_SECONDS, self._settings.mqtt_session_expiry)
        give_up = min(self._loop.time() + wait, address.expires or float("inf"))
        bare = False
        try:
            async with self._one_by_one:
                while not await self._is_delivered(reply, address, give_up, lost_before, bare=bare):
                    if bare:
                        raise TimeoutError
                    # Correlation Data may be so long that nothing else fits beside it.
                    bare = reply.code == PayloadTooLarge.code
                    reply = reply_to_error(
                        PayloadTooLarge(limit=self._settings.max_payload), self._settings.language
                    )
        except TimeoutError:
            self._drop(address, "undeliverable")
        self._deliveries.settle(delivery)

    async def _is_delivered(
        self,
        reply: Reply,
        address: ReplyAddress,
        give_up: float,
        lost_before: bool,
        *,
        bare: bool,
    ) -> bool:
        """Publish on this connection or the next; false if the broker takes no such packet.

        Raises:
            TimeoutError: there was no connection in time, or two were lost by it.
        """
        while True:
            link = await self._session.next_link(give_up)
            try:
                acknowledged = self._publish(link, reply, address, bare=bare)
                if acknowledged is not None:
                    self._note_reason(await acknowledged, address)
                return True
            except PayloadTooLarge:
                return False
            except NotSentError:
                self._session.give_up(link)
            except LinkError:
                self._session.give_up(link)
                if lost_before:
                    raise TimeoutError from None
                lost_before = True

    def _publish(
        self,
        link: Link,
        reply: Reply,
        address: ReplyAddress,
        *,
        on_left: Callable[[], None] | None = None,
        bare: bool = False,
    ) -> "asyncio.Future[int] | None":
        return link.publish(
            address.topic,
            b"" if bare else reply.encode(address.request_id),
            qos=address.qos,
            properties=properties(reply, address, bare=bare),
            correlation=address.correlation,
            expires=address.expires,
            on_left=on_left,
        )

    def _note_reason(self, reason: int, address: ReplyAddress) -> None:
        if reason >= REFUSED_FROM:
            self._drop(address, "reply_refused", f"0x{reason:02X}")

    def _drop(self, address: ReplyAddress, why: str, reason: str | None = None) -> None:
        self._metrics.dropped(why)
        logger.warning(
            "a reply could not be delivered",
            extra={"why": why, "topic": printable(address.topic), "reason": reason},
        )


class _Departure:
    """Whether a reply has left, for one who may wait for it."""

    __slots__ = ("has_left", "left")

    def __init__(self) -> None:
        self.has_left = False
        self.left: asyncio.Future[None] | None = None

    def note(self) -> None:
        self.has_left = True
        self.end()

    def end(self, *_: object) -> None:
        if self.left is not None and not self.left.done():
            self.left.set_result(None)
