"""Our session at the broker: connect, subscribe, announce our presence, and connect again.

A session that the broker kept holds what was subscribed before. The retained presence says what
that was: if it is not what we subscribe to now, or if nothing is known, the session is ended and
begun anew before any request of it is served.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import orjson

from ..link import SESSION_TAKEN_OVER, BrokerAddress, Link, LinkError
from ..link.backoff import pauses
from ..link.packets import Message
from ..link.topics import Topics
from ..observability.logs import printable
from ..observability.metrics import Metrics
from ..settings import Settings
from .delivery_check import NO_SHARES, DeliveryCheck
from .presence import Presence

logger = logging.getLogger(__name__)

OnMessage = Callable[[Link, Message], None]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 3.0
# A connection that lasts less than this, so often in a row, was closed for another client's sake.
_SHORT_LIVED_SECONDS, _SHORT_LIVED_IN_A_ROW = 5.0, 3
# How long the retained presence may take to arrive.
_PRESENCE_SECONDS = 1.0
_RETAIN_NOT_SUPPORTED = 0x9A
_QOS_NOT_SUPPORTED = 0x9B
_NO_QOS_1 = "the broker takes no QoS 1 (maximum_qos); set it to 1 or 2 there"


class Session:
    """Keeps us connected and subscribed, and publishes commands for all transports.

    Args:
        on_session_lost: called when the broker has no session of ours: nothing comes again.
        on_connection_lost: called when the connection is gone, and acknowledgements with it.
    """

    def __init__(
        self,
        settings: Settings,
        topics: Topics,
        metrics: Metrics,
        *,
        on_session_lost: Callable[[], None],
        on_connection_lost: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._metrics = metrics
        self._on_session_lost = on_session_lost
        self._on_connection_lost = on_connection_lost
        self._instance = settings.instance
        self._linked = asyncio.Event()
        # The last error that was logged.
        self._logged: str | None = None
        # How many connections in a row were closed a moment after their login.
        self._short_lived = 0
        # Whether the broker's session holds our subscriptions and no others.
        self._is_ours = False
        # Messages that came before that was known; None once it is.
        self._held: list[tuple[Link, Message]] | None = None
        self._presence_seen: asyncio.Future[bytes] | None = None
        self._presence = Presence(topics)
        self._delivery_check = DeliveryCheck(settings)
        self._stopping = False
        self.link: Link | None = None
        self.ready = False

    @property
    def available(self) -> bool:
        """Whether we are subscribed, and the broker answers."""
        return self.ready and self.link is not None and self.link.responsive

    @property
    def keeps_session(self) -> bool:
        """Whether the broker keeps our session over a stop."""
        return self._settings.mqtt_session_expiry > 0

    async def run(self, on_message: OnMessage, since: str, is_done: Callable[[], bool]) -> None:
        """Connect, and again whenever the connection is lost, until `is_done` or cancelled."""
        self._presence.since = since
        waits = pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        connected_before = False
        while not is_done():
            try:
                link = await self._connect(on_message)
                if connected_before:
                    self._metrics.reconnected("mqtt")
                connected_before, waits = True, pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
                connected = time.monotonic()
                error = await asyncio.shield(link.lost)
                self._check_for_conflict(error, time.monotonic() - connected)
            except LinkError as refused:
                error = refused
                if error.reason == _RETAIN_NOT_SUPPORTED:
                    self._presence.give_up()
                elif error.reason == _QOS_NOT_SUPPORTED:
                    error = LinkError(_NO_QOS_1, error.reason)
            self._disconnected(error)
            if not is_done():
                await asyncio.sleep(next(waits))

    async def stop_receiving(self) -> None:
        """Receive no more requests, where the session ends with us."""
        self._stopping = True
        if self.link is None or self.keeps_session:
            return
        try:
            await self.link.unsubscribe(self._topics.filters)
        except LinkError as error:
            logger.debug("could not unsubscribe: %s", error)

    async def close(self) -> None:
        self._stopping = True
        link, self.link = self.link, None
        self.ready = False
        if link is None:
            return
        try:
            async with asyncio.timeout(0.5):
                await self._presence.announce(link, "offline")
        except (LinkError, TimeoutError):
            logger.debug("could not say that we are offline")
        await link.close(keep_session=self.keeps_session)

    async def next_link(self, give_up: float) -> Link:
        """The connection, waited for until `give_up` on the loop's clock; then TimeoutError."""
        if self.link is None:
            async with asyncio.timeout_at(give_up):
                while self.link is None:
                    await self._linked.wait()
        return self.link

    def give_up(self, link: Link) -> None:
        """Look for the next connection from now on; `run` hears of the loss a moment later."""
        if self.link is link:
            self.link = None
            self._linked.clear()

    async def _connect(self, on_message: OnMessage) -> Link:
        link = await self._open(on_message)
        try:
            if link.session_present and not await self._holds_our_subscriptions(link):
                link = await self._begin_anew(link, on_message)
            if not link.session_present:
                # With the session the duty to acknowledge has gone; the replies still go out.
                self._on_session_lost()
            self.link = link
            self._linked.set()
            await self._take_up(link)
        except LinkError:
            # Without a DISCONNECT, which could end the session with all that it holds for us.
            await link.drop()
            raise
        held, self._held = self._held or [], None
        for source, message in held:
            on_message(source, message)
        return link

    async def _open(self, on_message: OnMessage, *, clean: bool = False) -> Link:
        try:
            address = BrokerAddress.of(self._settings)
        except OSError as unusable:
            raise LinkError(str(unusable)) from None
        self._held = []

        def receive(link: Link, message: Message) -> None:
            self._receive(link, message, on_message)

        def link() -> Link:
            return Link(
                address,
                identifier=self._instance,
                on_message=receive,
                will=self._presence.will(),
                session_expiry=self._settings.mqtt_session_expiry,
                clean=clean,
            )

        return await self._opened(address, link)

    async def _opened(self, address: BrokerAddress, link: Callable[[], Link]) -> Link:
        """An open connection; without our will, if a broker of MQTT 3.1.1 hangs up on that.

        It can't say that it retains nothing. One that is only starting, or a proxy without a
        broker, hangs up as well: so it must take us without a will, and again not with it.
        """
        first = link()
        try:
            await first.open()
            return first
        except LinkError as error:
            if address.version5 or not first.hung_up or not self._presence.will():
                raise
            try:
                await _open_without_will(address, f"{self._instance}-will")
            except LinkError:
                raise error from None
        second = link()
        try:
            await second.open()
            return second
        except LinkError:
            if not second.hung_up:
                raise
        self._presence.give_up()
        return await self._opened(address, link)

    async def _begin_anew(self, link: Link, on_message: OnMessage) -> Link:
        logger.warning(
            "the broker kept a session of %r with other subscriptions; it is ended", self._instance
        )
        await link.close()
        if self._settings.mqtt_protocol != "5":
            # Only a connection with a clean session ends one.
            await (await self._open(on_message, clean=True)).close()
        return await self._open(on_message)

    async def _holds_our_subscriptions(self, link: Link) -> bool:
        """Whether a session that the broker kept holds our subscriptions, and no others."""
        if self._is_ours:
            return True
        presence = await self._retained_presence(link)
        try:
            return bool(orjson.loads(presence)["subscribed"] == self._topics.filters)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return False

    async def _retained_presence(self, link: Link) -> bytes:
        """The payload of our retained presence; empty if there is none, or we may not read it."""
        self._presence_seen = asyncio.get_running_loop().create_future()
        topic = self._topics.presence
        try:
            await link.subscribe([topic], retained=True)
            async with asyncio.timeout(_PRESENCE_SECONDS):
                return await self._presence_seen
        except TimeoutError:
            return b""
        except LinkError:
            if link.lost.done():
                raise
            return b""
        finally:
            self._presence_seen = None
            if not link.lost.done():
                await link.unsubscribe([topic])

    def _receive(self, link: Link, message: Message, on_message: OnMessage) -> None:
        if message.topic == self._topics.presence:
            if self._presence_seen is not None and not self._presence_seen.done():
                self._presence_seen.set_result(message.payload)
        elif self._delivery_check.takes(message):
            pass
        elif self._held is not None:
            self._held.append((link, message))
            return
        else:
            on_message(link, message)
            return
        if message.qos:
            link.acknowledge(message.packet_id)

    async def _take_up(self, link: Link) -> None:
        """Subscribe and say so; while we stop, the reverse."""
        if self._stopping:
            if not self.keeps_session:
                await link.unsubscribe(self._topics.filters)
            return
        self._check_limits(link)
        if self.keeps_session and not link.session_present:
            # Before there is anything to keep: whoever finds the session learns what is in it.
            await self._presence.announce(link, "offline")
        await link.subscribe(self._topics.filters)
        self._is_ours = True
        await self._delivery_check.run(link)
        await self._presence.announce(link, "online")
        if self._stopping:
            await self.stop_receiving()
            return
        self.ready = True
        self._logged = None
        self._metrics.connected("mqtt", True)
        logger.info(
            "mqtt connected",
            extra={
                "broker": f"{self._settings.mqtt_broker}:{self._settings.mqtt_port}",
                "instance": self._instance,
                "subscribed": ", ".join(self._topics.filters),
            },
        )

    def _check_limits(self, link: Link) -> None:
        """Raise LinkError if the broker can't do what we need, as its CONNACK tells."""
        limits = link.limits
        if limits.maximum_qos < 1:
            raise LinkError(_NO_QOS_1)
        if self._settings.mqtt_share and not limits.shared_subscriptions:
            raise LinkError(NO_SHARES)
        if not limits.retain:
            self._presence.give_up()

    def _disconnected(self, error: LinkError) -> None:
        self.ready = False
        self.link = None
        self._linked.clear()
        self._held = None
        self._metrics.connected("mqtt", False)
        self._on_connection_lost()
        if self._stopping or str(error) == self._logged:
            return
        self._logged = str(error)
        logger.warning(
            "mqtt unavailable: %s",
            printable(str(error)),
            extra={"broker": f"{self._settings.mqtt_broker}:{self._settings.mqtt_port}"},
        )

    def _check_for_conflict(self, error: LinkError, lasted: float) -> None:
        """Tell of another client with our client id: the two throw each other out for ever.

        MQTT 5 brokers say so (0x8E). Others, and Mosquitto 2.0.11, just close the connection:
        again and again, a moment after each login.
        """
        if self._stopping:
            return
        self._short_lived = self._short_lived + 1 if lasted < _SHORT_LIVED_SECONDS else 0
        if error.reason == SESSION_TAKEN_OVER or self._short_lived == _SHORT_LIVED_IN_A_ROW:
            self._logged = str(error)
            logger.error(
                "another client connects as %r and the broker closes our connection; "
                "give each bridge a MQTT_INSTANCE of its own",
                self._instance,
            )


async def _open_without_will(address: BrokerAddress, identifier: str) -> None:
    """Connect and leave; with an identifier other than ours, it leaves our session alone."""
    link = Link(address, identifier=identifier, on_message=lambda _link, _message: None)
    await link.open()
    await link.close()
