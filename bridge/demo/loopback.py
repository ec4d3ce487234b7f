"""Ports of this machine's loopback interface."""

import os
import socket

LOOPBACK = "127.0.0.1"

_STEP = 10_000


class NoFreePortError(Exception):
    """The port, or it and all its stand-ins, can't be used."""


def free_port(usual: int) -> int:
    """The usual port, or else the next free one that ends like it: 9001, 19001, 29001 …

    Raises NoFreePortError if there is none.
    """
    for port in range(usual, 65536, _STEP):
        if _is_free(port):
            return port
    raise NoFreePortError(f"port {usual} and those like it ({usual + _STEP} …) are all taken")


def any_port() -> int:
    """A port that nobody uses now, and that the system offers no one else for a while."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def wanted_port(port: int) -> int:
    """The port that was asked for; raises NoFreePortError if it is taken, or not ours to use."""
    if not _is_free(port):
        raise NoFreePortError(f"port {port} can't be used: it is taken, or needs more rights")
    return port


def _is_free(port: int) -> bool:
    # Asking `localhost` tries ::1 too, as the printed commands will: a server there would
    # answer in our place although 127.0.0.1 is free.
    try:
        socket.create_connection(("localhost", port), timeout=0.2).close()
    except OSError:
        pass
    else:
        return False
    with socket.socket() as probe:
        if os.name == "posix":
            # As servers do: else a port in TIME_WAIT counts as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
