"""Ask the bridge over MQTT: for plugin authors, and for `run.py call`.

    async with BridgeClient("mqtt://user:password@localhost:1883") as bridge:
        reading = await bridge.sensor_data(device_uuid, "温度")

One connection, any number of requests at a time, each with an id and a deadline. What can go wrong:

    CallError
    ├─ NotConnected   the broker is not there or refuses us: nothing was executed
    ├─ Unheard        no bridge heard the request: nothing was executed
    ├─ NoReply        time ran out: a command may have been executed
    └─ Refused        the bridge answered with an error: `code`, `error`, `detail`, `errors`

Each has the `request_id` under which the request may be sent once more: a command that was executed
under it is not executed again. `RETRIES` tells for which errors that makes sense.

It needs MQTT 5 (section 4.10 of the standard: request and response), and no database package.
"""

import asyncio
import random
import secrets
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import unquote, urlsplit

import orjson
from pydantic import TypeAdapter, ValidationError

from . import wire
from .errors import PayloadTooLarge
from .link import BrokerAddress, Link, LinkError
from .models import (
    BatchResult,
    ControlResult,
    DeviceDescription,
    Health,
    JsonObject,
    OperationInfo,
    OperationList,
    PresetResult,
    Reading,
    SequenceResult,
)
from .topics import is_plain

Retry = Literal["automatic", "same id", "new id", "look first", "no"]

# For each error of the bridge, whether asking once more makes sense, and under which id:
#   automatic   the client itself does, under the same id, until the timeout has passed
#   same id     once the cause is gone; nothing was executed, or it will not be executed again
#   new id      the answer stays with the old id; nothing was executed under it
#   look first  the command may have reached the device: look at it, then decide on a new id
#   no          the request itself has to change
RETRIES: Mapping[str, Retry] = {
    "malformed_request": "no",
    "invalid_control": "no",
    "invalid_preset": "no",
    "device_offline": "same id",
    "unauthorized": "no",
    "reply_topic_forbidden": "no",
    "forbidden": "no",
    "device_not_found": "no",
    "sensor_not_found": "no",
    "preset_not_found": "no",
    "operation_not_found": "no",
    "method_not_allowed": "no",
    "payload_too_large": "no",
    "unsupported_media_type": "no",
    "expired": "same id",
    "device_unreachable": "new id",
    "device_busy": "same id",
    "idempotency_conflict": "new id",
    "validation_error": "no",
    "busy": "automatic",
    "internal_error": "same id",
    "database_unavailable": "automatic",
    "mqtt_unavailable": "automatic",
    "draining": "automatic",
    "database_timeout": "same id",
    "timeout": "same id",
    "outcome_unknown": "look first",
}

# How long a reply is waited for (seconds): a little longer than the bridge takes at the most.
_PATIENCE = 10.0
_PATIENCE_WITH_PRESETS = 120.0

_NO_MATCHING_SUBSCRIBERS = 0x10
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0
# After a lost connection the bridge may come back a little later than we do (seconds).
_SETTLING = 5.0
# A request that is a moment short of n seconds from its deadline still gets n (seconds).
_ROUNDING = 0.05
_JSON = b"application/json"

T = TypeVar("T")
_adapters: dict[type[Any], TypeAdapter[Any]] = {}


class CallError(Exception):
    """The root: no data came. `request_id` is the id under which it was asked for, if it was."""

    def __init__(self, words: str, request_id: str | None = None) -> None:
        super().__init__(words)
        self.request_id = request_id


class NotConnected(CallError):
    """There is no connection to the broker; nothing was executed."""


class Unheard(CallError):
    """No bridge is subscribed, or the broker did not take the request; nothing was executed."""


class NoReply(CallError):
    """No reply came in time. A command may have been executed; under the same id it is not again,
    as long as the bridge remembers it (`DEDUP_TTL`, `DEDUP_STORE`)."""


class Refused(CallError):
    """The bridge answered with an error: `body` is its answer, `retry` what `RETRIES` says."""

    def __init__(self, body: JsonObject, request_id: str | None = None) -> None:
        self.body = body
        self.code: int = body["code"]
        self.error: str = body.get("error") or "internal_error"
        self.detail: str = body.get("detail") or ""
        self.errors: list[JsonObject] = body.get("errors") or []
        self.retry: Retry = RETRIES.get(self.error, "no")
        super().__init__(f"{self.code} {self.error}: {self.detail}", request_id)


@dataclass(slots=True, eq=False)
class _Question:
    """One request, through all attempts; `deadline` is on the loop's clock."""

    topic: str
    payload: bytes
    request_id: str
    deadline: float
    # Whether a bridge may have it, and whether the broker has said that none was there.
    handed_over: bool = False
    unheard: bool = False

    def seconds_left(self) -> int:
        """For the Message Expiry, where 0 would mean no expiry at all."""
        left = self.deadline - asyncio.get_running_loop().time()
        return max(1, int(left + _ROUNDING))


class BridgeClient:
    """A requester: `async with BridgeClient("mqtt://localhost:1883") as bridge: …`.

    Args:
        broker: `mqtt://` or `mqtts://` with `user:password@` where needed, host and port.
        prefix: the bridge's `MQTT_TOPIC_PREFIX`.
        client_level: the broker user name, where the broker's ACL pins requests and replies to it:
            requests then go to `<prefix>/request/<operation>/<client_level>`.
        name: the last level of the reply topic, one nobody else has. Give one that stays the same
            when a retry after a restart of your program is to count as the same request; with a
            `client_level` it does so anyway.
        timeout: how long to wait for a reply (seconds) where a call does not say; without it 10,
            and 120 for presets. It is the request's deadline: past it, nothing is begun.
        tls: for `mqtts://`, in place of the usual verification.

    Raises:
        ValueError: an argument can't be used.
    """

    def __init__(
        self,
        broker: str | BrokerAddress,
        *,
        prefix: str = "plugin",
        client_level: str | None = None,
        name: str | None = None,
        timeout: float | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        address = _parse(broker, tls) if isinstance(broker, str) else broker
        # Correlation Data and reason codes are what all this rests on.
        self._broker = replace(address, version5=True)
        for level in (client_level, name):
            if level is not None:
                _check_level(level)
        unique = f"client-{secrets.token_hex(6)}"
        self._client_id = unique if name is None else f"{name}-{unique}"
        self._requests = f"{prefix}/request/"
        self._level = f"/{client_level}" if client_level else ""
        self.reply_topic = f"{prefix}/reply{self._level}/{name or unique}"
        self._timeout = timeout
        self._pending: dict[bytes, asyncio.Future[JsonObject]] = {}
        self._link: Link | None = None
        self._linked = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._trouble = ""
        self._settled = 0.0
        self._closed = True

    # ---- life -----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Connect; from then on the connection comes back by itself.

        Raises:
            NotConnected: the broker can't be reached, or refuses us.
        """
        try:
            link = await self._connect()
        except LinkError as error:
            self._trouble = str(error)
            raise self._not_connected(None) from None
        self._closed = False
        self._link = link
        self._keeping = asyncio.create_task(self._keep_connected(link), name="bridge client")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave; calls that still wait for a reply end with an error."""
        self._closed = True
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait((self._keeping,))
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        self._linked.set()

    async def _connect(self) -> Link:
        link = Link(self._broker, identifier=self._client_id, on_message=self._on_message)
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
        for pause in _pauses():
            try:
                return await self._connect()
            except LinkError as error:
                self._trouble = str(error)
            await asyncio.sleep(pause)
        raise AssertionError("pauses never end")

    async def _next_link(self, question: _Question) -> Link:
        while self._link is None or self._link.lost.done():
            if self._closed:
                raise self._out_of_patience(question)
            self._linked.clear()
            await self._linked.wait()
        return self._link

    # ---- operations -----------------------------------------------------------------------------

    async def sensor_data(
        self, device_uuid: str, sensor: str, *, timeout: float | None = None
    ) -> Reading:
        """The latest value of one sensor, by any of the names it goes by. Raises like `call`."""
        data = await self.call(
            "sensor-data", device_uuid=device_uuid, sensor=sensor, timeout=timeout
        )
        return _typed(Reading, data)

    async def control(
        self,
        device_uuid: str,
        *,
        action: str,
        port_type: str | None = None,
        port_id: int | None = None,
        port: str | None = None,
        value: float | None = None,
        frequency: int | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> ControlResult:
        """Switch or set one port: `port_type` and `port_id`, or `port`, a name. Raises like `call`.

        When it returns, the broker has the command and somebody is subscribed to receive it.
        """
        fields = {
            "device_uuid": device_uuid,
            "port_type": port_type,
            "port_id": port_id,
            "port": port,
            "action": action,
            "value": value,
            "frequency": frequency,
        }
        given = {name: field for name, field in fields.items() if field is not None}
        data = await self.call("control", timeout=timeout, request_id=request_id, **given)
        return _typed(ControlResult, data)

    async def preset(
        self,
        device_uuid: str,
        preset_key: str,
        parameters: JsonObject | None = None,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> PresetResult | SequenceResult:
        """Run a stored preset, by its key or name. Raises like `call`.

        A sequence that was cut short is no error: look at `success` and `errors`.
        """
        data = await self.call(
            "preset",
            timeout=timeout,
            request_id=request_id,
            device_uuid=device_uuid,
            preset_key=preset_key,
            parameters=parameters,
        )
        if isinstance(data, dict) and "total_steps" in data:
            return _typed(SequenceResult, data)
        return _typed(PresetResult, data)

    async def device(self, device_uuid: str, *, timeout: float | None = None) -> DeviceDescription:
        """What a device says now, and its ports and presets. Raises like `call`."""
        data = await self.call("device", device_uuid=device_uuid, timeout=timeout)
        return _typed(DeviceDescription, data)

    async def batch(
        self,
        requests: Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> BatchResult:
        """Up to 100 requests in one, each with its `operation` and fields. Raises like `call`.

        An item that fails is no error of the whole: look at the `code` of each of `results`.
        """
        listed = [dict(item) for item in requests]
        data = await self.call("batch", timeout=timeout, request_id=request_id, requests=listed)
        return _typed(BatchResult, data)

    async def health(self, *, timeout: float | None = None) -> Health:
        """Whether the bridge has its database and its broker. Raises like `call`."""
        return _typed(Health, await self.call("health", timeout=timeout))

    async def operations(self, *, timeout: float | None = None) -> list[OperationInfo]:
        """The operations there are, each with the JSON Schema of its fields. Raises like `call`."""
        return _typed(OperationList, await self.call("operations", timeout=timeout)).operations

    async def call(
        self,
        operation: str,
        /,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        **fields: Any,
    ) -> Any:
        """Ask for any operation, and return the reply's `data`.

        Raises:
            NotConnected, Unheard, NoReply: no reply came; see the classes.
            Refused: the bridge answered with an error.
            ValueError: the operation's name can't be part of a topic.
            TypeError: a field can't be written as JSON.
        """
        body = await self.request(operation, fields, timeout=timeout, request_id=request_id)
        if body["code"] != 200:
            raise Refused(body, body.get("request_id"))
        return body.get("data")

    async def request(
        self,
        operation: str,
        fields: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> JsonObject:
        """The reply's whole body, whatever its code. Raises like `call`, but never what was told.

        An answer that is worth another try at once (`RETRIES`) is given when time has run out.
        """
        _check_level(operation)
        asked = dict(fields or {})
        asked["request_id"] = request_id or asked.get("request_id") or secrets.token_hex(8)
        loop = asyncio.get_running_loop()
        question = _Question(
            self._requests + operation + self._level,
            orjson.dumps(asked),
            asked["request_id"],
            loop.time() + self._patience(operation, timeout),
        )
        for pause in _pauses():
            body = await self._exchange(question)
            automatic = RETRIES.get(body.get("error", "")) == "automatic"
            if not automatic or loop.time() + pause >= question.deadline:
                return body
            await asyncio.sleep(pause)
        raise AssertionError("pauses never end")

    def _patience(self, operation: str, timeout: float | None) -> float:
        if timeout is not None:
            return timeout
        if self._timeout is not None:
            return self._timeout
        return _PATIENCE_WITH_PRESETS if operation == "preset" else _PATIENCE

    # ---- a request's way ------------------------------------------------------------------------

    async def _exchange(self, question: _Question) -> JsonObject:
        """The reply to a question, which is sent again whenever its connection was lost."""
        correlation = secrets.token_bytes(16)
        reply: asyncio.Future[JsonObject] = asyncio.get_running_loop().create_future()
        self._pending[correlation] = reply
        try:
            async with asyncio.timeout_at(question.deadline):
                for pause in _pauses():
                    link = await self._next_link(question)
                    reason = await self._attempt(link, question, correlation, reply)
                    if reply.done():
                        break
                    if reason is not None:
                        self._check_worth_another_try(reason, question)
                        await asyncio.sleep(pause)
        except TimeoutError:
            if not reply.done():
                raise self._out_of_patience(question) from None
        finally:
            del self._pending[correlation]
        return reply.result()

    async def _attempt(
        self,
        link: Link,
        question: _Question,
        correlation: bytes,
        reply: asyncio.Future[JsonObject],
    ) -> int | None:
        """Send the question once, and wait until the reply is there or can't come any more.

        Returns the reason code of the PUBACK if that says that no bridge has heard it.
        """
        may_be_known = question.handed_over
        try:
            acknowledged = link.publish(
                question.topic,
                question.payload,
                qos=1,
                properties=wire.properties(
                    expiry=question.seconds_left(),
                    content_type=_JSON,
                    response_topic=self.reply_topic.encode(),
                    correlation=correlation,
                ),
            )
        except LinkError:
            return None
        except PayloadTooLarge as error:
            body = {"code": error.code, "error": error.error, "detail": error.detail("en")}
            raise Refused(body, question.request_id) from None
        assert acknowledged is not None
        acknowledged.add_done_callback(_retrieve)
        question.handed_over = True
        try:
            await asyncio.wait((acknowledged, reply), return_when=asyncio.FIRST_COMPLETED)
            if reply.done():
                return None
            reason = acknowledged.result()
            if reason:
                question.handed_over = may_be_known
                return reason
            await asyncio.wait((reply, link.lost), return_when=asyncio.FIRST_COMPLETED)
        except LinkError:
            return None
        finally:
            # If it has not left yet, it need not any more.
            acknowledged.cancel()
        return None

    def _check_worth_another_try(self, reason: int, question: _Question) -> None:
        """Fail at once where nobody was there to hear, unless an earlier try may have been heard,
        or all have just lost their connections and the bridge may not be back yet."""
        if reason != _NO_MATCHING_SUBSCRIBERS:
            raise Unheard(
                f"the broker refused the request (reason code 0x{reason:02X}) and nothing was "
                f"executed; may this user publish to {question.topic}?",
                question.request_id,
            )
        question.unheard = True
        settling = asyncio.get_running_loop().time() < self._settled
        if not (question.handed_over or settling):
            raise _unheard(question)

    def _on_message(self, link: Link, message: wire.Message) -> None:
        if message.qos:
            link.acknowledge(message.packet_id)
        reply = self._pending.get(message.correlation or b"")
        if reply is None or reply.done():
            return
        body = _body_of(message.payload)
        if body is not None:
            reply.set_result(body)

    def _out_of_patience(self, question: _Question) -> CallError:
        if question.handed_over:
            return NoReply(
                f"no reply to {question.topic} came in time; a command may have been executed: "
                f"ask again with the id {question.request_id} and it is not executed twice",
                question.request_id,
            )
        if question.unheard:
            return _unheard(question)
        return self._not_connected(question.request_id)

    def _not_connected(self, request_id: str | None) -> NotConnected:
        return NotConnected(
            f"not connected to the MQTT broker at {self._broker.host}:{self._broker.port} "
            f"({self._trouble or 'closed'}) and nothing was executed; "
            "check that it runs, and its address, user and password",
            request_id,
        )


def _unheard(question: _Question) -> Unheard:
    return Unheard(
        f"nobody is subscribed to {question.topic} and nothing was executed; check that the bridge "
        "runs on this broker, with the same topic prefix",
        question.request_id,
    )


def _parse(url: str, tls: ssl.SSLContext | None) -> BrokerAddress:
    # No word of the URL is repeated, by the parser either: it may hold a password.
    malformed = ValueError("the broker must be given as mqtt://host:1883 or mqtts://host:8883")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise malformed from None
    if parts.scheme not in ("mqtt", "mqtts") or not host:
        raise malformed
    secure = parts.scheme == "mqtts"
    return BrokerAddress(
        host,
        port or (8883 if secure else 1883),
        unquote(parts.username or ""),
        unquote(parts.password or ""),
        (tls or ssl.create_default_context()) if secure else None,
    )


def _check_level(level: str) -> None:
    if "/" in level or not is_plain(level):
        raise ValueError(f"{level!r} can't be a level of a topic")


def _pauses() -> Iterator[float]:
    """Seconds between one try and the next; without end."""
    pause = _FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.5, 1.0)  # noqa: S311  mere jitter
        pause = min(_LONGEST_PAUSE, pause * 2)


def _body_of(payload: bytes) -> JsonObject | None:
    """A reply's body; None for whatever else was sent to our reply topic."""
    try:
        body: object = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    if isinstance(body, dict) and isinstance(body.get("code"), int):
        return body
    return None


def _typed(kind: type[T], data: object) -> T:
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError:
        raise CallError(
            f"the bridge's reply is no {kind.__name__}; are client and bridge of one version?"
        ) from None


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    adapter = _adapters.get(kind)
    if adapter is None:
        adapter = _adapters[kind] = TypeAdapter(kind)
    return adapter


def _retrieve(acknowledged: asyncio.Future[int]) -> None:
    # Else asyncio would complain of an error that nobody looked at, when the reply came first.
    if not acknowledged.cancelled():
        acknowledged.exception()
