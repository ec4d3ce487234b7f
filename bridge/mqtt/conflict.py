"""Another client with our client id: the two throw each other out for ever."""

import logging

from ..link import SESSION_TAKEN_OVER, LinkError

logger = logging.getLogger(__name__)

# A connection that lasts less than this, so often in a row, was closed for another client's sake.
_SHORT_LIVED_SECONDS, _SHORT_LIVED_IN_A_ROW = 5.0, 3


class NameConflict:
    """Seen by how our connections end.

    MQTT 5 brokers say so (0x8E). Others, and Mosquitto 2.0.11, just close the connection: again and
    again, a moment after each login.
    """

    def __init__(self, instance: str) -> None:
        self._instance = instance
        # How many connections in a row were closed a moment after their login.
        self._short_lived = 0

    def is_told(self, error: LinkError, lasted: float) -> bool:
        """Whether a connection ended by it, which is logged then.

        Args:
            lasted: how long the connection stood (seconds).
        """
        self._short_lived = self._short_lived + 1 if lasted < _SHORT_LIVED_SECONDS else 0
        if error.reason != SESSION_TAKEN_OVER and self._short_lived != _SHORT_LIVED_IN_A_ROW:
            return False
        logger.error(
            "another client connects as %r and the broker closes our connection; "
            "give each bridge a MQTT_INSTANCE of its own",
            self._instance,
        )
        return True
