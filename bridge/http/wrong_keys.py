"""Wrong API keys: counted, logged, and answered ever more slowly to an address that tries many."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address

logger = logging.getLogger(__name__)

# So many wrong keys are answered at once: a page or a program with an old key retries too.
_FREE = 10
# From then on an address gets one answer in so long, over all its connections (seconds).
_SPACING = 0.2
# No answer waits longer than this (seconds).
_LONGEST = 5.0
# An address that has shown no wrong key for so long begins anew (seconds).
_FORGOTTEN_AFTER = 60.0
_LOG_EVERY = 60.0
_MOST_ADDRESSES = 1000
_MOST_LINES = 10


@dataclass(slots=True)
class _Address:
    last: float
    count: int = 0
    free_at: float = 0.0
    logged_at: float = float("-inf")
    unlogged: int = 0


class WrongKeys:
    """Called for each request that shows a wrong key; a valid key never comes here."""

    def __init__(self, count: Callable[[], None]) -> None:
        self._count = count
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        self._lines_since = float("-inf")
        self._lines = 0

    async def shown(self, address: str | None) -> None:
        """Count and log a wrong key; returns after a delay if its address showed many."""
        self._count()
        now = asyncio.get_running_loop().time()
        known = self._address(_network_of(address or "unknown"), now)
        known.count += 1
        known.unlogged += 1
        self._log(address or "unknown", known, now)
        if known.count > _FREE:
            known.free_at = max(known.free_at, now) + _SPACING
            await asyncio.sleep(min(known.free_at - now, _LONGEST))

    def _address(self, address: str, now: float) -> _Address:
        known = self._addresses.get(address)
        if known is None or now - known.last > _FORGOTTEN_AFTER:
            known = self._addresses[address] = _Address(now)
        known.last = now
        self._addresses.move_to_end(address)
        if len(self._addresses) > _MOST_ADDRESSES:
            self._addresses.popitem(last=False)
        return known

    def _log(self, address: str, known: _Address, now: float) -> None:
        """One line a minute for an address, and ten in all."""
        if now - self._lines_since > _LOG_EVERY:
            self._lines_since, self._lines = now, 0
        if now - known.logged_at > _LOG_EVERY and self._lines < _MOST_LINES:
            self._lines += 1
            known.logged_at = now
            logger.warning("wrong API key", extra={"address": address, "count": known.unlogged})
            known.unlogged = 0


def _network_of(address: str) -> str:
    """Whose address it is: of IPv6, one host has all of a /64."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(IPv6Network((parsed, 64), strict=False))
    return address
