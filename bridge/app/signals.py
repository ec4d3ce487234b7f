"""Signals on every platform: Windows has fewer of them, and loops there can't wait for any."""

import asyncio
import signal
from collections.abc import Callable


def on_signal(name: str, callback: Callable[[], object]) -> None:
    """Call back in the running loop when the signal comes; ignored if the platform lacks it."""
    number = getattr(signal, name, None)
    if number is None:
        return
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(number, callback)
    except NotImplementedError:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(callback))
