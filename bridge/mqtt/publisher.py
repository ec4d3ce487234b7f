"""Commands on their way out, for all transports; see `core.context.Publisher`."""

import asyncio
from collections.abc import Callable, Generator
from typing import Any

from ..errors import MqttUnavailable, OutcomeUnknown, RequestTimeout
from ..link import ExpiredBeforeSentError, LinkError, NotSentError
from .session import Session


class CommandPublisher:
    """Publishes commands on the session's connection."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def publish_command(
        self, topic: str, payload: bytes, expires: float, on_left: Callable[[], None]
    ) -> "_Acknowledgement":
        """See `Publisher.publish_command`."""
        link = self._session.link
        if link is None:
            raise MqttUnavailable()
        try:
            acknowledged = link.publish(
                topic, payload, qos=1, expires=expires, never_late=True, on_left=on_left
            )
        except LinkError:
            raise MqttUnavailable() from None
        assert acknowledged is not None
        return _Acknowledgement(acknowledged)


class _Acknowledgement:
    """A command's PUBACK, to be awaited or not; one that does not come is told by our errors."""

    __slots__ = ("_acknowledged",)

    def __init__(self, acknowledged: "asyncio.Future[int]") -> None:
        self._acknowledged = acknowledged

    def __await__(self) -> Generator[Any, None, int]:
        try:
            return (yield from self._acknowledged.__await__())
        except ExpiredBeforeSentError:
            raise RequestTimeout() from None
        except NotSentError:
            raise MqttUnavailable() from None
        except LinkError:
            raise OutcomeUnknown() from None

    def cancel(self) -> bool:
        return self._acknowledged.cancel()
