"""What a plugin author calls: the operations of the bridge, each with a typed answer."""

import asyncio
import secrets
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from ..devices.listing import DeviceList
from ..devices.models import (
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
from ..link import BrokerAddress
from .arguments import (
    broker_at,
    check_fields,
    check_level,
    check_request_id,
    check_timeout,
    is_version5,
)
from .connection import Connection
from .correlation import Replies
from .errors import Refused
from .exchange import Exchange, Question
from .results import typed

# How long a call waits for its reply (seconds): a little longer than the bridge takes at the most.
_TIMEOUT = 10.0
_PRESET_TIMEOUT = 120.0


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
        timeout: how long a call waits for its reply (seconds, up to a day) if it does not say; the
            default is 10, and 120 for presets. It is the request's deadline: past it, the bridge
            begins nothing.
        tls: for `mqtts://`, in place of the usual verification.
        protocol: the version of MQTT, if it must be one. By default the client speaks MQTT 5, and
            3.1.1 if the broker does not know MQTT 5.

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
        protocol: Literal["5", "3.1.1"] | None = None,
    ) -> None:
        address = broker if isinstance(broker, BrokerAddress) else broker_at(broker, tls)
        if protocol is not None:
            address = replace(address, version5=is_version5(protocol))
        for level in (client_level, name):
            if level is not None:
                check_level(level)
        unique = f"client-{secrets.token_hex(6)}"
        self._requests = f"{prefix}/request/"
        self._level = f"/{client_level}" if client_level else ""
        self._timeout = None if timeout is None else check_timeout(timeout)
        replies = Replies()
        self._connection = Connection(
            address,
            identifier=unique if name is None else f"{name}-{unique}",
            reply_topic=f"{prefix}/reply{self._level}/{name or unique}",
            on_message=replies.arrived,
            may_fall_back=protocol is None,
        )
        self._exchange = Exchange(self._connection, replies)

    @property
    def reply_topic(self) -> str:
        """Where the replies to this client go."""
        return self._connection.reply_topic

    async def __aenter__(self) -> Self:
        """Connect; from then on the connection comes back by itself.

        Raises:
            NotConnected: the broker can't be reached, or refuses us.
            RuntimeError: the event loop can't watch a socket, as Windows' `ProactorEventLoop`.
        """
        await self._connection.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave; calls that still wait for a reply end with an error."""
        await self._connection.close()

    async def sensor_data(
        self, device_uuid: str, sensor: str, *, timeout: float | None = None
    ) -> Reading:
        """The latest value of one sensor, by any of the names it goes by. Raises like `call`."""
        data = await self.call(
            "sensor-data", device_uuid=device_uuid, sensor=sensor, timeout=timeout
        )
        return typed(Reading, data)

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
        named = {name: field for name, field in fields.items() if field is not None}
        data = await self.call("control", timeout=timeout, request_id=request_id, **named)
        return typed(ControlResult, data)

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
            return typed(SequenceResult, data)
        return typed(PresetResult, data)

    async def device(self, device_uuid: str, *, timeout: float | None = None) -> DeviceDescription:
        """What a device says now, and its ports and presets. Raises like `call`."""
        data = await self.call("device", device_uuid=device_uuid, timeout=timeout)
        return typed(DeviceDescription, data)

    async def devices(
        self,
        query: str | None = None,
        *,
        room: str | None = None,
        group: str | None = None,
        online: bool | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        timeout: float | None = None,
    ) -> DeviceList:
        """One page of the devices, by a part of their name or UUID. Raises like `call`.

        The page after it: the same call with `cursor=page.next_cursor`, until that is None.
        """
        fields: JsonObject = {
            "query": query,
            "room": room,
            "group": group,
            "online": online,
            "limit": limit,
            "cursor": cursor,
        }
        named = {name: field for name, field in fields.items() if field is not None}
        return typed(DeviceList, await self.call("devices", timeout=timeout, **named))

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
        return typed(BatchResult, data)

    async def health(self, *, timeout: float | None = None) -> Health:
        """Whether the bridge has its database and its broker. Raises like `call`."""
        return typed(Health, await self.call("health", timeout=timeout))

    async def operations(self, *, timeout: float | None = None) -> list[OperationInfo]:
        """The operations there are, each with the JSON Schema of its fields. Raises like `call`."""
        return typed(OperationList, await self.call("operations", timeout=timeout)).operations

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
            CallError: the reply is not one of a bridge.
            ValueError: the operation's name can't be part of a topic, the timeout is not a number
                of seconds above 0 and up to a day, the id can't be one, or a field holds NaN or
                infinity. Nothing was sent.
            TypeError: a field can't be written as JSON. Nothing was sent.
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
        """The reply's whole body, whatever its code. Raises like `call`, but not for a code.

        An answer that is worth another try at once (`RETRIES`) is returned when time has run out.
        """
        check_level(operation)
        seconds = self._timeout_of(operation, timeout)
        asked = dict(fields or {})
        asked["request_id"] = request_id or asked.get("request_id") or secrets.token_hex(8)
        check_fields(asked)
        question = Question(
            self._requests + operation + self._level,
            asked,
            check_request_id(asked["request_id"]),
            asyncio.get_running_loop().time() + seconds,
        )
        return await self._exchange.ask(question)

    def _timeout_of(self, operation: str, timeout: float | None) -> float:
        if timeout is not None:
            return check_timeout(timeout)
        if self._timeout is not None:
            return self._timeout
        return _PRESET_TIMEOUT if operation == "preset" else _TIMEOUT
