"""The port that we listen on, if it can be had."""

import asyncio

from ..settings import Settings


class PortTakenError(Exception):
    """The address that we should listen on can't be had; the message says what to do."""

    def __init__(self, settings: Settings, error: OSError) -> None:
        port = settings.service_port
        usual = " (Mosquitto's WebSocket listener often takes 9001)" if port == 9001 else ""
        super().__init__(
            f"can't listen on {settings.service_host}:{port}: {error.strerror or error}. Is "
            f"another program using the port{usual}? Stop it, or set SERVICE_PORT to a free port."
        )


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
