"""How many connections the limit of open files allows."""

import contextlib
import sys

MOST_CONNECTIONS = 4096
# So many more there may be for a moment, as a share of the cap.
SURPLUS_SHARE = 8
LISTENING_SOCKETS = 32
# What database, broker and files need, and listening.
_OTHER_DESCRIPTORS = 128 + LISTENING_SOCKETS
_MOST_DESCRIPTORS = 65536


def raise_descriptor_limit() -> None:
    """Let this process, and those that it starts, have as many open files as it may have."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # macOS has a lower limit of its own.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_cap() -> int:
    """How many connections leave enough descriptors for everything else."""
    if sys.platform == "win32":
        return MOST_CONNECTIONS
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    left = max(soft - _OTHER_DESCRIPTORS, soft // 2)
    return min(MOST_CONNECTIONS, left * SURPLUS_SHARE // (SURPLUS_SHARE + 1))
