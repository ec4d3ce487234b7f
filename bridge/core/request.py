"""One request, as a transport read it."""

import time
from typing import Literal, NamedTuple

from ..devices.models import JsonObject
from ..errors import BridgeError
from .grant import Grant

Transport = Literal["http", "mqtt", "mcp"]


class Request(NamedTuple):
    """A request. Times are on the monotonic clock, which is the loop's."""

    transport: Transport
    operation: str
    received: float
    fields: JsonObject
    # Why it is rejected, if it could not even be read.
    refusal: BridgeError | None = None
    # Over HTTP and MCP the API key's name, over MQTT the client level or else the reply topic.
    requester: str = ""
    # Whether the requester is known by name: an API key, or a client level.
    is_named: bool = False
    request_id: str | None = None
    # The id for at-most-once: Idempotency-Key or `request_id`, else Correlation Data.
    idempotency_key: str | bytes | None = None
    # From the payload, in Unix seconds.
    expires_at: float | None = None
    # From MQTT's Message Expiry.
    expires: float | None = None
    # What the API key may do; None where the broker guards, or there are no keys.
    grant: Grant | None = None
    traceparent: str | None = None

    @property
    def who(self) -> str:
        """Who asked, for the log and for ids: never the same for two requesters.

        A name and a reply topic of the same text are two.
        """
        if not self.requester:
            return self.transport
        kind = self.transport if self.is_named else f"{self.transport}-topic"
        return f"{kind}:{self.requester}"

    @property
    def share(self) -> str:
        """Whose part of what is bounded it takes; empty for all requesters without a name."""
        return self.who if self.is_named else ""

    @property
    def is_expired(self) -> bool:
        """Whether `expires_at` has passed by the wall clock; Message Expiry is not looked at."""
        return self.expires_at is not None and self.expires_at <= time.time()

    def id_property(self) -> tuple[str, str | None]:
        """The property that holds the id for at-most-once, and the id where it is text."""
        if self.request_id == self.idempotency_key:
            return "request_id", self.request_id
        if isinstance(self.idempotency_key, str):
            return "Idempotency-Key", self.idempotency_key
        return "Correlation Data", None
