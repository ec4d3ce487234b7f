"""The connection to the broker: subscribed to the reply topic, reconnecting when it is lost."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from ..link import BrokerAddress, Link, LinkError, packets
from ..link.backoff import pauses
from .errors import NotConnected

# After a lost connection the bridge may come back a little later than we do (seconds).
_SETTLING = 5.0
# "Unsupported Protocol Version" in a CONNACK: of MQTT 5.0 (section 3.2.2.2), and of 3.1.1.
_UNSUPPORTED_PROTOCOL = frozenset({0x84, 0x01})


class Connection:
    """One link after another to the same broker, from `open` until `close`."""

    def __init__(
        self,
        broker: BrokerAddress,
        *,
        identifier: str,
        reply_topic: str,
        on_message: Callable[[Link, packets.Message], None],
        may_fall_back: bool,
    ) -> None:
        self.reply_topic = reply_topic
        self._broker = broker
        # Whether MQTT 3.1.1 may be spoken with a broker that does not know MQTT 5.
        self._may_fall_back = may_fall_back and broker.version5
        self._identifier = identifier
        self._on_message = on_message
        self._link: Link | None = None
        self._linked = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._trouble = ""
        self._settled = 0.0
        self._closed = True

    async def open(self) -> None:
        """Connect; from then on the connection comes back by itself.

        The version of the protocol is settled here: a broker that hangs up later is restarting.
        Raises NotConnected if the broker can't be reached or refuses us.
        """
        try:
            link = await self._connect_in_some_version()
        except LinkError as error:
            self._trouble = str(error)
            raise self.not_connected(None) from None
        self._closed = False
        self._link = link
        self._keeping = asyncio.create_task(self._keep_connected(link), name="bridge client")

    async def close(self) -> None:
        """Disconnect; whoever waits for a link gets None."""
        self._closed = True
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait((self._keeping,))
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        self._linked.set()

    async def link(self) -> Link | None:
        """The current link, or the next one; None when closed."""
        while self._link is None or self._link.lost.done():
            if self._closed:
                return None
            self._linked.clear()
            await self._linked.wait()
        return self._link

    @property
    def is_settling(self) -> bool:
        """Whether it was lost and came back just now, so that the bridge may not be back yet."""
        return asyncio.get_running_loop().time() < self._settled

    def not_connected(self, request_id: str | None) -> NotConnected:
        return NotConnected(
            f"not connected to the MQTT broker at {self._broker.host}:{self._broker.port} "
            f"({self._trouble or 'closed'}) and nothing was executed; "
            "check that it runs, and its address, user and password",
            request_id,
        )

    async def _connect_in_some_version(self) -> Link:
        link = self._new_link()
        try:
            return await self._establish(link)
        except LinkError as error:
            if not (self._may_fall_back and _may_know_only_311(link, error)):
                raise
            refusal = error
        version5, self._broker = self._broker, replace(self._broker, version5=False)
        try:
            return await self._establish(self._new_link())
        except LinkError as error:
            # An explicit refusal tells more than a closed connection.
            if error.reason is None:
                self._broker = version5
                raise refusal from None
            raise

    def _new_link(self) -> Link:
        return Link(self._broker, identifier=self._identifier, on_message=self._on_message)

    async def _establish(self, link: Link) -> Link:
        await link.open()
        try:
            await link.subscribe([self.reply_topic])
        except (LinkError, asyncio.CancelledError):
            await link.close()
            raise
        return link

    async def _keep_connected(self, link: Link) -> None:
        while True:
            error = await asyncio.shield(link.lost)
            self._trouble = str(error)
            link = await self._reconnect()
            self._settled = asyncio.get_running_loop().time() + _SETTLING
            self._link = link
            self._linked.set()

    async def _reconnect(self) -> Link:
        for pause in pauses(0.1, 1.0):
            try:
                return await self._establish(self._new_link())
            except LinkError as error:
                self._trouble = str(error)
            await asyncio.sleep(pause)
        raise AssertionError("pauses never end")


def _may_know_only_311(link: Link, error: LinkError) -> bool:
    """Whether the broker may know 3.1.1 only: it says so, hangs up on us, or is silent."""
    if error.reason is None:
        return link.reached_broker
    return error.reason in _UNSUPPORTED_PROTOCOL
