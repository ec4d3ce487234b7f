"""The console: one page on which people see what the bridge does, and what a device says.

The page, its style and its scripts hold nothing of anyone's, not even our version: they are
served to all, so that the page can ask for an API key. Everything shown on it comes from
`/console/snapshot`, polled each second, and from the operations, which the key guards.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import files

import orjson
from aiohttp import web

from ...core.device_list import listable_devices
from ...core.grant import Grant
from ...devices.models import DeviceReadings, Health
from ...devices.sensors import shown_names
from ...errors import Forbidden
from ...observability.activity import Activity, AnsweredRequest
from ...settings import Settings
from ..answer import JSON_UTF8, Answer
from ..coalesced import Coalesced
from ..pages import Fixed, Place, fixed

_STATIC = files(__name__) / "static"
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, in no one's frame.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_PAGE_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_LONGEST_UUID = 36
_SNAPSHOT_HEADERS = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))

Readings = Callable[[str], Awaitable[DeviceReadings | None]]


@dataclass(frozen=True, slots=True)
class Console:
    """The page, and the snapshots that it shows; `health` must not wait."""

    settings: Settings
    activity: Activity
    health: Callable[[], Health]
    readings: Readings
    # One for what each API key may see.
    _snapshots: dict[Grant | None, Coalesced] = field(default_factory=dict, init=False)

    def places(self) -> Iterator[Place]:
        yield Place("/console", fixed(self._page), open=True, is_page=True)
        for file in _STATIC.iterdir():
            suffix = file.name[file.name.rfind(".") :]
            if file.name != "page.html" and suffix in _CONTENT_TYPES:
                read = partial(_file, file.name, _CONTENT_TYPES[suffix])
                yield Place(f"/console/{file.name}", fixed(read), open=True)
        yield Place("/console/snapshot", self._snapshot)
        yield Place("/console/sensor-names", self._sensor_names)

    def _page(self) -> Fixed:
        page = (_STATIC / "page.html").read_bytes()
        page = page.replace(b"{{language}}", self.settings.language.encode())
        return Fixed.of(page, _CONTENT_TYPES[".html"], _PAGE_HEADERS)

    async def _snapshot(self, _: web.Request, grant: Grant | None) -> web.StreamResponse:
        snapshot = self._snapshots.get(grant)
        if snapshot is None:
            snapshot = self._snapshots[grant] = Coalesced(partial(self._snapshot_for, grant))
        return Answer(200, JSON_UTF8, await snapshot(), _SNAPSHOT_HEADERS)

    def _snapshot_for(self, grant: Grant | None) -> bytes:
        snapshot = self.activity.snapshot()
        settings = self.settings
        # Not the whole name: who knows it, and has a login at the broker, can take our place there.
        worker = settings.instance.rpartition("-")[2] if settings.workers > 1 else None
        requests = [seen for seen in snapshot.requests if _may_see(grant, seen)]
        may_list = self._may_list(grant)
        body = {
            "second": snapshot.second,
            "time": snapshot.time,
            "window": snapshot.window,
            "seconds": snapshot.seconds,
            "requests": requests if may_list else [_anonymous(seen) for seen in requests],
            "devices_hidden": not may_list,
            "health": self.health(),
            "worker": worker,
            "workers": settings.workers,
        }
        return orjson.dumps(body)

    def _may_list(self, grant: Grant | None) -> bool:
        """Whether devices may be listed: a device's UUID may be all that guards it."""
        try:
            listable_devices(self.settings, "http", grant)
        except Forbidden:
            return False
        return True

    async def _sensor_names(self, request: web.Request, grant: Grant | None) -> web.StreamResponse:
        """What people call a device's sensors, which `device` does not tell."""
        uuid = request.query.get("device_uuid", "").strip()
        if grant is not None:
            grant.check("device", uuid)
        device = await self.readings(uuid) if 0 < len(uuid) <= _LONGEST_UUID else None
        names = {} if device is None else shown_names(device)
        return Answer(200, JSON_UTF8, orjson.dumps(names), _SNAPSHOT_HEADERS)


def _anonymous(seen: AnsweredRequest) -> AnsweredRequest:
    """A request without what its requester wrote."""
    return replace(seen, device_uuid=None, detail=None, who=seen.transport)


def _may_see(grant: Grant | None, seen: AnsweredRequest) -> bool:
    """Whether a key is shown a request: only those that it may make itself."""
    if grant is None:
        return True
    if grant.devices is not None and seen.device_uuid is None:
        return False
    try:
        grant.check(seen.operation, seen.device_uuid)
    except Forbidden:
        return False
    return True


def _file(name: str, content_type: str) -> Fixed:
    return Fixed.of((_STATIC / name).read_bytes(), content_type, _PAGE_HEADERS)
