"""One way to ask, whatever carries the request: over HTTP, MQTT 5 and MQTT 3.1.1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Literal, Protocol, Self

import aiohttp

from tests.lab.bridge import Bridge
from tests.lab.mqtt import Broker
from tests.lab.requester import Requester

Transport = Literal["http", "mqtt5", "mqtt3"]

TRANSPORTS: tuple[Transport, ...] = ("http", "mqtt5", "mqtt3")
MQTT: tuple[Transport, ...] = ("mqtt5", "mqtt3")

# As the contract's table has them.
ROUTES = {
    "sensor-data": ("GET", "/api/sensor-data"),
    "control": ("POST", "/api/control"),
    "preset": ("POST", "/api/preset"),
    "device": ("GET", "/api/devices/{device_uuid}"),
    "devices": ("GET", "/api/devices"),
    "batch": ("POST", "/api/batch"),
    "operations": ("GET", "/api/operations"),
}

Body = dict[str, Any]
Fields = Mapping[str, Any]


class Caller(Protocol):
    """Asks, and returns the reply's body."""

    transport: Transport

    async def ask(self, operation: str, fields: Fields | None = None) -> Body: ...

    async def ask_with_id(self, operation: str, fields: Fields, request_id: str) -> Body:
        """Ask under an id that goes beside the fields: a header, or Correlation Data."""

    async def send(self, operation: str, payload: bytes) -> Body:
        """Send any bytes as the payload of a request that has one."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


class HttpCaller:
    """Asks over HTTP; the status is always the body's code."""

    transport: Transport = "http"

    def __init__(self, url: str) -> None:
        self._url = url
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._session = await self._open.enter_async_context(aiohttp.ClientSession(self._url))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def ask(self, operation: str, fields: Fields | None = None) -> Body:
        return await self._ask(operation, fields or {})

    async def ask_with_id(self, operation: str, fields: Fields, request_id: str) -> Body:
        return await self._ask(operation, fields, {"Idempotency-Key": request_id})

    async def send(self, operation: str, payload: bytes) -> Body:
        _, path = ROUTES[operation]
        return await self._request(
            "POST", path, data=payload, headers={"Content-Type": "application/json"}
        )

    async def _ask(
        self, operation: str, fields: Fields, headers: Mapping[str, str] | None = None
    ) -> Body:
        method, path = ROUTES.get(operation, ("POST", f"/api/{operation}"))
        if method == "POST":
            return await self._request("POST", path, json=dict(fields), headers=headers)
        rest = dict(fields)
        if "{device_uuid}" in path:
            path = path.format(device_uuid=rest.pop("device_uuid"))
        return await self._request("GET", path, params=rest, headers=headers)

    async def _request(self, method: str, path: str, **options: Any) -> Body:
        async with self._session.request(method, path, **options) as response:
            body = await response.json()
            assert response.content_type == "application/json"
            assert isinstance(body, dict)
            assert response.status == body["code"]
            return body


class MqttCaller:
    """Asks over MQTT; on 3.1.1 with `reply_to` and `request_id` in the payload."""

    def __init__(self, broker: Broker, transport: Transport, **options: Any) -> None:
        self.transport = transport
        self.requester = Requester(
            broker, version="5" if transport == "mqtt5" else "3.1.1", **options
        )

    async def __aenter__(self) -> Self:
        await self.requester.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.requester.disconnect()

    async def ask(self, operation: str, fields: Fields | None = None) -> Body:
        if self.transport == "mqtt5":
            return (await self.requester.ask(operation, fields)).body
        # The first message on its own reply topic: a bad request_id would not come back.
        topic = self.requester.reply_topic()
        payload = {"reply_to": topic, **(fields or {})}
        reply = await self.requester.ask_raw(
            f"plugin/request/{operation}", json_bytes(payload), response_topic=topic
        )
        return reply.body

    async def ask_with_id(self, operation: str, fields: Fields, request_id: str) -> Body:
        if self.transport == "mqtt5":
            correlation = request_id.encode()
            return (await self.requester.ask(operation, fields, correlation=correlation)).body
        body = await self.ask(operation, {**fields, "request_id": request_id})
        assert body.pop("request_id") == request_id
        return body

    async def send(self, operation: str, payload: bytes) -> Body:
        # A payload that can't be read names no reply topic: the default one is listened to.
        reply = await self.requester.ask_raw(
            f"plugin/request/{operation}",
            payload,
            listen=[f"plugin/reply/{operation}/#"],
        )
        return reply.body


def caller(transport: Transport, bridge: Bridge, broker: Broker) -> Caller:
    """A caller of this bridge, to be entered."""
    return HttpCaller(bridge.url) if transport == "http" else MqttCaller(broker, transport)


def json_bytes(fields: object) -> bytes:
    """As requesters write it: UTF-8, not escaped."""
    return json.dumps(fields, ensure_ascii=False).encode()
