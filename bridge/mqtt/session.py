"""Our session at the broker: connect, subscribe, announce our presence, and connect again.

A session that the broker kept holds what was subscribed before. Unless a marker in it tells that
this is what we subscribe to now, it is ended and begun anew before any request of it is served.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from ..link import BrokerAddress, Link, LinkError
from ..link.backoff import pauses
from ..link.packets import Message
from ..link.topics import Topics, is_too_long
from ..observability.logs import printable
from ..observability.metrics import Metrics
from ..settings import Settings
from .conflict import NameConflict
from .delivery_check import NO_SHARES, DeliveryCheck
from .marker import SessionMarker
from .own_subscriptions import OwnSubscriptions
from .presence import OtherBridges, Presence

logger = logging.getLogger(__name__)

OnMessage = Callable[[Link, Message], None]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 3.0
# What came by our own subscriptions is answered first where another one is found.
_SECONDS_TO_ANSWER = 1.0
_RETAIN_NOT_SUPPORTED = 0x9A
_QOS_NOT_SUPPORTED = 0x9B
_UNSUPPORTED_VERSION = 0x84
_NO_MQTT_5 = "; for a broker without MQTT 5, set MQTT_PROTOCOL=3.1.1"
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
        self._statuses = topics.statuses.removesuffix("+")
        self._metrics = metrics
        self._on_session_lost = on_session_lost
        self._on_connection_lost = on_connection_lost
        self._instance = settings.instance
        self._broker = f"{settings.mqtt_broker}:{settings.mqtt_port}"
        self._linked = asyncio.Event()
        # The last error that was logged.
        self._logged: str | None = None
        self._conflict = NameConflict(self._instance)
        # Whether the broker's session holds our subscriptions and no others.
        self._is_ours = False
        # Messages that came before that was known; None once it is.
        self._held: list[tuple[Link, Message]] | None = None
        self._marker = SessionMarker(settings, topics)
        self._own = OwnSubscriptions(settings, topics, self._marker.echo, metrics)
        self._presence = Presence(topics, settings.workers)
        self.others = OtherBridges(topics)
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
                error = await self._until_lost(link)
                lasted = time.monotonic() - connected
                if not self._stopping and self._conflict.is_told(error, lasted):
                    self._logged = str(error)
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

    async def leave_turns(self, link: Link) -> None:
        """Receive no requests until `take_turns`; replies and commands go on.

        Raises:
            LinkError: the connection was lost.
        """
        await link.unsubscribe(self._topics.filters)
        await self._presence.announce(link, "offline")

    async def take_turns(self, link: Link) -> None:
        """Receive requests again, unless we stop; raises LinkError if the broker refuses that."""
        if not self._stopping:
            await link.subscribe(self._topics.filters, identifier=self._number)
        await self.announce(link)

    async def announce(self, link: Link) -> None:
        """Say that we serve, unless we stop; raises LinkError if the connection was lost."""
        if not self._stopping:
            await self._presence.announce(link, "online")

    async def close(self) -> None:
        """Announce `offline`, for half a second at most, and disconnect; see `keeps_session`."""
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
        """The connection; raises TimeoutError if there is none by `give_up` (the loop's clock)."""
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
            if link.session_present and (
                self._own.are_broken.is_set()
                or not await self._marker.is_in(link, known=self._is_ours)
            ):
                self._is_ours = False
                link = await self._begin_anew(link, on_message)
            self._is_ours = True
            if not link.session_present:
                self._own.are_broken.clear()
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
            # Its turn begins now: it could not be taken before.
            message.read = time.monotonic()
            self._hand_on(source, message, on_message)
        return link

    @property
    def _number(self) -> int | None:
        """The identifier of our request subscriptions; a session that ends with us needs none."""
        return self._own.identifier if self.keeps_session and self._marker.is_possible else None

    async def _until_lost(self, link: Link) -> LinkError:
        """Why the connection was lost; a session with a subscription that is not ours is ended."""
        broken = asyncio.create_task(self._own.are_broken.wait(), name="mqtt foreign subscription")
        try:
            await asyncio.wait((link.lost, broken), return_when=asyncio.FIRST_COMPLETED)
            if not link.lost.done():
                await asyncio.wait((link.lost,), timeout=_SECONDS_TO_ANSWER)
                await link.close()
                # That is why, and it is logged already.
                self._logged = str(link.lost.result())
        finally:
            broken.cancel()
        return link.lost.result()

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

        def elsewhere() -> Link:
            name = f"{self._instance}-will"
            return Link(address, identifier=name, on_message=lambda _link, _message: None)

        first = link()
        try:
            await first.open()
            return first
        except LinkError as error:
            needs_other = first.reached_broker and error.reason in (None, _UNSUPPORTED_VERSION)
            if first.version5 and needs_other and not self._is_ours:
                raise LinkError(f"{error}{_NO_MQTT_5}", error.reason) from None
            if first.version5 or not first.hung_up:
                raise
            return await self._presence.open_again(error, link, elsewhere)

    async def _begin_anew(self, link: Link, on_message: OnMessage) -> Link:
        logger.warning(
            "the broker kept a session of %r that is not known to hold our subscriptions and no "
            "others; it is ended",
            self._instance,
        )
        await link.close()
        if not link.version5:
            # A clean session ends with its connection.
            await (await self._open(on_message, clean=True)).close()
        return await self._open(on_message, clean=link.version5)

    def _receive(self, link: Link, message: Message, on_message: OnMessage) -> None:
        if message.topic.startswith(self._statuses):
            if not self._marker.echo.takes(message):
                self.others.hear(message)
        elif self._delivery_check.takes(message):
            pass
        elif not self._topics.is_request(message.topic):
            self._own.drop(link)
        elif is_too_long(message.topic):
            self._metrics.dropped("unanswerable")
        elif self._held is not None:
            self._held.append((link, message))
            return
        else:
            self._hand_on(link, message, on_message)
            return
        if message.qos:
            link.acknowledge(message.packet_id)

    def _hand_on(self, link: Link, message: Message, on_message: OnMessage) -> None:
        if self._own.delivered(link, message):
            on_message(link, message)
        else:
            # Not acknowledged: the session ends.
            self._own.drop(link)

    async def _take_up(self, link: Link) -> None:
        """Subscribe and say so; while we stop, the reverse."""
        if self.keeps_session:
            await self._marker.place(link, self._own.probes_identifier)
        if self._stopping:
            if not self.keeps_session:
                await link.unsubscribe(self._topics.filters)
            return
        self._check_limits(link)
        if link.session_present:
            await self._own.probe(link)
        await self._delivery_check.subscribe(link, self._topics.filters, self._number)
        # What came by them before we looked has arrived.
        if not self._held:
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
                "broker": self._broker,
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
        words = printable(self._logged)
        logger.warning("mqtt unavailable: %s", words, extra={"broker": self._broker})
