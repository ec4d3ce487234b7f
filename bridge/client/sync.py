"""The client for programs without an event loop: scripts, notebooks, other frameworks' threads.

    with BridgeClient("mqtt://user:password@localhost:1883") as bridge:
        reading = bridge.sensor_data(device_uuid, "温度")

The same arguments, calls and errors as `bridge.client.BridgeClient`, which works here in a thread
of its own.
"""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from ..devices.listing import DeviceList
from ..devices.models import (
    BatchResult,
    ControlResult,
    DeviceDescription,
    Health,
    JsonObject,
    OperationInfo,
    PresetResult,
    Reading,
    SequenceResult,
)
from ..link import BrokerAddress
from . import requester
from .errors import NotConnected

__all__ = ["BridgeClient"]

T = TypeVar("T")


class BridgeClient:
    """A requester whose calls block: `with BridgeClient("mqtt://localhost:1883") as bridge: …`.

    Any number of threads may use one client at a time. It is opened once; what a call raises and
    the arguments are those of `bridge.client.BridgeClient`.

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
        self._client = requester.BridgeClient(
            broker,
            prefix=prefix,
            client_level=client_level,
            name=name,
            timeout=timeout,
            tls=tls,
            protocol=protocol,
        )
        # A client that was never closed must not keep the interpreter from ending.
        self._thread = threading.Thread(target=self._work, name="bridge client", daemon=True)
        self._opened: Future[None] = Future()
        # No call is handed to a loop that is about to end.
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = asyncio.Event()

    @property
    def reply_topic(self) -> str:
        """Where the replies to this client go."""
        return self._client.reply_topic

    # ---- life -----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Connect; from then on the connection comes back by itself.

        Raises:
            NotConnected: the broker can't be reached, or refuses us.
            RuntimeError: the client was opened before.
        """
        self._thread.start()
        try:
            self._opened.result()
        except BaseException as error:
            # After an interrupt the thread ends by itself, once its attempt to connect has ended.
            self._stop(wait=isinstance(error, Exception))
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect; calls of other threads that still wait for a reply end with an error."""
        self._stop(wait=True)

    # ---- operations -----------------------------------------------------------------------------

    def sensor_data(
        self, device_uuid: str, sensor: str, *, timeout: float | None = None
    ) -> Reading:
        """The latest value of one sensor, by any of the names it goes by. Raises like `call`."""
        return self._run(self._client.sensor_data(device_uuid, sensor, timeout=timeout))

    def control(
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
        return self._run(
            self._client.control(
                device_uuid,
                action=action,
                port_type=port_type,
                port_id=port_id,
                port=port,
                value=value,
                frequency=frequency,
                timeout=timeout,
                request_id=request_id,
            )
        )

    def preset(
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
        return self._run(
            self._client.preset(
                device_uuid, preset_key, parameters, timeout=timeout, request_id=request_id
            )
        )

    def device(self, device_uuid: str, *, timeout: float | None = None) -> DeviceDescription:
        """What a device says now, and its ports and presets. Raises like `call`."""
        return self._run(self._client.device(device_uuid, timeout=timeout))

    def devices(
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
        return self._run(
            self._client.devices(
                query,
                room=room,
                group=group,
                online=online,
                limit=limit,
                cursor=cursor,
                timeout=timeout,
            )
        )

    def batch(
        self,
        requests: Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> BatchResult:
        """Up to 100 requests in one, each with its `operation` and fields. Raises like `call`.

        An item that fails is no error of the whole: look at the `code` of each of `results`.
        """
        return self._run(self._client.batch(requests, timeout=timeout, request_id=request_id))

    def health(self, *, timeout: float | None = None) -> Health:
        """Whether the bridge has its database and its broker. Raises like `call`."""
        return self._run(self._client.health(timeout=timeout))

    def operations(self, *, timeout: float | None = None) -> list[OperationInfo]:
        """The operations there are, each with the JSON Schema of its fields. Raises like `call`."""
        return self._run(self._client.operations(timeout=timeout))

    def call(
        self,
        operation: str,
        /,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        **fields: Any,
    ) -> Any:
        """Ask for any operation, and return the reply's `data`. Raises like the other client's."""
        return self._run(
            self._client.call(operation, timeout=timeout, request_id=request_id, **fields)
        )

    def request(
        self,
        operation: str,
        fields: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> JsonObject:
        """The reply's whole body, whatever its code. Raises like `call`, but not for a code."""
        return self._run(
            self._client.request(operation, fields, timeout=timeout, request_id=request_id)
        )

    # ---- the thread -----------------------------------------------------------------------------

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        """What a call returns that runs in the thread; an interrupt of ours cancels it there."""
        with self._lock:
            if self._loop is None:
                call.close()
                raise NotConnected("the client is not open: use it inside `with`")
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _stop(self, *, wait: bool) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            # If it could not connect, the loop is closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._closing.set)
        if wait:
            self._thread.join()

    def _work(self) -> None:
        # The loop that has `add_reader` on every platform.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._stay_open())

    async def _stay_open(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._client.__aenter__()
        except Exception as error:
            # The thread that opens the client raises it.
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        await self._closing.wait()
        await self._client.__aexit__(None, None, None)
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        if calls:
            await asyncio.wait(calls)
