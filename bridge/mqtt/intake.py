"""Requests from the broker: dropped by a rule, or answered, and acknowledged in order of receipt.

A request's way: `receive`, `_serve` (admit, read, answer), `Replier.send`, `Deliveries.settle`.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from ..core.admission import WAIT_SECONDS
from ..core.dispatcher import Admitted, Dispatcher
from ..core.replies import Reply
from ..errors import Busy
from ..link import Link, packets
from ..observability.logs import printable
from ..observability.metrics import Metrics
from .addressing import Addressing, Dropped
from .deliveries import Deliveries, Delivery
from .replier import Replier
from .reply_address import ReplyAddress

logger = logging.getLogger(__name__)

# Dropped retained requests are logged once in so many seconds.
_LOG_SECONDS = 60.0


class Intake:
    def __init__(
        self,
        *,
        addressing: Addressing,
        dispatcher: Dispatcher,
        replier: Replier,
        deliveries: Deliveries,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._addressing = addressing
        self._dispatcher = dispatcher
        self._replier = replier
        self._deliveries = deliveries
        self._metrics = metrics
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._logged = -_LOG_SECONDS
        self._is_open = True

    @property
    def serving(self) -> set[asyncio.Task[None]]:
        return set(self._tasks)

    def stop(self) -> None:
        """Take no more: what comes is not acknowledged, and so comes again to the next start."""
        self._is_open = False

    async def close(self) -> None:
        """Cancel the requests that are still being answered."""
        self.stop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def receive(self, link: Link, message: packets.Message) -> None:
        """Take one message; called as it is read, so that order of receipt is order of work."""
        if not self._is_open:
            return
        delivery = self._deliveries.arrived(link, message)
        if delivery is None:
            return
        if message.retain:
            self._log_retained(message)
            self._drop("retained", delivery)
            return
        if link.is_congested:
            # Its reply would wait behind all of these: nobody waits so long.
            self._drop("congested", delivery)
            return
        if self._is_rejected(delivery, message):
            return
        task = self._loop.create_task(self._serve(delivery, message), name="mqtt request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _is_rejected(self, delivery: Delivery, message: packets.Message) -> bool:
        """Reject a request that has waited longer for its turn than one may wait for a place.

        More comes then than we can do, and what we do is better done for those who still wait.
        Without a task: in a flood there are more of these than of anything else.
        """
        if self._clock() - message.read <= WAIT_SECONDS:
            return False
        try:
            request, address = self._addressing.read(message)
        except Dropped as dropped:
            self._drop(dropped.reason, delivery)
            return True
        takes_place = self._dispatcher.takes_place("mqtt", request.operation)
        if request.refusal is not None or not takes_place:
            return False
        self._replier.post(self._dispatcher.reject(request, Busy()), address, delivery)
        return True

    async def _serve(self, delivery: Delivery, message: packets.Message) -> None:
        operation = self._addressing.operation(message)
        admitted = Admitted(self._dispatcher, "mqtt", operation, message.came, message.size)
        try:
            async with admitted:
                reply, address = await self._answer(admitted, message, delivery)
                await self._replier.send(reply, address, delivery)
        except Dropped as dropped:
            self._drop(dropped.reason, delivery)
        except Exception:
            # A mistake of ours; unacknowledged, it would hold up all acknowledgements after it.
            logger.exception("a request could not be answered")
            self._drop("internal_error", delivery)

    async def _answer(
        self, admitted: Admitted, message: packets.Message, delivery: Delivery
    ) -> tuple[Reply, ReplyAddress]:
        """The reply and its address; nobody keeps the request while the reply waits to leave."""
        request, address = self._addressing.read(message)
        on_begun = partial(self._deliveries.settle, delivery)
        return await admitted.answer(request, on_begun), address

    def _drop(self, reason: str, delivery: Delivery) -> None:
        self._metrics.dropped(reason)
        self._deliveries.settle(delivery)

    def _log_retained(self, message: packets.Message) -> None:
        now = self._clock()
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            logger.warning(
                "a retained request was dropped: publish requests without the retain flag",
                extra={"topic": printable(message.topic)},
            )
