"""Composition: what is made of what, in which order it starts, and how it ends."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from .. import __version__
from ..core.admission import Admission
from ..core.context import Drain, Services
from ..core.deadlines import Deadlines
from ..core.dispatcher import Dispatcher
from ..core.idempotency import Idempotency, MemoryIdempotency
from ..core.ordering import DeviceQueues
from ..database.address import DatabaseAddress
from ..devices.models import Health
from ..http.authentication import Keys
from ..http.routes import HttpTransport
from ..link.topics import Topics
from ..mcp.endpoint import Endpoint
from ..mqtt import MqttTransport
from ..mqtt.deliveries import Deliveries
from ..mqtt.former_workers import FormerWorkers
from ..mqtt.publisher import CommandPublisher
from ..mqtt.session import Session
from ..mqtt.turns import Turns
from ..observability import request_log
from ..observability.activity import Activity
from ..observability.metrics import Metrics, WorkersState
from ..observability.observations import Observers
from ..settings import Settings, SettingsError
from . import systemd
from .backends import Backend, MysqlBackend
from .background import Background
from .signals import on_signal

logger = logging.getLogger(__name__)

STOP_SIGNALS = ("SIGINT", "SIGTERM")
# What of DRAIN_TIMEOUT is kept for saying goodbye, in seconds: to a broker that hangs (0.5 for our
# presence, 0.5 to leave), to HTTP clients (twice 0.25) and to a database that hangs (0.25).
_GOODBYE_SECONDS = 2.0
# And before that, for the answers to what still waits for a database or a broker that hangs.
_ANSWERING_SECONDS = 0.5


class Bridge:
    def __init__(
        self,
        settings: Settings,
        make_backend: Callable[[Settings, Metrics, Deadlines], Backend] = MysqlBackend,
    ) -> None:
        self._settings = settings
        self._started = time.monotonic()
        self._deadlines, self._database_deadlines = Deadlines(), Deadlines()
        self._drain = Drain()
        self._admission = Admission.for_requests(settings.max_in_flight)
        self._metrics = Metrics(lambda: self._admission.in_flight)
        self._backend = make_backend(settings, self._metrics, self._database_deadlines)
        self._keys = Keys(settings)
        activity = Activity()
        observers = Observers(
            (self._metrics.request_answered, activity.observe, request_log.request_answered),
            (self._metrics.command_executed, request_log.command_executed),
        )
        deliveries = Deliveries()
        topics = Topics(
            settings.mqtt_topic_prefix,
            settings.mqtt_share,
            settings.instance,
            settings.mqtt_reply_topics,
        )
        self._session = Session(
            settings,
            topics,
            self._metrics,
            on_session_lost=deliveries.forgotten,
            on_connection_lost=deliveries.lost,
        )
        self._turns = Turns(topics, self._session, lambda: self._backend.available)
        self._former_workers = FormerWorkers(settings, topics, self._session)
        self._dispatcher = self._make_dispatcher(observers)
        self._mqtt = MqttTransport(
            settings,
            topics=topics,
            session=self._session,
            deliveries=deliveries,
            dispatcher=self._dispatcher,
            metrics=self._metrics,
        )
        self._mcp = Endpoint(settings, self._dispatcher)
        self._http = self._make_http(observers, activity)
        self._background = Background()
        # What all workers together say, as of a second ago; None for one alone.
        self._all_workers: WorkersState | None = None

    def _make_dispatcher(self, observers: Observers) -> Dispatcher:
        services = Services(
            self._settings,
            self._backend.store,
            CommandPublisher(self._session),
            self.health,
            DeviceQueues(),
            self._drain,
            self._deadlines,
        )
        return Dispatcher(services, self._outcome_store(), self._admission, observers)

    def _make_http(self, observers: Observers, activity: Activity) -> HttpTransport:
        return HttpTransport(
            self._settings,
            self._keys,
            self._dispatcher,
            metrics=self._metrics,
            observers=observers,
            activity=activity,
            health=self.health,
            readings=self._backend.store.readings,
            is_ready=self.is_ready,
            mqtt_connected=lambda: self._session.available,
            mounted=tuple(self._mcp.places()),
        )

    async def start(self) -> None:
        """Listen, then connect in the background; without database or broker it starts too.

        Raises PortTakenError if someone else listens on our port.
        """
        on_signal("SIGHUP", self._reload_keys)
        await self._http.start()
        self._say_what_is_served()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._background.start("database watch", self._backend.watch())
        self._background.start("mqtt", self._mqtt.run(since))
        if self._settings.mqtt_share:
            self._background.start("turns", self._turns.run())
            self._background.start("former workers", self._former_workers.end())
        self._background.start("readiness", self._tell_readiness())
        self._background.start("watchdog", systemd.watchdog())
        systemd.notify("READY=1")
        if self._metrics.shared:
            self._background.start("all workers", self._look_at_workers())

    async def run(self, stop: asyncio.Event) -> bool:
        """Serve until `stop` is set; whether it ended as it should."""
        loop = asyncio.get_running_loop()
        stopping = [
            loop.create_task(stop.wait(), name="stop signal"),
            loop.create_task(self._background.failed.wait(), name="failure"),
        ]
        try:
            await asyncio.wait(stopping, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in stopping:
                task.cancel()
        await self.stop()
        return not self._background.failed.is_set()

    async def stop(self) -> None:
        """Drain, say goodbye, close; within `DRAIN_TIMEOUT`."""
        loop = asyncio.get_running_loop()
        timeout = self._settings.drain_timeout
        until = loop.time() + timeout - min(_GOODBYE_SECONDS, timeout / 2)
        systemd.notify("STOPPING=1")
        logger.info("draining", extra={"in_flight": self._admission.in_flight})
        self._drain.begin(until)
        kept = min(_ANSWERING_SECONDS, timeout / 4)
        self._deadlines.end_by(until - kept)
        # Outcomes of commands given up just then may still have to be stored.
        self._database_deadlines.end_by(until - kept / 2)
        try:
            async with asyncio.timeout_at(until):
                await self._mqtt.drain()
                await self._dispatcher.idle()
                await self._http.drain()
        except TimeoutError:
            logger.warning(
                "drain timed out; what was in flight is given up",
                extra={"in_flight": self._admission.in_flight},
            )
        await self._mqtt.close()
        await self._http.stop()
        await self._mcp.close()
        await self._background.cancel()
        await self._backend.close()
        logger.info("stopped")

    def _outcome_store(self) -> Idempotency:
        settings = self._settings
        if settings.dedup_store == "mysql" and isinstance(self._backend, MysqlBackend):
            return self._backend.idempotency(settings, self._deadlines, self._drain)
        return MemoryIdempotency(settings.dedup_ttl, self._deadlines, settings.language)

    def is_ready(self) -> bool:
        """Whether database and broker are there and we are not draining."""
        return (
            self._backend.available and self._session.available and not self._drain.begun.is_set()
        )

    def health(self) -> Health:
        """Our state, from the last query and the link's own; never waits."""
        database, mqtt = self._backend.available, self._session.available
        in_flight = self._admission.in_flight
        if self._all_workers is not None:
            database = database and self._all_workers.database
            mqtt = mqtt and self._all_workers.mqtt
            in_flight = self._all_workers.in_flight
        return Health(
            status="healthy" if database and mqtt else "degraded",
            database=database,
            mqtt=mqtt,
            version=__version__,
            uptime_seconds=round(time.monotonic() - self._started, 3),
            in_flight=in_flight,
        )

    async def _tell_readiness(self) -> None:
        told = False
        while True:
            if self.is_ready() != told:
                told = not told
                logger.info("ready" if told else "not ready")
                systemd.notify(f"STATUS={'ready' if told else 'not ready'}")
            await asyncio.sleep(0.05 if not told else 0.5)

    async def _look_at_workers(self) -> None:
        while True:
            self._all_workers = self._metrics.all_workers()
            await asyncio.sleep(1.0)

    def _reload_keys(self) -> None:
        try:
            self._keys.load()
        except SettingsError as error:
            logger.error("API keys were not read again: %s", error)  # noqa: TRY400
        else:
            logger.info("API keys were read again")

    def _say_what_is_served(self) -> None:
        settings = self._settings
        logger.info(
            "serving",
            extra={
                "version": __version__,
                "http": f"http://{settings.service_host}:{settings.service_port}",
                "mqtt": f"{settings.mqtt_broker}:{settings.mqtt_port}"
                f" ({settings.mqtt_topic_prefix}/request/…)",
                "database": str(DatabaseAddress.of(settings)),
                "instance": settings.instance,
            },
        )
        if not self._keys.required:
            logger.warning(
                "HTTP is open to everyone who reaches port %d: set API_KEYS to guard it",
                settings.service_port,
            )


def stop_signal(*names: str) -> asyncio.Event:
    """Set by these signals from now on: to stop is to drain, even amidst the start."""
    stop = asyncio.Event()
    for name in names or STOP_SIGNALS:
        on_signal(name, stop.set)
    return stop
