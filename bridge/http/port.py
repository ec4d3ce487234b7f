"""The port that we listen on, if it can be had."""

import asyncio

from ..errors import Text
from ..settings import Settings


class PortTakenError(Exception):
    """The address that we should listen on can't be had; the message says what to do."""

    def __init__(self, settings: Settings, error: OSError) -> None:
        port = settings.service_port
        reason = error.strerror or error
        words = Text(
            f"无法监听 {settings.service_host}:{port}：{reason}。请停止占用该端口的程序"
            f"{'（常见的是 Mosquitto 的 WebSocket 监听）' if port == 9001 else ''}，"
            "或把 SERVICE_PORT 设为空闲端口。",
            f"can't listen on {settings.service_host}:{port}: {reason}. Stop the program that uses "
            f"the port{' (often a WebSocket listener of Mosquitto)' if port == 9001 else ''}, "
            "or set SERVICE_PORT to a free port.",
        )
        super().__init__(words.in_(settings.language))


async def check_port_is_free(settings: Settings) -> None:
    """Check that nobody listens there, not even one who would share the port, as workers do.

    Raises:
        PortTakenError: somebody does, or the address can't be bound.
    """
    loop = asyncio.get_running_loop()
    try:
        bound = await loop.create_server(
            asyncio.Protocol,
            settings.service_host or None,
            settings.service_port,
            start_serving=False,
        )
    except OSError as error:
        raise PortTakenError(settings, error) from None
    bound.close()
    await bound.wait_closed()
