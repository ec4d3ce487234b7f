"""Wrong API keys: counted, logged, and answered ever more slowly to an address that tries many."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address

from ..errors import Busy

logger = logging.getLogger(__name__)

# So many wrong keys are answered at once: a page or a program with an old key retries too.
_FREE = 10
# From then on an address gets one answer in so long, over all its connections (seconds).
_SPACING = 0.2
# No answer waits longer than this (seconds), so that no proxy takes us for dead, and no more than
# so many wait at a time: each of them keeps a connection that others may need.
_LONGEST = 30.0
_MOST_WAITING = 256
# How often it is looked whether who waits has left (seconds).
_LOOK = 1.0
# An address that has shown no wrong key for so long begins anew (seconds).
_FORGOTTEN_AFTER = 60.0
_LOG_EVERY = 60.0
_MOST_ADDRESSES = 1000
_MOST_LINES = 10


@dataclass(slots=True)
class _Address:
    # The last one, where an IPv6 network counts as one address.
    address: str
    last: float
    count: int = 0
    free_at: float = 0.0
    logged_at: float = float("-inf")
    unlogged: int = 0


class WrongKeys:
    """Called for each request that shows a wrong key; a valid key never comes here."""

    def __init__(self, count: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._count = count
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = 0
        self._lines = 0
        # How many addresses were forgotten before all of their keys were logged, and those keys.
        self._forgotten = self._forgotten_keys = 0

    async def shown(self, address: str | None, is_connected: Callable[[], bool]) -> None:
        """Count and log a wrong key; returns after a delay if its address showed many.

        Raises Busy if too many wait already.
        """
        self._count()
        now = self._loop.time()
        known = self._address(address or "unknown", now)
        known.count += 1
        known.unlogged += 1
        self._log(known, now)
        if known.count <= _FREE:
            return
        until = max(known.free_at, now) + _SPACING
        if until - now > _LONGEST or self._waiting >= _MOST_WAITING:
            raise Busy()
        known.free_at = until
        self._waiting += 1
        try:
            await self._wait(until, is_connected)
        finally:
            self._waiting -= 1

    async def _wait(self, until: float, is_connected: Callable[[], bool]) -> None:
        while (left := until - self._loop.time()) > 0:
            if not is_connected():
                return
            await asyncio.sleep(min(left, _LOOK))

    def close(self) -> None:
        """Log what was not logged yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._log_rest()

    def _address(self, address: str, now: float) -> _Address:
        network = _network_of(address)
        known = self._addresses.setdefault(network, _Address(address, now))
        if now - known.last > _FORGOTTEN_AFTER:
            known.count = 0
        known.address, known.last = address, now
        self._addresses.move_to_end(network)
        if len(self._addresses) > _MOST_ADDRESSES:
            _, oldest = self._addresses.popitem(last=False)
            self._forgotten += oldest.unlogged > 0
            self._forgotten_keys += oldest.unlogged
        return known

    def _log(self, known: _Address, now: float) -> None:
        """Log an address at its first key; its further ones are logged once a minute."""
        if now - known.logged_at >= _LOG_EVERY and self._lines < _MOST_LINES:
            self._log_line(known, now)
        if self._timer is None:
            self._timer = self._loop.call_later(_LOG_EVERY, self._log_rest)

    def _log_rest(self) -> None:
        self._timer = None
        unlogged = [known for known in self._addresses.values() if known.unlogged]
        unlogged.sort(key=lambda known: known.unlogged, reverse=True)
        for known in unlogged[:_MOST_LINES]:
            self._log_line(known, self._loop.time())
        more = unlogged[_MOST_LINES:]
        addresses = self._forgotten + len(more)
        if addresses:
            count = self._forgotten_keys + sum(known.unlogged for known in more)
            told = {"addresses": addresses, "count": count}
            logger.warning("wrong API keys from further addresses", extra=told)
        for known in more:
            known.unlogged = 0
        self._lines = self._forgotten = self._forgotten_keys = 0

    def _log_line(self, known: _Address, now: float) -> None:
        self._lines += 1
        told = {"address": known.address, "count": known.unlogged}
        logger.warning("wrong API key", extra=told)
        known.logged_at, known.unlogged = now, 0


def _network_of(address: str) -> str:
    """Whose address it is: of IPv6, one host has all of a /64."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(IPv6Network((parsed, 64), strict=False))
    return address
