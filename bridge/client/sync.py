"""The client for programs without an event loop: scripts, notebooks, other frameworks' threads.

    with BridgeClient("mqtt://user:password@localhost:1883") as bridge:
        reading = bridge.sensor_data(device_uuid, "温度")

The same arguments, calls and errors as `bridge.client.BridgeClient`, which works here in a thread
of its own.
"""

import asyncio
import contextlib
import functools
import ssl
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar

from ..link import BrokerAddress
from . import requester
from .errors import NotConnected

__all__ = ["BridgeClient"]

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(
    call: Callable[Concatenate[requester.BridgeClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["BridgeClient", P], T]:
    """The same call for the caller's thread, with the same arguments."""

    @functools.wraps(call)
    def blocking(client: "BridgeClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client._run(call(client._client, *args, **kwargs))

    return blocking


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

    def __exit__(self, *_: object) -> None:
        """Disconnect; calls of other threads that still wait for a reply end with an error."""
        self._stop(wait=True)

    sensor_data = _blocking(requester.BridgeClient.sensor_data)
    control = _blocking(requester.BridgeClient.control)
    preset = _blocking(requester.BridgeClient.preset)
    device = _blocking(requester.BridgeClient.device)
    devices = _blocking(requester.BridgeClient.devices)
    batch = _blocking(requester.BridgeClient.batch)
    health = _blocking(requester.BridgeClient.health)
    operations = _blocking(requester.BridgeClient.operations)
    call = _blocking(requester.BridgeClient.call)
    request = _blocking(requester.BridgeClient.request)

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
