"""The list of devices, for those who may see it: `DEVICE_LIST`, and the limits of an API key."""

from ..devices.listing import DeviceList, DevicesFields, page_of
from ..errors import Forbidden, Text
from ..settings import Settings
from .attempt import Context
from .grant import Grant
from .request import Transport

_OFF = Text(
    "本桥接服务不提供设备列表（DEVICE_LIST=off）；请向管理员索取设备的 UUID",
    "this bridge does not list devices (DEVICE_LIST=off); ask the administrator for the UUID",
)
_NOT_OVER_MQTT = Text(
    "经 MQTT 列出设备须由管理员设置 DEVICE_LIST=open；也可经 HTTP 携带 API 密钥查询",
    "over MQTT, listing devices requires DEVICE_LIST=open, which the administrator sets; over HTTP "
    "it requires an API key",
)
_KEY_NEEDED = Text(
    "列出设备须携带 API 密钥（管理员用 API_KEYS 或 API_KEYS_FILE 设置）；"
    "或由管理员设置 DEVICE_LIST=open，对所有人开放",
    "listing devices requires an API key, which the administrator sets in API_KEYS or "
    "API_KEYS_FILE, or DEVICE_LIST=open, which opens the list to everyone",
)


async def devices(fields: DevicesFields, context: Context) -> DeviceList:
    """A page of the active devices, in the order of name and UUID."""
    services, request = context.services, context.request
    only = listable_devices(services.settings, request.transport, request.grant)
    return page_of(await services.store.devices(fields, only), fields.limit)


def listable_devices(
    settings: Settings, transport: Transport, grant: Grant | None
) -> frozenset[str] | None:
    """The keys of the devices that a requester may list; None for all of them.

    `grant` is what the API key that was shown may do; None if none was. Raises Forbidden if the
    requester may list none.
    """
    if grant is not None:
        grant.check("devices", None)
    if settings.device_list == "off":
        raise Forbidden(reason=_OFF)
    if settings.device_list == "keys" and grant is None:
        raise Forbidden(reason=_NOT_OVER_MQTT if transport == "mqtt" else _KEY_NEEDED)
    return None if grant is None else grant.devices
