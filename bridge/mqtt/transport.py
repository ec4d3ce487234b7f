"""The MQTT transport as a whole, from the first connection to the last acknowledgement."""

import asyncio
from typing import Any

from ..core.dispatcher import Dispatcher
from ..link.topics import Topics
from ..observability.metrics import Metrics
from ..settings import Settings
from .addressing import Addressing
from .deliveries import Deliveries
from .intake import Intake
from .replier import Replier
from .session import Session


class MqttTransport:
    """Serves requests over MQTT by the dispatcher; `deliveries` are those of the session.

    The session is made first, since the dispatcher publishes commands by it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        topics: Topics,
        session: Session,
        deliveries: Deliveries,
        dispatcher: Dispatcher,
        metrics: Metrics,
    ) -> None:
        self._session = session
        self._replier = Replier(
            settings, session, deliveries, deadlines=dispatcher.deadlines, metrics=metrics
        )
        self._intake = Intake(
            addressing=Addressing(topics, settings.max_payload),
            dispatcher=dispatcher,
            replier=self._replier,
            deliveries=deliveries,
            metrics=metrics,
        )
        self._stopping = self._closed = False

    async def run(self, since: str) -> None:
        """Connect and serve; while we stop, only to bring out the replies that are still owed."""
        await self._session.run(self._intake.receive, since, self._is_done)

    async def drain(self) -> None:
        """Take no new requests, and finish what is in flight; until cancelled by a deadline."""
        self._stopping = True
        if self._session.keeps_session:
            self._intake.stop()
        await self._session.stop_receiving()
        while owed := self._owed():
            await asyncio.wait(owed)

    async def close(self) -> None:
        """Cancel what is still in flight, announce `offline`, and disconnect."""
        self._stopping = self._closed = True
        await self._intake.close()
        await self._replier.close()
        await self._session.close()

    def _owed(self) -> set[asyncio.Future[Any]]:
        return {*self._intake.serving, *self._replier.owes}

    def _is_done(self) -> bool:
        return self._closed or (self._stopping and not self._owed())
