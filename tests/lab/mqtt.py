"""A plain MQTT connection for tests, built on paho alone: it shares no code with the bridge."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

MqttVersion = Literal["5", "3.1.1"]

NO_MATCHING_SUBSCRIBERS = 0x10
"""The PUBACK code by which an MQTT 5 broker may tell that nobody got the message."""


class Broker(Protocol):
    """Where a broker listens; a lab `Mosquitto` is one."""

    host: str
    port: int


class Endpoint(NamedTuple):
    """A broker that the lab did not start."""

    host: str
    port: int


class RefusedError(Exception):
    """The broker refused the connection; ``code`` is its MQTT 5 reason code."""

    def __init__(self, reason: ReasonCode) -> None:
        super().__init__(f"connection refused: {reason} ({reason.value:#04x})")
        self.code = int(reason.value)


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it arrived. Properties are None (or empty) where there were none."""

    at: float
    """`time.monotonic()` of its arrival."""
    topic: str
    payload: bytes
    qos: int
    retain: bool
    response_topic: str | None
    correlation: bytes | None
    content_type: str | None
    payload_format: int | None
    expiry: int | None
    user_property_pairs: tuple[tuple[str, str], ...]

    @property
    def user_properties(self) -> dict[str, str]:
        return dict(self.user_property_pairs)

    @property
    def json(self) -> Any:
        """The payload, parsed."""
        return json.loads(self.payload)

    @classmethod
    def of(cls, other: Message) -> Self:
        """The same message as one of a subclass."""
        return cls(**{field.name: getattr(other, field.name) for field in fields(Message)})


class Connection:
    """One MQTT client, connected by ``async with`` or `connect`.

    It comes back by itself after a lost connection, and subscribes again, unless
    ``reconnect`` is off. Everything runs on the event loop that called `connect`.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        version: MqttVersion = "5",
        client_id: str = "",
        username: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        clean_start: bool = True,
        session_expiry: int = 0,
        receive_maximum: int = 65535,
        maximum_packet_size: int | None = None,
        keepalive: int = 60,
        reconnect: bool = True,
    ) -> None:
        self.version = version
        self.broker = broker
        self._clean_start = clean_start
        self._keepalive = keepalive
        self._connect_properties = _properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=session_expiry or None,
            ReceiveMaximum=receive_maximum,
            MaximumPacketSize=maximum_packet_size,
        )
        self._client = self._make_client(client_id, reconnect)
        if username is not None:
            self._client.username_pw_set(username, password)
        if tls is not None:
            self._client.tls_set_context(tls)
        self._subscriptions: dict[str, SubscribeOptions] = {}
        self._answers: dict[tuple[str, int], asyncio.Future[Any]] = {}
        self._online = asyncio.Event()
        self._offline = asyncio.Event()

    async def connect(self, timeout: float = 10.0) -> Self:
        """Connect; `RefusedError` when the broker says no, `OSError` when nobody listens."""
        self._loop = asyncio.get_running_loop()
        self._connected: asyncio.Future[None] = self._loop.create_future()
        await asyncio.to_thread(self._open)
        self._client.loop_start()
        try:
            async with asyncio.timeout(timeout):
                await self._connected
        except BaseException:
            await self.drop()
            raise
        return self

    async def disconnect(self) -> None:
        """Say goodbye and close; harmless when the connection is gone already."""
        self._client.disconnect()
        if self._online.is_set():
            # A broker that hangs never closes its side.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._offline.wait(), 1)
        await self.drop()

    async def drop(self) -> None:
        """Close the socket without a goodbye, as a client that lost its power does."""
        ending = asyncio.create_task(asyncio.to_thread(self._end_thread))
        current = self._client.socket()
        if isinstance(current, socket.socket):
            with contextlib.suppress(OSError):
                current.shutdown(socket.SHUT_RDWR)
        await ending
        self._forget_callbacks()
        # What wakes paho's thread; left to the garbage collector, it is a warning now and then.
        self._client._reset_sockets(sockpair_only=True)

    async def online(self, timeout: float = 10.0) -> None:
        """Wait until it is connected and subscribed to all it was subscribed to before."""
        await asyncio.wait_for(self._online.wait(), timeout)

    async def offline(self, timeout: float = 10.0) -> None:
        """Wait until the connection is lost."""
        await asyncio.wait_for(self._offline.wait(), timeout)

    async def publish(
        self,
        topic: str,
        payload: bytes | str = b"",
        *,
        qos: int = 1,
        retain: bool = False,
        response_topic: str | bytes | None = None,
        correlation: bytes | None = None,
        content_type: str | None = None,
        payload_format: int | None = None,
        expiry: int | None = None,
        user_properties: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> int:
        """Publish and return the reason code of the broker's PUBACK (0 at QoS 0 and on 3.1.1).

        Nothing is checked that the broker should check: a response topic may be any bytes.
        """
        properties = _properties(
            PacketTypes.PUBLISH,
            ResponseTopic=response_topic,
            CorrelationData=correlation,
            ContentType=content_type,
            PayloadFormatIndicator=payload_format,
            MessageExpiryInterval=expiry,
            UserProperty=list(user_properties.items()) if user_properties else None,
        )
        info = self._client.publish(
            topic, payload, qos, retain, properties if self.version == "5" else None
        )
        if qos == 0 and info.rc != paho.MQTT_ERR_SUCCESS:
            raise ConnectionError(paho.error_string(info.rc))
        reason: ReasonCode = await self._answer("publish", info.mid, timeout)
        return int(reason.value)

    async def subscribe(
        self,
        topic_filter: str,
        qos: int = 1,
        *,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
        timeout: float = 10.0,
    ) -> int:
        """Subscribe and return the SUBACK's code: the granted QoS, or 0x80 and up if refused."""
        options = SubscribeOptions(qos, no_local, retain_as_published, retain_handling)
        self._subscriptions[topic_filter] = options
        mid = self._send_subscribe({topic_filter: options})
        (reason,) = await self._answer("subscribe", mid, timeout)
        return int(reason.value)

    async def unsubscribe(self, topic_filter: str, timeout: float = 10.0) -> None:
        """Unsubscribe and wait for the UNSUBACK."""
        self._subscriptions.pop(topic_filter, None)
        _, mid = self._client.unsubscribe(topic_filter)
        await self._answer("unsubscribe", mid or 0, timeout)

    def received(self, message: Message) -> None:
        """Called on the event loop with each message, in order of arrival."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    def _make_client(self, client_id: str, reconnect: bool) -> paho.Client:
        newest = self.version == "5"
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=None if newest else self._clean_start,
            protocol=paho.MQTTv5 if newest else paho.MQTTv311,
            reconnect_on_failure=reconnect,
        )
        client.reconnect_delay_set(0.1, 0.5)  # type: ignore[arg-type]  # it takes fractions
        client.max_inflight_messages_set(65535)
        client.on_socket_open = _send_at_once
        client.on_connect = lambda _c, _u, _f, reason, _p: self._call(self._on_connect, reason)
        client.on_disconnect = lambda *_: self._call(self._on_disconnect)
        client.on_message = lambda _c, _u, message: self._call(self.received, _message(message))
        client.on_publish = lambda _c, _u, mid, reason, _p: self._settle("publish", mid, reason)
        client.on_subscribe = lambda _c, _u, mid, codes, _p: self._settle("subscribe", mid, codes)
        client.on_unsubscribe = lambda _c, _u, mid, codes, _p: self._settle(
            "unsubscribe", mid, codes
        )
        return client

    def _open(self) -> None:
        if self.version == "5":
            self._client.connect(
                self.broker.host,
                self.broker.port,
                self._keepalive,
                clean_start=self._clean_start,
                properties=self._connect_properties,
            )
        else:
            self._client.connect(self.broker.host, self.broker.port, self._keepalive)

    def _end_thread(self) -> None:
        # paho forgets its thread when that ends, which may be in the middle of this call.
        with contextlib.suppress(AttributeError):
            self._client.loop_stop()

    def _forget_callbacks(self) -> None:
        # They refer to us and we to the client: without this cycle its sockets close at once.
        for name in ("connect", "disconnect", "message", "publish", "subscribe", "unsubscribe"):
            setattr(self._client, f"on_{name}", None)

    def _call(self, callback: Callable[..., None], *args: object) -> None:
        # Called in paho's thread. The loop may be closed already when a test is over.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *args)

    def _on_connect(self, reason: ReasonCode) -> None:
        if reason.is_failure:
            if not self._connected.done():
                self._connected.set_exception(RefusedError(reason))
            return
        self._offline.clear()
        if self._subscriptions:
            self._resubscribing = asyncio.create_task(self._subscribe_again())
        else:
            self._online.set()
        if not self._connected.done():
            self._connected.set_result(None)

    def _on_disconnect(self) -> None:
        self._online.clear()
        self._offline.set()

    async def _subscribe_again(self) -> None:
        # If the connection goes once more, the next one subscribes again.
        with contextlib.suppress(TimeoutError, ConnectionError):
            # A cluster that has just lost a node may refuse for a while.
            while any(reason.is_failure for reason in await self._subscribe_all()):
                await asyncio.sleep(0.2)
            self._online.set()

    async def _subscribe_all(self) -> list[ReasonCode]:
        mid = self._send_subscribe(self._subscriptions)
        codes: list[ReasonCode] = await self._answer("subscribe", mid, 10)
        return codes

    def _send_subscribe(self, subscriptions: Mapping[str, SubscribeOptions]) -> int:
        if self.version == "5":
            _, mid = self._client.subscribe(list(subscriptions.items()))
        else:
            _, mid = self._client.subscribe([(f, o.QoS) for f, o in subscriptions.items()])
        if mid is None:
            raise ConnectionError("not connected")
        return mid

    async def _answer(self, kind: str, mid: int, timeout: float) -> Any:
        # Registered in the same turn of the loop in which the packet was queued, so the
        # answer, which comes through the loop, cannot be first.
        future = self._answers[kind, mid] = self._loop.create_future()
        try:
            # Not `wait_for`, which before Python 3.12 may swallow the caller's own timeout.
            async with asyncio.timeout(timeout):
                return await future
        finally:
            self._answers.pop((kind, mid), None)

    def _settle(self, kind: str, mid: int, result: object) -> None:
        def settle() -> None:
            future = self._answers.get((kind, mid))
            if future is not None and not future.done():
                future.set_result(result)

        self._call(settle)


def _send_at_once(_client: paho.Client, _userdata: object, connection: Any) -> None:
    # Nagle's algorithm meets the peer's delayed ACK: 44 ms for each QoS 1 exchange.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _properties(packet: int, **values: Any) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        if value is not None:
            setattr(properties, name, value)
    return properties


def _message(message: paho.MQTTMessage) -> Message:
    properties = message.properties

    def sent(name: str) -> Any:
        return getattr(properties, name, None)

    return Message(
        at=time.monotonic(),
        topic=message.topic,
        payload=bytes(message.payload),
        qos=message.qos,
        retain=message.retain,
        response_topic=sent("ResponseTopic"),
        correlation=sent("CorrelationData"),
        content_type=sent("ContentType"),
        payload_format=sent("PayloadFormatIndicator"),
        expiry=sent("MessageExpiryInterval"),
        user_property_pairs=tuple(sent("UserProperty") or ()),
    )
