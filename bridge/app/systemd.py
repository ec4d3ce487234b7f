"""What systemd is told of a `Type=notify` service: ready, stopping, and that the loop turns.

After sd_notify(3) and sd_watchdog_enabled(3). Without systemd all of it does nothing.
"""

import asyncio
import os
import socket


def notify(state: str) -> None:
    """Tell systemd, such as `READY=1` or `STATUS=…` (sd_notify(3)); never fails."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError:
            # systemd's socket is gone; the service goes on.
            return


async def watchdog() -> None:
    """Tell systemd at half its interval that the loop turns, until cancelled."""
    interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000
    if interval <= 0 or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval / 2)
